"""`ldmkit plan`: what a recipe will cost, measured on the first steps of each stage."""

import json
import os
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click

from ldmkit.cli.common import TRAINING, require, set_option
from ldmkit.errors import Interrupted, LdmkitError
from ldmkit.report import duration, tell

if TYPE_CHECKING:
    from ldmkit.plan.estimate import Row

HEADINGS = ("stage", "left", "one takes", "pictures/s", "memory", "disk", "time", "largest batch")


@click.command()
@click.argument("recipe")
@set_option
@click.option("--steps", default=20, show_default=True, type=click.IntRange(min=8), help="Steps that are measured.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def plan(recipe: str, overrides: tuple[str, ...], steps: int, as_json: bool) -> int:
    """Estimate the time, memory and disk that RECIPE still needs, and the largest batch that fits.

    Runs about twenty real steps of every unfinished stage in a temporary folder: the run itself is left as it is.
    Pictures that are not there yet are fetched, as `ldmkit train` would.
    """
    require(*TRAINING)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise LdmkitError("ldmkit plan measures one process; start it without a launcher")
    try:
        with TemporaryDirectory(prefix="ldmkit-plan-") as scratch:
            rows, available, run_dir = _measure(recipe, overrides, steps, Path(scratch))
    except Interrupted:
        raise click.Abort from None
    totals = _totals(rows, available, run_dir)
    if as_json:
        found = {"run": str(run_dir), "stages": [asdict(row) for row in rows], **totals}
        tell(*json.dumps(found, indent=1).split("\n"))
    else:
        _print(rows, totals)
    return int(any(row.state == "cannot run" for row in rows))


def _measure(name: str, overrides: tuple[str, ...], steps: int, scratch: Path) -> "tuple[list[Row], int, Path]":
    """(a row a stage, bytes of memory that the run could have, the run's folder)."""
    from ldmkit.cli.recipe import open_recipe
    from ldmkit.components.registry import Registry
    from ldmkit.data.index_cache import index_file
    from ldmkit.pipeline import Pipeline
    from ldmkit.report import Reporter

    recipe, registry = open_recipe(name, overrides)
    reporter = Reporter(err=True)
    run = Pipeline(recipe, registry=registry, reporter=reporter)
    own = Pipeline(recipe, registry=registry, reporter=reporter, runs_dir=scratch)
    if cache := index_file(run.run_dir):  # what was decoded before need not be again
        own.run_dir.mkdir(parents=True)
        shutil.copy(cache, own.run_dir)
    run.dataset.index = own.index  # the run itself is only looked at

    from ldmkit.plan.planner import Planner
    from ldmkit.run.workspace import Workspace

    silent = Registry(registry.components, registry.failures)  # nobody's hook hears of a measurement
    workspace = Workspace(recipe, silent, own.index, own.run_dir, own.parts(), reporter)
    planner = Planner(workspace, run.parts(), steps=steps)
    return list(planner.rows()), planner.available, run.run_dir


def _totals(rows: "list[Row]", available: int, run_dir: Path) -> dict[str, Any]:
    existing = next(folder for folder in (run_dir.absolute(), *run_dir.absolute().parents) if folder.is_dir())
    return {
        "seconds": sum(row.seconds or 0.0 for row in rows),
        "disk": sum(row.disk for row in rows),
        "transient_disk": max(row.transient_disk for row in rows),
        "free_disk": shutil.disk_usage(existing).free,
        "memory": max(row.memory or 0 for row in rows),
        "available_memory": available,
    }


def _print(rows: "list[Row]", totals: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    # Piped, each stage is one line that grep can find.
    console = Console(width=None if sys.stdout.isatty() else 1000, highlight=False)
    table = Table(box=None, pad_edge=False)
    for number, heading in enumerate(HEADINGS):
        table.add_column(heading, justify="left" if number == 0 else "right", no_wrap=number < 2)
    for row in rows:
        table.add_row(*_cells(row))
    console.print(table)
    for row in rows:
        if row.state == "cannot run":
            tell(f"{row.stage} cannot run: {row.reason}")
    if any(row.largest_batch is not None and row.largest_batch.kind == "estimate" for row in rows):
        tell("~ estimated from the memory of two batch sizes")
    unknown = ", ".join(row.stage for row in rows if row.state != "done" and row.seconds is None)
    disk, transient, free = (_bytes(totals[key]) for key in ("disk", "transient_disk", "free_disk"))
    tell(
        f"estimate: {duration(totals['seconds'])}{' without ' + unknown if unknown else ''}, {disk} of disk "
        f"(free: {free}), peak memory {_bytes(totals['memory'])} (available: {_bytes(totals['available_memory'])})"
    )
    if totals["disk"] + totals["transient_disk"] > totals["free_disk"]:
        tell(
            f"warning: {disk} of disk are needed and {transient} more while a checkpoint is written, and {free} are "
            "free; make room, or lower keep_checkpoints"
        )


def _cells(row: "Row") -> tuple[str, ...]:
    if row.state != "to do":
        return (row.stage, row.state)
    batch = row.largest_batch
    return (
        row.stage,
        f"{row.left} {row.unit}",
        "" if row.unit_seconds is None else duration(row.unit_seconds),
        "" if row.pictures_per_second is None else f"{row.pictures_per_second:.3g}",
        "" if row.memory is None else _bytes(row.memory),
        _bytes(row.disk) if row.disk else "",
        "not measured" if row.seconds is None else duration(row.seconds),
        "" if batch is None else f"{'~' if batch.kind == 'estimate' else '>= '}{batch.size}" if batch.size else "none",
    )


def _bytes(count: int) -> str:
    """`1.2 GB`; three digits at most."""
    for unit, size in (("GB", 10**9), ("MB", 10**6)):
        if count >= size:
            return f"{count / size:.3g} {unit}" if count < 1000 * size else f"{count / size:.0f} {unit}"
    return f"{count / 1000:.0f} kB"
