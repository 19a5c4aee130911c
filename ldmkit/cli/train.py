"""`ldmkit train` and its stages one by one, `ldmkit status`."""

import json
import os
import shlex
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ldmkit.cli.common import EXPORT, TRAINING, require, set_option
from ldmkit.errors import LdmkitError
from ldmkit.report import printable, tell
from ldmkit.run.parts import PARTS, stage_names, stage_parts

if TYPE_CHECKING:
    from ldmkit.pipeline import Pipeline
    from ldmkit.run.decide import Step
    from ldmkit.run.folder import Status

STAGE = click.Choice(stage_names())
_recipe = click.argument("recipe")
_force = click.option(
    "--force",
    is_flag=True,
    help="Train U-Nets although the autoencoder does not pass the gate, or most pictures have no caption.",
)
_init_from = click.option(
    "--init-from",
    type=click.Path(path_type=Path),
    metavar="RUN|FILE",
    help="Start networks from the weights of another run, or of a safetensors file: weights alone, step 0.",
)
_preview = click.option(
    "--preview",
    type=click.IntRange(1),
    metavar="N",
    help="Caption N pictures alone, spread over the set, show both on a page, and keep no caption.",
)
_yes = click.option("--yes", is_flag=True, help="Set long work that is out of date aside without a question.")


def open_pipeline(name: str, overrides: tuple[str, ...] = (), *, looks: bool = False) -> "Pipeline":
    """The pipeline of a recipe, checked with its plugins; `looks`: its state is what is asked for, on stdout."""
    from ldmkit.cli.recipe import open_recipe
    from ldmkit.pipeline import Pipeline
    from ldmkit.report import Reporter

    recipe, registry = open_recipe(name, overrides)
    reporter = Reporter(quiet=os.environ.get("RANK", "0") != "0", err=looks)
    return Pipeline(recipe, registry=registry, reporter=reporter)


@click.command()
@_recipe
@click.option("--only", type=STAGE, help="Run this stage alone, if it is missing or out of date.")
@click.option("--from", "first", type=STAGE, help="Run this stage and those behind it.")
@set_option
@click.option("--dry-run", is_flag=True, help="Print what would run, and why, and do nothing.")
@_force
@_init_from
@click.option("--fresh", is_flag=True, help="Begin anew what would go on; the old result is kept aside.")
@_yes
def train(
    recipe: str,
    only: str | None,
    first: str | None,
    overrides: tuple[str, ...],
    dry_run: bool,
    force: bool,
    init_from: Path | None,
    fresh: bool,
    yes: bool,
) -> None:
    """Run what is missing or out of date of RECIPE, from pictures to a bundle; resume what was interrupted.

    RECIPE is a TOML file or the name of a recipe that comes with ldmkit (`toy-cats`).
    """
    if only and first:
        raise click.UsageError("--only and --from exclude each other")
    every = stage_names()
    stages = (only,) if only else every[every.index(first) :] if first else every
    pipeline = open_pipeline(recipe, overrides, looks=dry_run)
    if init_from is not None:
        pipeline.start_from(init_from, stages)
    if dry_run:
        _look(pipeline)
        _print_states(pipeline, pipeline.steps(stages, fresh=fresh))
    else:
        require(*TRAINING, *(EXPORT if "export" in stages else ()))
        pipeline.run(stages, ignore_gate=force, fresh=fresh, confirm=partial(_confirm, yes=yes))


def stage_command(name: str) -> click.Command:
    """The command of a stage, as the table of parts has it."""
    parts = stage_parts(name)

    @click.command(name, help=parts[0].help)
    @_recipe
    @set_option
    @_yes
    @click.option("--again", is_flag=True, help="Run it anew even if it is up to date; the old result is kept aside.")
    def command(
        recipe: str,
        overrides: tuple[str, ...],
        again: bool,
        yes: bool,
        force: bool = False,
        init_from: Path | None = None,
        preview: int | None = None,
    ) -> None:
        if preview and again:
            raise click.UsageError("--preview and --again exclude each other")
        pipeline = open_pipeline(recipe, overrides)
        if preview:
            pipeline.preview_captions(preview)
            return
        if init_from is not None:
            pipeline.start_from(init_from, (name,))
        if any(part.torch for part in parts):
            require(*TRAINING)
        pipeline.run((name,), forced=name if again else None, ignore_gate=force, confirm=partial(_confirm, yes=yes))

    if name == "caption":
        command = _preview(command)
    if any(part.trained for part in parts):
        command = _init_from(command)
    return _force(command) if any(part.gated for part in parts) else command


@click.command()
@_recipe
@set_option
@click.option("--deep", is_flag=True, help="Hash every file of the run, its bundle and the pictures.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(recipe: str, overrides: tuple[str, ...], deep: bool, as_json: bool) -> None:
    """Show which parts of RECIPE's run are done, interrupted, missing, stale, changed or damaged, and why.

    With --deep the exit code is 1 where anything is damaged.
    """
    pipeline = open_pipeline(recipe, overrides, looks=True)
    pipeline.dataset.remembers, pipeline.dataset.closely = True, deep
    others: list[str] = []
    if deep:
        from ldmkit.cli.damages import other_damages

        others += other_damages(pipeline)
    _look(pipeline)
    states = pipeline.states()
    if as_json:
        rows = [
            {"stage": PARTS[name].stage, "part": name, "state": status.state, "reason": status.reason}
            for name, status in states.items()
        ]
        tell(json.dumps({"run": str(pipeline.run_dir), "parts": rows, "damages": others}))
    else:
        _print_states(pipeline, states)
        for line in others:
            tell(f"  {line}")
    if deep and (others or not all(found.whole for found in states.values())):
        sys.exit(1)


def _look(pipeline: "Pipeline") -> None:
    if pipeline.recipe.data.source == "folder":
        pipeline.index  # noqa: B018 - raises where nothing will ever bring the pictures


def _confirm(text: str, *, yes: bool) -> None:
    """Raises LdmkitError where the user does not want it, or is not there to be asked."""
    if yes:
        return
    if not sys.stdin.isatty():
        command = shlex.join(["ldmkit", *sys.argv[1:], "--yes"])
        raise LdmkitError(f"{text}. Nothing was changed: `{command}` sets it aside, in stale/, and begins anew")
    if not click.confirm(f"{printable(text)}. Set it aside, in stale/, and begin anew?"):
        raise LdmkitError("nothing was changed")


def _print_states(pipeline: "Pipeline", states: "Mapping[str, Status | Step]") -> None:
    tell(f"run {pipeline.run_dir}")
    for name, status in states.items():
        reason = f"  ({status.reason})" if status.reason else ""
        tell(f"  {PARTS[name].stage:<11} {name:<9} {status.state}{reason}")
