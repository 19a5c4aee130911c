"""`ldmkit train` and its stages one by one, `ldmkit status`."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ldmkit.cli.missing import EXPORT, TRAINING, require
from ldmkit.cli.options import set_option

if TYPE_CHECKING:
    from ldmkit.pipeline import Pipeline, Planned

STAGE_NAMES = ("caption", "train-vae", "encode", "train-unet", "train-t2i", "export")

_recipe = click.argument("recipe")
_force = click.option("--force", is_flag=True, help="Train U-Nets although the autoencoder does not pass the gate.")
_init_from = click.option(
    "--init-from",
    type=click.Path(path_type=Path),
    metavar="RUN|FILE",
    help="Start networks from the weights of another run, or of a safetensors file: weights alone, step 0.",
)


def open_pipeline(name: str, overrides: tuple[str, ...] = ()) -> "Pipeline":
    """The pipeline of a recipe, checked with its plugins."""
    from ldmkit.cli.recipe import open_recipe
    from ldmkit.pipeline import Pipeline
    from ldmkit.report import Reporter

    recipe, registry = open_recipe(name, overrides)
    reporter = Reporter(quiet=os.environ.get("RANK", "0") != "0")
    return Pipeline(recipe, registry=registry, reporter=reporter)


@click.command()
@_recipe
@click.option("--only", type=click.Choice(STAGE_NAMES), help="Run this stage alone, if it is missing or stale.")
@click.option("--from", "first", type=click.Choice(STAGE_NAMES), help="Run this stage and those behind it.")
@set_option
@click.option("--dry-run", is_flag=True, help="Print what would run, and why, and do nothing.")
@_force
@_init_from
def train(
    recipe: str,
    only: str | None,
    first: str | None,
    overrides: tuple[str, ...],
    dry_run: bool,
    force: bool,
    init_from: Path | None,
) -> None:
    """Run what is missing or stale of RECIPE, from pictures to a bundle; go on with what was interrupted.

    RECIPE is a TOML file or the name of a recipe that comes with ldmkit (`toy-cats`).
    """
    if only and first:
        raise click.UsageError("--only and --from exclude each other")
    stages = (only,) if only else STAGE_NAMES[STAGE_NAMES.index(first) :] if first else STAGE_NAMES
    pipeline = open_pipeline(recipe, overrides)
    if init_from is not None:
        pipeline.start_from(init_from, stages)
    if dry_run:
        _print_plan(pipeline, stages)
    else:
        require(*TRAINING, *(EXPORT if "export" in stages else ()))
        pipeline.run(stages, ignore_gate=force)


def _stage(name: str, text: str) -> click.Command:
    @click.command(name, help=text)
    @_recipe
    @set_option
    @click.option("--again", is_flag=True, help="Run it anew even if it is up to date; the old result is kept aside.")
    def command(
        recipe: str, overrides: tuple[str, ...], again: bool, force: bool = False, init_from: Path | None = None
    ) -> None:
        pipeline = open_pipeline(recipe, overrides)
        if init_from is not None:
            pipeline.start_from(init_from, (name,))
        if name != "caption":  # what a captioner needs is its own affair: captions that exist need nothing
            require(*TRAINING)
        pipeline.run((name,), forced=name if again else None, ignore_gate=force)

    if name.startswith("train"):
        command = _init_from(command)
    return _force(command) if name in ("train-unet", "train-t2i") else command


caption = _stage("caption", "Caption the pictures that have no caption.")
train_vae = _stage("train-vae", "Train the autoencoder.")
encode = _stage("encode", "Cache the latents and the text.")
train_unet = _stage("train-unet", "Train the unconditional U-Net.")
train_t2i = _stage("train-t2i", "Train the text-to-image U-Net.")


@click.command()
@_recipe
@set_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(recipe: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Show which parts of RECIPE's run are done, interrupted, missing or stale, and why."""
    pipeline = open_pipeline(recipe, overrides)
    if as_json:
        rows = [
            {"stage": p.stage, "part": p.part, "state": p.status.state, "reason": p.status.reason}
            for p in _plan(pipeline, STAGE_NAMES)
        ]
        click.echo(json.dumps({"run": str(pipeline.run_dir), "parts": rows}))
    else:
        _print_plan(pipeline, STAGE_NAMES)


def _plan(pipeline: "Pipeline", stages: tuple[str, ...]) -> "list[Planned]":
    if pipeline.recipe.data.source == "folder":
        pipeline.index  # noqa: B018 - raises where nothing will ever bring the pictures
    return pipeline.plan(stages)


def _print_plan(pipeline: "Pipeline", stages: tuple[str, ...]) -> None:
    plan = _plan(pipeline, stages)
    click.echo(f"run {pipeline.run_dir}")
    for planned in plan:
        reason = f"  ({planned.status.reason})" if planned.status.reason else ""
        click.echo(f"  {planned.stage:<11} {planned.part:<9} {planned.status.state}{reason}")
