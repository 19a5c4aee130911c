"""`ldmkit data`: draw the toy set, check a folder of pictures."""

import json
from pathlib import Path

import click

from ldmkit.cli.data_export import export
from ldmkit.report import tell


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
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def check(folder: Path, as_json: bool) -> None:
    """Decode every picture of FOLDER; list those that cannot be used, with the reason, and remarks on the others."""
    from collections import Counter

    from ldmkit.data.pictures import scan
    from ldmkit.report import Reporter

    with Reporter(err=True).counter("reading pictures") as progress:
        index = scan(folder, max_bad=1.0, progress=progress)
    sizes = Counter(f"{entry.width}x{entry.height}" for entry in index.entries)
    if as_json:
        rejected = [{"file": key, "reason": reason} for key, reason in index.rejected]
        found = {"pictures": len(index), "sizes": sizes, "rejected": rejected, "unread": index.unread}
        tell(json.dumps({**found, "remarks": index.remarks()}))
        return
    tell(f"{len(index)} pictures; sizes: {', '.join(f'{s} ({n})' for s, n in sizes.most_common(5))}")
    tell(*index.summary())


data.add_command(export)
