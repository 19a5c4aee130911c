"""`ldmkit verify-resume`: whether a killed run repeats an uninterrupted one on this machine."""

import json
import os
import signal
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import click

from ldmkit.cli.missing import TRAINING, require
from ldmkit.cli.options import set_option
from ldmkit.errors import LdmkitError

if TYPE_CHECKING:
    from ldmkit.verify_resume import Verdict

STAGE_NAMES = ("train-vae", "train-unet", "train-t2i")


@click.command("verify-resume")
@click.argument("recipe")
@set_option
@click.option("--only", type=click.Choice(STAGE_NAMES), help="Look at this stage alone.")
@click.option("--steps", default=9, show_default=True, type=click.IntRange(min=3), help="Steps of each stage.")
@click.option("--kills", default=4, show_default=True, type=click.IntRange(min=1), help="Kills of each stage.")
@click.option("--seed", default=0, show_default=True, help="Of the moments at which they are killed.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def verify_resume(
    recipe: str,
    overrides: tuple[str, ...],
    only: str | None,
    steps: int,
    kills: int,
    seed: int,
    as_json: bool,
) -> int:
    """Kill and resume RECIPE's training stages here, and compare losses and weights bit by bit.

    The stages are cut to a few steps on a few of the recipe's pictures, or toy cats where it has none yet, and run in
    a temporary folder. Exit code 1 where a bit differs.
    """
    require(*TRAINING)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise LdmkitError("ldmkit verify-resume checks one process; start it without a launcher")
    from ldmkit.cli.recipe import open_recipe
    from ldmkit.recipe import RecipeFile, find_recipe
    from ldmkit.verify_resume import ResumeCheck, cut

    checked, _ = open_recipe(recipe, overrides)
    plugins = RecipeFile.read(find_recipe(recipe), overrides).plugin_files()
    old = signal.signal(signal.SIGTERM, signal.default_int_handler)  # the temporary folder goes whatever ends it
    try:
        with TemporaryDirectory(prefix="ldmkit-verify-") as name:
            scratch = Path(name).resolve()
            short = cut(checked, steps=steps, pictures=Path(checked.data.path).absolute(), scratch=scratch)
            check = ResumeCheck(short, plugins, scratch, seed=seed)
            stages = (only,) if only else STAGE_NAMES
            verdicts = [
                check.check(stage, kills=kills, tell=lambda text: click.echo(text, err=True)) for stage in stages
            ]
    finally:
        signal.signal(signal.SIGTERM, old)
    if as_json:
        click.echo(json.dumps({"recipe": checked.name, "stages": [verdict.table() for verdict in verdicts]}, indent=1))
    else:
        _print(verdicts)
    return int(not all(verdict.same for verdict in verdicts))


def _print(verdicts: "list[Verdict]") -> None:
    from rich.console import Console
    from rich.table import Table

    # Piped, each stage is one line that grep can find.
    console = Console(width=None if sys.stdout.isatty() else 1000, highlight=False)
    table = Table(box=None, pad_edge=False)
    headings = (
        "stage",
        "kills",
        "inside a save",
        "runs",
        "steps compared",
        "different",
        "weights compared",
        "different",
    )
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="left" if number == 0 else "right")
    for v in verdicts:
        counts = (v.kills, v.inside_saves, v.runs, v.steps, v.different_steps, v.files, v.different_files)
        table.add_row(v.stage, *map(str, counts))
    console.print(table)
    for v in verdicts:
        click.echo(f"{v.stage}: " + ", ".join(f"{key} {value}" for key, value in v.environment.items()))
    if all(verdict.same for verdict in verdicts):
        click.echo("a resumed run repeats an uninterrupted one to the last bit on this machine")
    else:
        click.echo(
            "a resumed run differs from an uninterrupted one: on a GPU, deterministic = true in [vae], [unet] and "
            "[t2i] uses only kernels that repeat themselves; on a CPU please report it"
        )
