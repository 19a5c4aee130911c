"""Where the recipes and the bundle that come with ldmkit lie."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def _folder(name: str) -> Path | None:
    """In a wheel they lie inside the package, in a clone beside it."""
    for folder in (_PACKAGE / "shipped" / name, _PACKAGE.parent / name):
        if folder.is_dir():
            return folder
    return None


def recipes_dir() -> Path | None:
    """Folder of the shipped recipes."""
    return _folder("recipes")


def exports_dir() -> Path | None:
    """Folder that holds the shipped bundle."""
    return _folder("exports")
