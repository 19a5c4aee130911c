"""Finds the bundle to draw from when the user names none."""

from pathlib import Path

from ldmkit.errors import LdmkitError
from ldmkit.runtime.manifest import MANIFEST, Manifest, read_manifest


def bundles_in(folder: Path) -> list[tuple[Path, Manifest]]:
    """The bundles among the folders in `folder`, newest first by the manifest's date; anything else is passed over."""
    found = []
    for path in sorted(folder.glob(f"*/{MANIFEST}")):
        if path.parent.name.startswith("."):  # not yet whole, or never to be
            continue
        try:
            found.append((path.parent, read_manifest(path.parent)[0]))
        except LdmkitError:
            continue
    return sorted(found, key=lambda entry: entry[1].created, reverse=True)


def default_bundle(*folders: Path | None) -> Path:
    """The newest bundle of the first of `folders` that has one. Raises LdmkitError where none has."""
    for folder in folders:
        if folder is not None and (found := bundles_in(folder)):
            return found[0][0]
    places = ", ".join(str(folder) for folder in folders if folder is not None)
    raise LdmkitError(
        f"there is no bundle in {places}: `ldmkit export onnx` writes one there, or name one with --bundle DIR"
    )
