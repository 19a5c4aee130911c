"""`ldmkit verify-resume`: the training stages killed and resumed on this machine, compared bit by bit. No torch.

A recipe's own stages, cut to a few steps, run undisturbed in processes of their own; then again, killed (SIGKILL) at
seeded moments until they come to their end. Half of the moments lie inside a save.
"""

import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ldmkit.components.registry import Registry
from ldmkit.errors import LdmkitError
from ldmkit.pipeline import STAGES, TRAINED, Pipeline
from ldmkit.recipe import Recipe
from ldmkit.recipe.sections import Gate
from ldmkit.recipe.training import Training
from ldmkit.report import Reporter
from ldmkit.run.folder import read_metrics

TRAINING_STAGES = tuple(stage for stage, parts in STAGES.items() if parts[0] in TRAINED)
PICTURES = 64
"""as many of the recipe's pictures are trained on"""
_PRELOADED = (
    "torch.utils.tensorboard.writer",
    "matplotlib.figure",
    *(
        f"ldmkit.{name}"
        for name in ("caches.caption", "vae.train", "caches.encode", "denoising.train_unet", "denoising.train_t2i")
    ),
)
_TOUCHES = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate")
_TIMES = ("seconds", "loader_wait")
"""what a log has that no two runs have in common"""


