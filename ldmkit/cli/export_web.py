"""`ldmkit export web`: which bundle, and what is said about it."""

from pathlib import Path

from ldmkit import shipped
from ldmkit.errors import LdmkitError
from ldmkit.report import command, tell
from ldmkit.runtime.find import default_bundle
from ldmkit.runtime.manifest import MANIFEST
from ldmkit.web.write import write_page


def write(source: Path | None, *, out: Path, runtime: Path | None, cdn: str | None, webgpu: bool) -> None:
    """Writes the page and says where."""
    folder = default_bundle(Path("exports"), shipped.exports_dir()) if source is None else bundle_of(source)
    tell(f"bundle: {folder}")
    tell(*write_page(folder, out, runtime=runtime, cdn=cdn, webgpu=webgpu))


def bundle_of(source: Path) -> Path:
    """A bundle's folder, or that of the bundle that a run was exported to. Raises LdmkitError where there is none."""
    if (source / MANIFEST).exists():
        return source
    exported = Path("exports") / source.name
    if source.name and (exported / MANIFEST).exists():
        return exported
    if (source / "recipe.json").exists() or (Path("runs") / source / "recipe.json").exists():
        raise LdmkitError(
            f"{source}: this run has no bundle in {exported}: `{command('export', 'onnx', source)}` writes it"
        )
    raise LdmkitError(f"{source} is neither a bundle nor a run: there is no {source / MANIFEST}")
