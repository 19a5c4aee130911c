"""The user's cache: what is made once of a file that cannot be read in place. It may be deleted at any time."""

import hashlib
import os
import sys
from collections.abc import Callable
from pathlib import Path

from ldmkit.atomic import no_room


def cache_folder(name: str) -> Path:
    """$LDMKIT_CACHE/name, else where the system keeps caches."""
    if given := os.environ.get("LDMKIT_CACHE"):
        return Path(given) / name
    if sys.platform == "win32":
        root = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        root = Path.home() / "Library" / "Caches"
    else:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "ldmkit" / name


def made_once(name: str, source: Path, make: Callable[[Path], None]) -> Path:
    """The file that `make` writes of `source`, from the cache as long as the source's path, size and time are the same.

    It appears whole or not at all; of several processes the first makes it and the others wait.
    """
    from filelock import FileLock

    status = source.stat()
    identity = f"{source.resolve()}\0{status.st_size}\0{status.st_mtime_ns}"
    folder = cache_folder(name)
    made = folder / f"{hashlib.sha256(os.fsencode(identity)).hexdigest()[:32]}.tar"
    if made.is_file():
        return made
    with no_room(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(made.with_suffix(".lock")):
            if not made.is_file():
                partial = made.with_suffix(".partial")
                try:
                    make(partial)
                    partial.replace(made)
                finally:
                    partial.unlink(missing_ok=True)
    return made
