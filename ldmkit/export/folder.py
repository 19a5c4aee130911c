"""The folder of a bundle: it changes from the old one to the new one as a whole, whoever is killed meanwhile."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ldmkit.atomic import fsync
from ldmkit.errors import LdmkitError
from ldmkit.run.lock import locked
from ldmkit.runtime.manifest import FILES, MANIFEST


@contextmanager
def new_bundle(target: Path) -> Iterator[Path]:
    """A folder to write a bundle to, which takes the place of `target` when the block ends without an exception.

    It lies beside `target`, in `.NAME.export/`, of which one process at a time is the master: what a killed one left
    there is removed, and an earlier bundle that it had only just moved away is put back.

    Raises LdmkitError where `target` holds anything that is no part of a bundle, or another process writes it.
    """
    check_replaceable(target)
    work = target.parent / f".{target.name}.export"
    new, old = work / "new", work / "old"
    with locked(work):
        _settle(target, work)
        try:
            new.mkdir()
            yield new
            for path in (*new.iterdir(), new):
                fsync(path)
            if target.exists():
                target.rename(old)
            new.rename(target)
            fsync(target.parent)
        finally:
            _settle(target, work)
            with suppress(OSError):  # Windows keeps the lock's file while it is open
                (work / ".lock").unlink()
                work.rmdir()


def _settle(target: Path, work: Path) -> None:
    """Puts an earlier bundle back where none took its place, and removes all else that an export left."""
    if (work / "old").exists() and not target.exists():
        (work / "old").rename(target)
    for left in work.iterdir():
        if left.name != ".lock":
            shutil.rmtree(left, ignore_errors=True)


def check_replaceable(folder: Path) -> None:
    """Raises LdmkitError unless `folder` is new, empty, or holds a bundle's files and nothing else."""
    if not folder.exists() and not folder.is_symlink():
        return
    if folder.is_symlink() or not folder.is_dir():
        raise LdmkitError(f"{folder} is not a folder: choose another place for the bundle with --out")
    strange = sorted(entry.name for entry in folder.iterdir() if entry.name not in (*FILES, MANIFEST))
    if strange:
        raise LdmkitError(
            f"{folder} holds {strange[0]}, which is no part of a bundle and would be lost: move it away, or choose "
            "another place for the bundle with --out"
        )
