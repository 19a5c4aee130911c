"""`ldmkit export web`: which bundle, and what is said about it."""

from pathlib import Path

import click

from ldmkit import shipped
from ldmkit.errors import LdmkitError
from ldmkit.runtime.find import default_bundle
from ldmkit.runtime.manifest import MANIFEST
from ldmkit.web.write import write_page


def write(source: Path | None, *, out: Path, runtime: Path | None, cdn: str | None, webgpu: bool) -> None:
    """Writes the page and says where."""
    folder = default_bundle(Path("exports"), shipped.exports_dir()) if source is None else bundle_of(source)
    click.echo(f"bundle: {folder}")
    for line in write_page(folder, out, runtime=runtime, cdn=cdn, webgpu=webgpu):
        click.echo(line)


def bundle_of(source: Path) -> Path:
    """A bundle's folder, or that of the bundle that a run was exported to. Raises LdmkitError where there is none."""
    if (source / MANIFEST).exists():
        return source
    exported = Path("exports") / source.name
    if source.name and (exported / MANIFEST).exists():
        return exported
    if (source / "recipe.json").exists() or (Path("runs") / source / "recipe.json").exists():
        raise LdmkitError(f"{source}: this run has no bundle in {exported}: `ldmkit export onnx {source}` writes it")
    raise LdmkitError(f"{source} is neither a bundle nor a run: there is no {source / MANIFEST}")
