"""`ldmkit verify-resume`: the training stages killed and resumed on this machine, compared bit by bit. No torch.

A recipe's own stages, cut to a few steps, run undisturbed in processes of their own; then again, killed (SIGKILL) at
seeded moments until they come to their end: whenever a process touches its files, it may be its last time.
"""

import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldmkit.components.registry import Registry
from ldmkit.errors import LdmkitError
from ldmkit.pipeline import Pipeline
from ldmkit.recipe import Recipe
from ldmkit.report import Reporter
from ldmkit.run.folder import read_metrics
from ldmkit.run.parts import PARTS, stage_names, stage_parts

TRAINING_STAGES = tuple(spec.stage for spec in PARTS.values() if spec.trained)
PICTURES = 64
"""as many of the recipe's pictures are trained on"""
_TOUCHES = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate")
_TIMES = ("seconds", "loader_wait")
"""what a log has that no two runs have in common"""


def cut(recipe: Recipe, *, steps: int, pictures: Path, scratch: Path) -> Recipe:
    """The recipe with every training stage cut to `steps`, all its losses and a few checkpoints among them."""

    def short(section: Any, **changes: Any) -> Any:
        every = {"log_every": 1, "eval_every": max(1, steps // 2), "sample_every": steps}
        every |= {"checkpoint_every": max(1, steps // 3), "keep_checkpoints": 2}
        warmup = {"warmup_steps": min(section.warmup_steps, 2)}
        return section.model_copy(update={"steps": steps, "epochs": None, **every, **warmup, **changes})

    losses = {
        name: loss.model_copy(
            update={"start_epoch": 0, "start_on_plateau": False, "start_step": min(loss.start_step, steps // 2)}
        )
        for name, loss in recipe.vae.losses.items()
    }
    # A captioner takes long, and its words change nothing here.
    caption = recipe.caption if recipe.caption.use == "sidecar" else type(recipe.caption)(use="filename")
    data = {"path": str(pictures), "num_pictures": PICTURES}
    if not pictures.exists():
        data |= {"path": str(scratch / "pictures"), "source": "toy-cats"}
    return recipe.model_copy(
        update={
            "vae": short(recipe.vae, losses=losses),
            "unet": short(recipe.unet),
            "t2i": short(recipe.t2i),
            "caption": caption.model_copy(update={"missing": "empty"}),
            "data": recipe.data.model_copy(update=data),
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


class ResumeCheck:
    """Runs a recipe (see `cut`) in `scratch`: undisturbed in `alone/`, killed and resumed in `killed/`."""

    def __init__(self, recipe: Recipe, scratch: Path, *, seed: int = 0) -> None:
        self.recipe = recipe
        self.scratch = scratch
        self.alone, self.killed = (scratch / name / recipe.name for name in ("alone", "killed"))
        self.risk = 3 / (150 + (recipe.vae.steps or 0))
        """that a touch of a file is a process's last: about a third of how often a whole run touches its files"""
        self._random = random.Random(seed)
        # A process that has imported torch once forks the others; where there is no fork each imports it anew.
        forks = "forkserver" in multiprocessing.get_all_start_methods()
        self._context: Any = multiprocessing.get_context("forkserver" if forks else "spawn")
        if forks:
            stages = [spec.maker.split(":")[0] for spec in PARTS.values() if spec.name != "bundle"]
            self._context.set_forkserver_preload([*stages, "torch.utils.tensorboard.writer", "matplotlib.figure"])

    def check(self, stage: str, *, kills: int, tell: Callable[[str], None]) -> Verdict:
        """Kills the stage so often, run by run, and compares every run that comes to its end.

        Raises LdmkitError where the stage cannot run here at all.
        """
        verdict = self.undisturbed(stage)
        while verdict.kills < kills or not verdict.runs:
            self.run_to_the_end(verdict, kills)
            tell(f"{stage}: {verdict.kills} kills, {verdict.runs} runs compared")
        return verdict

    def undisturbed(self, stage: str) -> Verdict:
        """Runs all up to the stage without a kill; an empty verdict."""
        every = stage_names()
        for each in every[: every.index(stage) + 1]:
            self._run(each, self.alone)
        state = json.loads((_last(self.alone / stage_parts(stage)[0].name) / "state.json").read_text(encoding="utf-8"))
        names = ("device", "precision", "deterministic", "threads", "world_size", "torch")
        return Verdict(stage, {name: state[name] for name in names})

    def run_to_the_end(self, verdict: Verdict, kills: int) -> None:
        """Runs the stage from nothing, killed until there were `kills`; compares it with the undisturbed run."""
        part = stage_parts(verdict.stage)[0].name
        shutil.rmtree(self.killed, ignore_errors=True)
        shutil.copytree(self.alone, self.killed, ignore=shutil.ignore_patterns("stale", ".lock", part))
        while self._run(verdict.stage, self.killed, risk=self.risk if verdict.kills < kills else None) != 0:
            verdict.kills += 1
            verdict.inside_saves += any((self.killed / part / "checkpoints").glob(".*"))
        self._compare(part, verdict)

    def _run(self, stage: str, run: Path, *, risk: float | None = None) -> int:
        """Exit code of one process that runs the stage: 0, or the signal that it was killed with, negative.

        Raises LdmkitError with what the stage said where it ended in any other way.
        """
        said = self.scratch / "said.txt"
        arguments = (self.recipe.model_dump_json(), str(run.parent), stage, self._random.random(), risk, str(said))
        process = self._context.Process(target=_stage, args=arguments)
        process.start()
        try:
            self._wait(process)
        finally:
            process.kill()
        code = int(process.exitcode)
        if code > 0 or (code < 0 and risk is None):
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


def _stage(recipe: str, runs_dir: str, stage: str, seed: float, risk: float | None, said: str) -> None:
    """What one process does; `risk`: with which it ends itself each time that it touches a file of its run."""
    output = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(output, stream)
    luck = random.Random(seed)

    def strike(event: str, arguments: tuple[Any, ...]) -> None:
        touches = event in _TOUCHES and isinstance(arguments[0], str | bytes | Path)
        if touches and os.fsdecode(arguments[0]).startswith(runs_dir) and luck.random() < (risk or 0):
            os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))

    if risk is not None:
        sys.addaudithook(strike)
    own = Recipe.model_validate_json(recipe)
    registry = Registry.load([Path(plugin) for plugin in own.plugins])
    silent = Registry(registry.components, registry.failures)  # nobody's hook hears of this
    try:
        pipeline = Pipeline(own, registry=silent, reporter=Reporter(quiet=True), runs_dir=Path(runs_dir))
        pipeline.run((stage,), ignore_gate=True)
    except LdmkitError as error:
        os.write(2, f"{error}\n".encode())
        sys.exit(error.exit_code)


def _numbers(log: Path) -> list[dict[str, str]]:
    """Every logged number to its last bit, but for times."""
    return [{k: float(v).hex() for k, v in row.items() if k not in _TIMES} for row in read_metrics(log)]


def _last(part: Path) -> Path:
    return max((part / "checkpoints").glob("step_*"))


def _weights(part: Path) -> dict[str, str]:
    """SHA-256 of the final weights, and of all in the last checkpoint."""
    return {
        str(file.relative_to(part)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in [*part.glob("*.safetensors"), *_last(part).glob("*.safetensors")]
    }
