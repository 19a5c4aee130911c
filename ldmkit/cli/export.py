"""`ldmkit export onnx`."""

from pathlib import Path

import click


@click.group()
def export() -> None:
    """Write a finished run in a form that others can use."""


@export.command()
@click.argument("run", required=False, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the bundle. Default: exports/<run>.")
def onnx(run: Path | None, out: Path | None) -> None:
    """Export RUN as an ONNX bundle: a run's folder, or its name in runs/. Default: the newest finished one."""
    from pydantic import ValidationError

    from ldmkit.cli.missing import EXPORT, TRAINING, require
    from ldmkit.errors import LdmkitError
    from ldmkit.pipeline import Pipeline, newest_finished_run, recipe_of_run
    from ldmkit.plugins import Registry
    from ldmkit.recipe import Recipe
    from ldmkit.report import Reporter

    runs = Path("runs")
    folder = newest_finished_run(runs) if run is None else run
    if not folder.is_dir() and (runs / folder).is_dir():
        folder = runs / folder
    if folder.name in ("", ".."):
        folder = folder.resolve()
    # A run that was copied or renamed goes by its folder's name.
    recipe = recipe_of_run(folder)
    try:
        recipe = Recipe.model_validate({**dict(recipe), "name": folder.name})
    except ValidationError:
        raise LdmkitError(
            f"{folder}: a bundle cannot have this folder's name: letters, digits, '.', '_' and '-' only, 100 at most; "
            "rename the folder"
        ) from None
    for plugin in recipe.plugins:
        if Path(plugin).resolve().is_relative_to(folder.resolve()):
            raise LdmkitError(
                f"{folder / 'recipe.json'}: plugins: {plugin} lies in the run itself, and code that comes along with a "
                "run is not run: move the file elsewhere and correct the path"
            )
    require(*TRAINING, *EXPORT)
    registry = Registry.load([Path(plugin) for plugin in recipe.plugins])
    pipeline = Pipeline(recipe, registry=registry, reporter=Reporter(), runs_dir=folder.parent)
    pipeline.run(("export",), forced="export", bundle_dir=out)
    click.echo(f"bundle: {out or pipeline.bundle_dir}")
