"""`ldmkit data export`: the pictures and captions of a recipe, for others' trainers."""

from pathlib import Path

import click

from ldmkit.cli.common import set_option
from ldmkit.report import tell


@click.command()
@click.argument("recipe")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--as", "form", type=click.Choice(["imagefolder", "kohya", "webdataset"]), required=True, help="Layout.")
@set_option
def export(recipe: str, folder: Path, form: str, overrides: tuple[str, ...]) -> None:
    """Write the pictures of RECIPE and their captions to the new FOLDER.

    The captions are those of its run, where it has captions, else those beside the pictures.
    """
    from ldmkit.cli.recipe import open_recipe
    from ldmkit.data.captions import read_captions
    from ldmkit.data.export_set import export_set
    from ldmkit.pipeline import Pipeline
    from ldmkit.report import Reporter

    opened, registry = open_recipe(recipe, overrides)
    reporter = Reporter(err=True)
    pipeline = Pipeline(opened, registry=registry, reporter=reporter)
    written = pipeline.run_dir / "captions" / "captions.jsonl"
    if written.is_file():
        captions = read_captions(written)
    else:
        sidecar = registry.build("captioner", {"use": "sidecar"}, where="[caption]")
        pictures = pipeline.index.pictures()
        texts = sidecar.caption(pictures)
        captions = {picture.key: text for picture, text in zip(pictures, texts, strict=True) if text is not None}
    with reporter.counter("writing pictures") as progress:
        export_set(pipeline.index, captions, folder, form, name=opened.name, progress=progress)
    found = sum(entry.key in captions for entry in pipeline.index.entries)
    tell(f"{folder}: {len(pipeline.index)} pictures, {found} with a caption")
