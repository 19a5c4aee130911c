"""What the step benchmarks share: a run in a temporary folder, its stages, and the machine's own choices."""

import argparse
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from turns import Turn

if TYPE_CHECKING:
    import torch

    from ldmkit.pipeline import Pipeline
    from ldmkit.run.workspace import Workspace

PRELOAD = (
    "ldmkit.pipeline",
    "ldmkit.denoising.train_t2i",
    "ldmkit.vae.train",
    "torch.utils.tensorboard.writer",
    "seed_loop",
    "seed_networks",
)
"""imported once for all contenders"""

RECIPE = "benchmark.toml"


def pipeline_of(folder: Path, *overrides: str) -> "Pipeline":
    """The pipeline of the recipe in `folder`, telling nothing."""
    from ldmkit.components.registry import Registry
    from ldmkit.pipeline import Pipeline
    from ldmkit.recipe import load_recipe
    from ldmkit.report import Reporter

    recipe = load_recipe(folder / RECIPE, overrides)
    registry = Registry.load([Path(plugin) for plugin in recipe.plugins])
    return Pipeline(recipe, registry=registry, reporter=Reporter(quiet=True), runs_dir=folder / "runs")


def context_of(folder: Path, part: str, own: str, *overrides: str) -> "Workspace":
    """What the stage that makes `part` is handed; it writes to a folder of its own, `own`."""
    from ldmkit.run.folder import Part
    from ldmkit.run.workspace import Workspace

    made = pipeline_of(folder, *overrides)
    parts = made.parts()
    parts[part] = Part(made.run_dir / own, part, parts[part].inputs)
    parts[part].begin()
    return Workspace(made.recipe, made.registry, made.index, made.run_dir, parts, made.reporter)


def take_turns_with_steps(task: Any, turn: Turn) -> None:
    """Calls `turn` before each training step of the class `task`; the contender's process ends with the benchmark."""
    step = task.train_step

    def timed(self: Any, number: int) -> Any:
        turn()
        return step(self, number)

    task.train_step = timed


def device() -> "torch.device":
    """Where ldmkit trains."""
    from ldmkit.training.device import processes

    return processes().device  # type: ignore[no-any-return] # accelerate is untyped


def note_choices(folder: Path) -> None:
    """Writes the device and the precision that ldmkit chooses there, for a process that imports no torch."""
    from ldmkit.training.device import resolve_precision

    choices = {"device": device().type, "auto": resolve_precision("auto")}
    (folder / "choices.json").write_text(json.dumps(choices))


def choices_of(folder: Path) -> dict[str, str]:
    """What `note_choices` wrote."""
    choices: dict[str, str] = json.loads((folder / "choices.json").read_text())
    return choices


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of both step benchmarks but the counts."""
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), help="default: fp32; on CUDA ldmkit's own")
    parser.add_argument("--device", choices=("auto", "cpu"), default="auto")


def use_device(name: str) -> None:
    """Keeps every process of the benchmark on the CPU where `name` says so."""
    if name == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"


def precisions(folder: Path, asked: str | None) -> tuple[str, str]:
    """(precision of the comparison, ldmkit's own choice on this device), both `asked` where one is."""
    choices = choices_of(folder)
    return asked or (choices["auto"] if choices["device"] == "cuda" else "fp32"), asked or choices["auto"]
