"""`ldmkit export` and `ldmkit convert`: bundles and weights, and the check of a bundle."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ldmkit.cli.common import checkpoint_option, provider_option
from ldmkit.report import tell
from ldmkit.signals import ending_soon

if TYPE_CHECKING:
    from ldmkit.components.registry import Registry
    from ldmkit.export.torch_backend import TorchBackend
    from ldmkit.recipe import Recipe


@click.group()
def export() -> None:
    """Write a finished run in a form that others can use."""


_run = click.argument("run", required=False, type=click.Path(path_type=Path))


@export.command()
@_run
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the bundle. Default: exports/<run>.")
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16-weights", "fp16"]),
    help="Of the graphs; fp16-weights: half the size at no cost of time; fp16: for GPUs. Default: the recipe's.",
)
@click.option("--with-encoder", is_flag=True, help="Add the encoder's graph, by which a bundle draws from a picture.")
@checkpoint_option
def onnx(run: Path | None, out: Path | None, precision: str | None, with_encoder: bool, checkpoint: str | None) -> None:
    """Export RUN as an ONNX bundle: a run's folder, or its name in runs/. Default: the newest finished one."""
    from ldmkit.cli.common import EXPORT, TRAINING
    from ldmkit.pipeline import Pipeline
    from ldmkit.report import Reporter

    if checkpoint is not None and out is None:
        raise click.UsageError(f"--checkpoint {checkpoint} requires --out: the run's own bundle is of its last step")
    folder, recipe, registry = open_run(run, *TRAINING, *EXPORT)
    chosen: dict[str, Any] = {"precision": precision} if precision else {}
    chosen |= {"encoder": True} if with_encoder else {}
    recipe = recipe.model_copy(update={"export": recipe.export.model_copy(update=chosen)})
    # What these options ask for holds for this once: the run's recipe stays what it is.
    pipeline = Pipeline(recipe, registry=registry, reporter=Reporter(), runs_dir=folder.parent, keeps_recipe=False)
    pipeline.dataset.remembers, pipeline.checkpoint = True, checkpoint
    pipeline.run(("export",), forced="export", bundle_dir=out)
    tell(f"bundle: {out or pipeline.bundle_dir}")


@export.command()
@_run
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write, new or empty.")
@checkpoint_option
def safetensors(run: Path | None, out: Path, checkpoint: str | None) -> None:
    """Export RUN's averaged weights for further use in PyTorch: safetensors, and a config.json that rebuilds them."""
    folder, recipe, registry = open_run(run, "torch")
    from ldmkit.export.tensors import export_tensors

    for line in export_tensors(recipe, registry, folder, out, checkpoint=checkpoint):
        tell(line)


@export.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@provider_option("What draws the golden pictures.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@ending_soon()
def verify(bundle: Path, provider: str, as_json: bool) -> None:
    """Check the bundle in folder BUNDLE: hashes, ONNX's checker, shapes, and the pictures that it was exported with."""
    import json
    from dataclasses import asdict

    from ldmkit.errors import LdmkitError
    from ldmkit.runtime.verify import verify

    checks = []
    for check in verify(bundle, provider=provider):
        checks.append(check)
        if not as_json:
            tell(f"{check.state:<8} {check.name}: {check.words}")
    if as_json:
        tell(json.dumps([asdict(check) for check in checks]))
    failed = [check.name for check in checks if check.state == "failed"]
    if failed:
        raise LdmkitError(f"{bundle}: {len(failed)} of {len(checks)} checks failed: {', '.join(failed)}")


@export.command()
@click.argument("source", metavar="[RUN|BUNDLE]", required=False, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write, new or empty.")
@click.option(
    "--runtime", type=click.Path(path_type=Path), help="Folder with the npm archives, instead of fetching them."
)
@click.option("--cdn", help="Address of npm packages, as https://HOST/npm; visitors get the runtime there.")
@click.option("--webgpu", is_flag=True, help="Add the runtime for GPUs, 27 MB more, used where it proves itself.")
def web(source: Path | None, **options: Any) -> None:
    """Write a page of static files on which a bundle draws in the visitor's browser. Default: the newest bundle."""
    from ldmkit.cli.export_web import write

    write(source, **options)


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), default=Path("converted"), show_default=True)
def convert(checkpoint: Path, out: Path) -> None:
    """Convert a published .pth CHECKPOINT of the original system to safetensors."""
    from ldmkit.cli.common import require

    require("torch")
    from ldmkit.models.convert import convert_checkpoint

    for path in convert_checkpoint(checkpoint, out):
        tell(str(path))


def torch_backend(run: Path, checkpoint: str | None = None) -> "TorchBackend":
    """What `ldmkit generate --backend torch` draws with. Raises LdmkitError where `run` is none, or is not finished."""
    folder, recipe, registry = open_run(run, "torch")
    from ldmkit.export.torch_backend import TorchBackend

    return TorchBackend(recipe, registry, folder, checkpoint=checkpoint)


def open_run(run: Path | None, *packages: str) -> "tuple[Path, Recipe, Registry]":
    """The folder of a run (given by itself, by its name in `runs`, or else the newest), its recipe and its plugins.

    Raises LdmkitError where it is no run, brings code along, or one of these packages is not installed.
    """
    from pydantic import ValidationError

    from ldmkit.cli.common import require
    from ldmkit.components.registry import Registry
    from ldmkit.errors import LdmkitError
    from ldmkit.recipe import Recipe
    from ldmkit.run.folder import newest_finished_run, recipe_of_run

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
    plugins = [Path(plugin) for plugin in recipe.plugins]
    for plugin in plugins:
        if plugin.resolve().is_relative_to(folder.resolve()):
            raise LdmkitError(
                f"{folder / 'recipe.json'}: plugins: {plugin} lies in the run itself, and code that comes along with a "
                "run is not run: move the file elsewhere and correct the path"
            )
    require(*packages)
    for plugin in plugins:
        tell(f"{folder / 'recipe.json'}: runs the plugin {plugin}", err=True)  # before it does
    return folder, recipe, Registry.load(plugins)
