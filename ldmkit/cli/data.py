"""`ldmkit data`: draw the toy set, check a folder of pictures."""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import click

from ldmkit.cli.common import set_option
from ldmkit.cli.data_export import export
from ldmkit.report import tell

if TYPE_CHECKING:
    from ldmkit.components.registry import Registry
    from ldmkit.data.pictures import PictureIndex
    from ldmkit.recipe import Recipe


@click.group()
def data() -> None:
    """Make or check a folder of pictures."""


@data.command()
@click.argument("name", type=click.Choice(["toy-cats"]))
@click.option("--out", type=click.Path(path_type=Path), help="Folder to write. Default: data/NAME.")
@click.option("-n", "num_pictures", type=click.IntRange(1, 99_999), default=5000, show_default=True)
@click.option("--size", type=click.IntRange(16, 1024), default=64, show_default=True, help="Pixels, width and height.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
def make(name: str, out: Path | None, num_pictures: int, size: int, seed: int) -> None:
    """Draw the set NAME: cat faces with known attributes, and captions that name them."""
    from ldmkit.data.toy_cats import make_toy_cats
    from ldmkit.report import Reporter

    folder = out or Path("data") / name
    with Reporter(err=True).counter(f"drawing {name}") as progress:
        make_toy_cats(folder, num_pictures=num_pictures, size=size, seed=seed, progress=progress)
    tell(str(folder))


@data.command()
@click.argument("source", metavar="FOLDER|RECIPE")
@set_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--files", is_flag=True, help="Print a line for each file, and not only how many there are of a kind.")
@click.option(
    "--quarantine",
    "to",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Move what cannot be used, and what the list to exclude names, into this folder, with captions.",
)
def check(source: str, overrides: tuple[str, ...], as_json: bool, files: bool, to: Path | None) -> None:
    """Decode every picture of FOLDER, or of RECIPE's; say what is wrong with them and with their captions, by kind.

    Exit code 1 where more than data.max_bad of them cannot be used. Beside what is printed there is a page with the
    worst of each kind, and a list of pictures to exclude; what was read need not be decoded again by `train`.
    """
    from ldmkit.atomic import check_writable
    from ldmkit.data.check import as_json as json_of
    from ldmkit.data.check import check_pictures
    from ldmkit.data.check_captions import check_captions
    from ldmkit.data.check_page import write_page
    from ldmkit.data.checked import checked_folder, quarantine, require_movable, scan_data, write_excluded
    from ldmkit.data.pictures import require_usable
    from ldmkit.report import Reporter

    recipe, registry = _open(source, overrides)
    if to is not None:
        require_movable(Path(recipe.data.path), to)
    out = checked_folder(recipe.data.path)
    check_writable(out)
    reporter = Reporter(err=True)
    with reporter.counter("reading pictures") as progress:
        index = scan_data(recipe.data, checking=True, progress=progress)
    found = check_pictures(index, recipe.data, recipe.seed)
    captions = check_captions(found, recipe, registry)
    reasons, listed, page = found.dispensable(), out / "exclude.jsonl", out / "page.html"
    write_excluded(listed, reasons)
    with reporter.counter("drawing the page") as progress:
        write_page(page, found, recipe.data, captions, progress)
    if as_json:
        rejected = [{"file": key, "reason": reason} for key, reason in index.rejected]
        files_found = {"pictures": len(index), "sizes": _sizes(index), "rejected": rejected, "unread": index.unread}
        written = {"page": str(page), "exclude": str(listed)}
        tell(json.dumps({**files_found, "remarks": index.remarks(), **json_of(found), **written}))
    else:
        sizes = ", ".join(f"{size} ({number})" for size, number in _sizes(index).most_common(5))
        tell(f"{len(index)} pictures; sizes: {sizes}" if len(index) else "no picture that can be used", *found.facts)
        tell(*found.lines(every=files), *index.summary(findings=False))
        tell(f"the worst of each kind, and how they are cropped: {page}")
        if reasons:
            tell(f"{len(reasons)} that one could do without: {listed}; --set data.exclude={listed} leaves them out")
    if to is not None:
        moving = dict(index.rejected) | reasons
        tell(f"{quarantine(index.files, moving, to, _captions_of(index, moving))} files moved to {to}", err=as_json)
    require_usable(index, recipe.data.max_bad)


def _open(source: str, overrides: tuple[str, ...]) -> "tuple[Recipe, Registry]":
    """The recipe, or for a folder one of defaults."""
    from copy import deepcopy

    from ldmkit import shipped
    from ldmkit.cli.recipe import open_recipe
    from ldmkit.components.registry import Registry
    from ldmkit.recipe import RecipeFile
    from ldmkit.recipe.template import START

    with_ldmkit = shipped.recipes_dir()
    if not Path(source).is_dir() and (
        source.endswith(".toml") or (with_ldmkit and (with_ldmkit / f"{source}.toml").is_file())
    ):
        return open_recipe(source, overrides)
    registry = Registry.load()
    file = RecipeFile(Path(source), {**deepcopy(START), "data": {"path": source}, "name": "check"})
    for override in overrides:
        file.apply(override)
    return file.validate(registry), registry


def _sizes(index: "PictureIndex") -> Counter[str]:
    return Counter(f"{entry.width}x{entry.height}" for entry in index.entries)


def _captions_of(index: "PictureIndex", moving: Mapping[str, str]) -> dict[str, list[str]]:
    """By key the caption files that lie beside it and beside no picture that stays."""
    staying = {str(PurePosixPath(entry.key).with_suffix("")) for entry in index.entries if entry.key not in moving}
    beside: dict[str, list[str]] = {}
    for key in moving:
        stem = str(PurePosixPath(key).with_suffix(""))
        own = {stem} - staying
        names = [f"{base}{ending}" for base in (key, *own) for ending in (".txt", ".caption")]
        names += [f"{base}.json" for base in own]
        beside[key] = [name for name in names if (index.folder / name).is_file()]
    return beside


data.add_command(export)
