"""`ldmkit verify-resume`: the training stages killed and resumed on this machine, compared bit by bit. No torch.

A recipe's own stages, cut to a few steps, run undisturbed in processes of their own, in `alone/`; then again in
`killed/`, killed (SIGKILL) at seeded moments until they come to their end: any touch of a file of its run may be a
process's last.
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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ldmkit.components.registry import Registry
from ldmkit.data.sources import is_there
from ldmkit.errors import LdmkitError
from ldmkit.pipeline import Pipeline
from ldmkit.recipe import Recipe
from ldmkit.report import Reporter
from ldmkit.run.metrics import read_metrics
from ldmkit.run.parts import PARTS, parts_of, stage_names, stage_parts

PICTURES = 64
"""as many of the recipe's pictures are trained on"""
_TOUCHES = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate")
_TIMES = ("seconds", "loader_wait")
"""what a log has that no two runs have in common"""
_ENVIRONMENT = ("device", "precision", "compiled", "deterministic", "threads", "world_size", "torch")
"""what the bits depend on besides the recipe and the pictures, as a checkpoint's state has it"""


def cut(recipe: Recipe, *, steps: int, pictures: Path, scratch: Path) -> Recipe:
    """The recipe with every training stage cut to `steps`, all its losses and a few checkpoints among them."""

    def short(section: Any, **changes: Any) -> Any:
        if section is None:
            return None
        every = {"log_every": 1, "eval_every": max(1, steps // 2), "sample_every": steps}
        every |= {"checkpoint_every": max(1, steps // 3), "keep_checkpoints": 2}
        warmup = {"warmup_steps": min(section.warmup_steps, 2)}
        return section.model_copy(update={"steps": steps, "epochs": None, **every, **warmup, **changes})

    at_once = {"start_epoch": 0, "start_on_plateau": False}
    losses = {
        name: loss.model_copy(update={**at_once, "start_step": min(loss.start_step, steps // 2)})
        for name, loss in recipe.vae.losses.items()
    }
    vae: dict[str, Any] = {"losses": losses}
    if recipe.vae.pretrained:
        vae |= {"steps": None, "tune_decoder_steps": steps if recipe.vae.tune_decoder_steps else 0}
    # A captioner takes long, and its words change nothing here.
    caption = recipe.caption if recipe.caption.use == "sidecar" else type(recipe.caption)(use="filename")
    data = {"path": str(pictures), "num_pictures": PICTURES}
    if not is_there(pictures):
        data |= {"path": str(scratch / "pictures"), "source": "toy-cats"}
    return recipe.model_copy(
        update={
            "vae": short(recipe.vae, **vae),
            "unet": short(recipe.unet),
            "t2i": short(recipe.t2i),
            "caption": caption.model_copy(update={"missing": "empty", "max_missing": 1.0}),
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
    kills: int = 0
    inside_saves: int = 0
    runs: int = 0
    """that came to their end after kills, and were compared"""
    compared: int = 0
    """logged steps and files of weights, over all runs"""
    different: list[str] = field(default_factory=list)
    """those of them that differ by a bit"""


class ResumeCheck:
    """Runs a recipe (see `cut`) in `scratch`."""

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
        there = {spec.stage for spec in parts_of(self.recipe).values()}
        for each in stage_names()[: stage_names().index(stage) + 1]:
            if each in there:
                self._run(each, self.alone)
        state = json.loads((_last(self.alone / stage_parts(stage)[0].name) / "state.json").read_text(encoding="utf-8"))
        return Verdict(stage, {name: state[name] for name in _ENVIRONMENT})

    def run_to_the_end(self, verdict: Verdict, kills: int) -> None:
        """Runs the stage from nothing, killed until there were `kills`; compares it with the undisturbed run."""
        part = stage_parts(verdict.stage)[0].name
        shutil.rmtree(self.killed, ignore_errors=True)
        shutil.copytree(self.alone, self.killed, ignore=shutil.ignore_patterns("stale", ".lock", part))
        while self._run(verdict.stage, self.killed, risk=self.risk if verdict.kills < kills else None) != 0:
            verdict.kills += 1
            verdict.inside_saves += any((self.killed / part / "checkpoints").glob(".*"))
        found = [contents(run / part) for run in (self.alone, self.killed)]
        names = sorted(found[0].keys() | found[1].keys())
        verdict.runs += 1
        verdict.compared += len(names)
        verdict.different += [name for name in names if found[0].get(name) != found[1].get(name)]

    def _run(self, stage: str, run: Path, *, risk: float | None = None) -> int:
        """Exit code of one process that runs the stage: 0, or the signal that it was killed with, negative.

        Raises LdmkitError where it ended in any other way; the stage has said why.
        """
        arguments = (self.recipe.model_dump_json(), str(run.parent), stage, self._random.random(), risk)
        process = self._context.Process(target=_stage, args=arguments)
        process.start()
        try:
            self._wait(process)
        finally:
            process.kill()
        code = int(process.exitcode)
        if code > 0 or (code < 0 and risk is None):
            raise LdmkitError(f"{stage} does not run here: see above (exit code {code})")
        return code

    def _wait(self, process: Any) -> None:
        process.join()


def _stage(recipe: str, runs_dir: str, stage: str, seed: float, risk: float | None) -> None:
    """What one process does; `risk`: with which it ends itself each time that it touches a file of its run."""
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
        sys.exit(str(error))


def _last(part: Path) -> Path:
    return max((part / "checkpoints").glob("step_*"))


def contents(part: Path) -> dict[str, Any]:
    """Every logged number but times to its last bit, and SHA-256 of final weights and of all in the last checkpoint."""
    rows = enumerate(read_metrics(part / "metrics.jsonl"), 1)
    files = [*part.glob("*.safetensors"), *_last(part).glob("*.safetensors")]
    return {
        **{f"line {i}": {k: float(v).hex() for k, v in row.items() if k not in _TIMES} for i, row in rows},
        **{str(file.relative_to(part)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files},
    }