def cut(recipe: Recipe, *, steps: int, pictures: Path, scratch: Path) -> Recipe:
    """The recipe with every training stage cut to `steps`, all its losses and a few checkpoints among them."""

    def short(section: Any) -> Any:
        assert isinstance(section, Training)
        return section.model_copy(
            update={
                "steps": steps,
                "epochs": None,
                "warmup_steps": min(section.warmup_steps, 2),
                "log_every": 1,
                "eval_every": max(1, steps // 2),
                "sample_every": steps,
                "checkpoint_every": max(1, steps // 3),
                "keep_checkpoints": 2,
            }
        )

    at_once = {"start_epoch": 0, "start_on_plateau": False}
    losses = {
        name: loss.model_copy(update={**at_once, "start_step": min(loss.start_step, steps // 2)})
        for name, loss in recipe.vae.losses.items()
    }
    caption = recipe.caption.model_copy(update={"missing": "empty"})
    if caption.use != "sidecar":  # a captioner takes long, and its words change nothing here
        caption = type(caption)(use="filename", missing="empty")
    there = pictures.exists()
    toy = {} if there else {"source": "toy-cats"}
    data = {"path": str(pictures if there else scratch / "pictures"), "num_pictures": PICTURES, **toy}
    return recipe.model_copy(
        update={
            "vae": short(recipe.vae.model_copy(update={"losses": losses})),
            "unet": short(recipe.unet),
            "t2i": short(recipe.t2i),
            "caption": caption,
            "data": recipe.data.model_copy(update=data),
            "gate": Gate(min_psnr=0, min_ssim=0, max_lpips=0, min_latent_signal=0, max_latent_kurtosis=0),
            "sampler": recipe.sampler.model_copy(update={"steps": 2}),
            "export": recipe.export.model_copy(update={"path": str(scratch / "exports")}),
        }
    )


@dataclass
class Verdict:
    """How one stage fared."""

    stage: str
    environment: dict[str, Any]
    """what the bits depend on besides the recipe and the pictures: device, threads, torch, ..."""
    kills: int = 0
    inside_saves: int = 0
    killed_at: list[int] = field(default_factory=list)
    """steps that were logged at each kill"""
    runs: int = 0
    """that came to their end after kills"""
    steps: int = 0
    """logged steps compared, over all runs"""
    different_steps: int = 0
    files: int = 0
    """weights compared: networks, averages and optimizers"""
    different_files: int = 0

    @property
    def same(self) -> bool:
        """Whether not one bit differs."""
        return not self.different_steps and not self.different_files

    def table(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self) | {"same": self.same}


class ResumeCheck:
    """Runs a recipe (see `cut`) in `scratch`: undisturbed in `alone/`, killed and resumed in `killed/`."""

    def __init__(self, recipe: Recipe, plugins: Sequence[Path], scratch: Path, *, seed: int = 0) -> None:
        self.recipe = recipe
        self.plugins = [str(path.absolute()) for path in plugins]
        self.scratch = scratch
        self.alone, self.killed = (scratch / name / recipe.name for name in ("alone", "killed"))
        self._random = random.Random(seed)
        # A process that has imported torch once forks the others; where there is no fork each imports it anew.
        forks = "forkserver" in multiprocessing.get_all_start_methods()
        self._context: Any = multiprocessing.get_context("forkserver" if forks else "spawn")
        if forks:
            self._context.set_forkserver_preload(list(_PRELOADED))

    def check(self, stage: str, *, kills: int, tell: Callable[[str], None]) -> Verdict:
        """Kills the stage so often, run by run, and compares every run that comes to its end.

        Raises LdmkitError where the stage cannot run here at all.
        """
        verdict, touched = self.undisturbed(stage)
        while verdict.kills < kills or not verdict.runs:
            self.run_to_the_end(verdict, lambda: self._strike(touched) if verdict.kills < kills else None)
            tell(f"{stage}: {verdict.kills} kills, {verdict.runs} runs compared")
        return verdict

    def undisturbed(self, stage: str) -> tuple[Verdict, dict[str, int]]:
        """Runs all up to the stage without a kill; an empty verdict, and how often the stage touched its files."""
        for before in list(STAGES)[: list(STAGES).index(stage)]:
            self._count(before)
        touched = self._count(stage)
        return Verdict(stage, _environment(self.alone / STAGES[stage][0])), touched

    def run_to_the_end(self, verdict: Verdict, next_strike: Callable[[], dict[str, Any] | None]) -> None:
        """Runs the stage from nothing, killed by each strike until it is done; compares it with the undisturbed run."""
        (part,) = STAGES[verdict.stage]
        shutil.rmtree(self.killed, ignore_errors=True)
        shutil.copytree(self.alone, self.killed, ignore=shutil.ignore_patterns("stale", ".lock"))
        for made in TRAINED[TRAINED.index(part) :]:
            shutil.rmtree(self.killed / made, ignore_errors=True)
        while self._run(verdict.stage, self.killed, strike=next_strike()) != 0:
            verdict.kills += 1
            verdict.inside_saves += any((self.killed / part / "checkpoints").glob(".*"))
            log = self.killed / part / "metrics.jsonl"
            rows = read_metrics(log) if log.is_file() else []
            verdict.killed_at.append(int(rows[-1]["step"]) if rows else 0)
        self._compare(part, verdict)

    def _strike(self, touched: dict[str, int]) -> dict[str, Any]:
        """The touch of a file at which the process is to be killed."""
        where = self._random.choice(["runs", "saves"])
        # Of a run that goes on from its middle fewer touches are left: late ones would seldom be reached.
        return {"where": where, "touch": self._random.randint(1, max(1, touched[where] * 2 // 3))}

    def _count(self, stage: str) -> dict[str, int]:
        """Runs the stage undisturbed; how often it touched its files, and those of unfinished checkpoints."""
        self._run(stage, self.alone, strike={"where": "runs", "touch": -1})
        found: dict[str, int] = json.loads((self.scratch / "touched.json").read_text())
        return found

    def _run(self, stage: str, run: Path, *, strike: dict[str, Any] | None) -> int:
        """Exit code of one process that runs the stage: 0, or the signal that it was killed with, negative.

        Raises LdmkitError with what the stage said where it ended in any other way.
        """
        said = self.scratch / "said.txt"
        process = self._context.Process(
            target=_stage,
            args=(self.recipe.model_dump_json(), self.plugins, str(run.parent), stage, strike, str(self.scratch)),
        )
        process.start()
        try:
            self._wait(process)
        finally:
            process.kill()
        code = int(process.exitcode)
        if code > 0 or (code < 0 and (strike is None or strike["touch"] < 0)):
            lines = said.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise LdmkitError(f"{stage} does not run here: {lines[-1] if lines else f'exit code {code}'}")
        return code

    def _wait(self, process: Any) -> None:
        process.join()

    def _compare(self, part: str, verdict: Verdict) -> None:
        logs = [_numbers(run / part / "metrics.jsonl") for run in (self.alone, self.killed)]
        hashes = [_weights(run / part) for run in (self.alone, self.killed)]
        verdict.runs += 1
        verdict.steps += len(logs[0])
        verdict.different_steps += sum(one != other for one, other in zip(*logs, strict=False))
        verdict.different_steps += abs(len(logs[0]) - len(logs[1]))
        names = hashes[0].keys() | hashes[1].keys()
        verdict.files += len(names)
        verdict.different_files += sum(hashes[0].get(name) != hashes[1].get(name) for name in names)


def _stage(recipe: str, plugins: list[str], runs_dir: str, stage: str, strike: Any, scratch: str) -> None:
    """What one process does; `strike`: see `ResumeCheck._strike`, a touch of -1 only counts."""
    said = os.open(Path(scratch) / "said.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(said, stream)
    touched = {"runs": 0, "saves": 0}

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in _TOUCHES or not isinstance(arguments[0], str | bytes | Path):
            return
        path = os.fsdecode(arguments[0])
        if not path.startswith(runs_dir):
            return
        for where in ("runs", "saves"):
            if where == "runs" or f"checkpoints{os.sep}." in path:
                touched[where] += 1
                if strike["where"] == where and touched[where] == strike["touch"]:
                    os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))

    if strike is not None:
        sys.addaudithook(watch)
    registry = Registry.load([Path(path) for path in plugins])
    silent = Registry(registry.components, registry.failures)  # nobody's hook hears of this
    try:
        checked = Recipe.model_validate_json(recipe)
        Pipeline(checked, registry=silent, reporter=Reporter(quiet=True), runs_dir=Path(runs_dir)).run(
            (stage,), ignore_gate=True
        )
    except LdmkitError as error:
        os.write(2, f"{error}\n".encode())
        sys.exit(error.exit_code)
    (Path(scratch) / "touched.json").write_text(json.dumps(touched))


def _numbers(log: Path) -> list[dict[str, str]]:
    """Every logged number to its last bit, but for times."""
    return [{k: float(v).hex() for k, v in row.items() if k not in _TIMES} for row in read_metrics(log)]


def _environment(part: Path) -> dict[str, Any]:
    state = json.loads((_last(part) / "state.json").read_text(encoding="utf-8"))
    return {key: state[key] for key in ("device", "precision", "deterministic", "threads", "world_size", "torch")}


def _last(part: Path) -> Path:
    return max((part / "checkpoints").glob("step_*"))


def _weights(part: Path) -> dict[str, str]:
    """SHA-256 of the final weights, and of all in the last checkpoint."""
    return {
        str(file.relative_to(part)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in [*part.glob("*.safetensors"), *_last(part).glob("*.safetensors")]
    }
