"""`ldmkit verify-resume`: whether a killed run repeats an uninterrupted one on this machine."""

import json
import os
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import click

from ldmkit.cli.common import TRAINING, require, set_option
from ldmkit.errors import LdmkitError
from ldmkit.report import tell
from ldmkit.run.parts import PARTS, trained_parts

STAGES = tuple(PARTS[part].stage for part in trained_parts())


@click.command("verify-resume")
@click.argument("recipe")
@set_option
@click.option("--only", type=click.Choice(STAGES), help="Look at this stage alone.")
@click.option("--steps", default=9, show_default=True, type=click.IntRange(min=3), help="Steps of each stage.")
@click.option("--kills", default=4, show_default=True, type=click.IntRange(min=1), help="Kills of each stage.")
@click.option("--seed", default=0, show_default=True, help="Of the moments at which they are killed.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def verify_resume(
    recipe: str, overrides: tuple[str, ...], only: str | None, steps: int, kills: int, seed: int, as_json: bool
) -> int:
    """Kill and resume RECIPE's training stages here, and compare losses and weights bit by bit.

    The stages are cut to a few steps on a few of the recipe's pictures, or toy cats where it has none yet, and run in
    a temporary folder. Exit code 1 where a bit differs.
    """
    require(*TRAINING)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise LdmkitError("ldmkit verify-resume checks one process; start it without a launcher")
    from ldmkit.cli.recipe import open_recipe
    from ldmkit.data.sources import located
    from ldmkit.verify_resume import ResumeCheck, cut

    checked, _ = open_recipe(recipe, overrides)
    with TemporaryDirectory(prefix="ldmkit-verify-") as name:
        scratch = Path(name).resolve()
        short = cut(checked, steps=steps, pictures=located(Path(checked.data.path)), scratch=scratch)
        check = ResumeCheck(short, scratch, seed=seed)
        stages = (only,) if only else STAGES
        verdicts = [check.check(stage, kills=kills, tell=partial(tell, err=True)) for stage in stages]
    same = not any(verdict.different for verdict in verdicts)
    if as_json:
        rows = [{**vars(verdict), "same": not verdict.different} for verdict in verdicts]
        tell(*json.dumps({"recipe": checked.name, "stages": rows}, indent=1).split("\n"))
        return int(not same)
    for v in verdicts:
        tell(f"{v.stage} on {', '.join(f'{key} {value}' for key, value in v.environment.items())}:")
        tell(f"  {v.kills} kills, {v.inside_saves} of them inside a save, in {v.runs} runs")
        names = ", ".join(v.different[:3]) + (", ..." if len(v.different) > 3 else "")
        tell(f"  {len(v.different)} of {v.compared} steps and weights differ{': ' if names else ''}{names}")
    tell(
        "a resumed run repeats an uninterrupted one to the last bit on this machine"
        if same
        else "a resumed run differs from an uninterrupted one: on a GPU, deterministic = true in [vae], [unet] and "
        "[t2i] uses only kernels that repeat themselves; on a CPU please report it"
    )
    return int(not same)
