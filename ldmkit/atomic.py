"""Files and folders that appear whole or not at all."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ldmkit.errors import LdmkitError

_UNFINISHED = ".partial"


def write_atomic(path: Path, data: bytes) -> None:
    """Writes a file: temporary one in the same folder, fsync, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}{_UNFINISHED}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """`write_atomic` of indented JSON."""
    write_atomic(path, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())


@contextmanager
def new_folder(folder: Path, *, durable: bool = False) -> Iterator[Path]:
    """A temporary folder beside `folder` that takes its name when the block ends without an exception.

    `durable` puts every file on the disk before the folder appears, so that a power cut cannot leave it half full;
    it costs a disk access a file. Raises LdmkitError where `folder` exists and is not an empty folder, or cannot be
    written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise LdmkitError(f"{folder} already exists and is not an empty folder: remove it or name another one.")
    partial = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=_UNFINISHED, dir=folder.parent))
        yield partial
        partial.chmod(0o755)  # mkdtemp's 0700 would shut others out of a shared data folder
        if durable:
            for path in [*partial.rglob("*"), partial]:
                _fsync(path)
        if folder.exists():
            folder.rmdir()  # Windows renames onto nothing that exists
        partial.rename(folder)
        if durable:
            _fsync(folder.parent)
    except OSError as error:
        # Not always one of ours: whoever fills the folder reads other files.
        which = f"{error.filename}: " if error.filename is not None else ""
        raise LdmkitError(f"{folder} cannot be written: {which}{error.strerror or error}.") from error
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Removes what a killed process left unfinished in `folder`; nobody else may be writing there."""
    for left in folder.glob(f".*{_UNFINISHED}"):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def _fsync(path: Path) -> None:
    if path.is_dir() and not hasattr(os, "O_DIRECTORY"):  # Windows opens no folder
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
