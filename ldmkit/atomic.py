"""Files and folders that appear whole or not at all, and what a full disk is answered with."""

import errno
import glob
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ldmkit.errors import LdmkitError

_UNFINISHED = ".partial"
_CHUNK = 1 << 24
"""bytes of one write: some systems refuse 2 GiB at once"""
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


def write_file(path: Path, data: bytes | memoryview) -> None:
    """Writes a file and waits until the disk has it; a kill may leave a part of it."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0), 0o666)
    try:
        left = memoryview(data)
        while left:
            left = left[os.write(handle, left[:_CHUNK]) :]
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomic(path: Path, data: bytes | memoryview) -> None:
    """Writes a file: temporary one in the same folder, fsync, rename, fsync the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}{_UNFINISHED}")
    try:
        write_file(temporary, data)
        temporary.replace(path)
        fsync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """`write_atomic` of indented JSON."""
    write_atomic(path, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """What `write_json` writes."""
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()


@contextmanager
def new_folder(folder: Path, *, durable: bool = False) -> Iterator[Path]:
    """A temporary folder beside `folder` that takes its name when the block ends without an exception.

    `durable` puts every file on the disk before the folder appears, so that a power cut cannot leave it half full;
    it costs a disk access a file. Raises LdmkitError where `folder` exists and is not an empty folder, or cannot be
    written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise LdmkitError(f"{folder} already exists and is not an empty folder: remove it or name another one")
    partial = handle = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        for left in folder.parent.glob(f".{glob.escape(folder.name)}.*{_UNFINISHED}"):
            if (dead := _claim(left)) is not None:  # a living process holds its own
                shutil.rmtree(left, ignore_errors=True)
                _let_go(dead)
        while partial is None or not partial.exists():  # gone where another process swept it before it was held
            partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=_UNFINISHED, dir=folder.parent))
            handle = _claim(partial)
        yield partial
        partial.chmod(0o755)  # mkdtemp's 0700 would shut others out of a shared data folder
        if durable:
            for path in [*partial.rglob("*"), partial]:
                fsync(path)
        if folder.exists():
            folder.rmdir()  # Windows renames onto nothing that exists
        partial.rename(folder)
        if durable:
            fsync(folder.parent)
    except OSError as error:
        # Not always one of ours: whoever fills the folder reads other files.
        which = f"{error.filename}: " if error.filename is not None else ""
        raise LdmkitError(f"{folder} cannot be written: {which}{error.strerror or error}") from error
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)
        _let_go(handle)


def _let_go(handle: int | None) -> None:
    if handle is not None:
        with suppress(OSError):  # nothing was written through it
            os.close(handle)


def _claim(folder: Path) -> int | None:
    """A handle that holds the folder until it is closed or the process dies; None where another process does.

    Windows, which locks no folder, gives none either: there a killed process's folder stays.
    """
    try:
        import fcntl
    except ImportError:
        return None
    handle = None
    try:
        handle = os.open(folder, os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        _let_go(handle)
        return None
    return handle


def remove_folder(folder: Path) -> None:
    """Removes a folder: whoever is killed meanwhile leaves none that is half there under its name."""
    leaving = folder.with_name(f".{folder.name}{_UNFINISHED}")
    shutil.rmtree(leaving, ignore_errors=True)
    folder.rename(leaving)
    shutil.rmtree(leaving)


def sweep(folder: Path) -> None:
    """Removes what a killed process left unfinished below `folder`; nobody else may be writing there."""
    for left in list(folder.rglob(f".*{_UNFINISHED}")):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def fsync(path: Path) -> None:
    """Waits until the disk has the file, or the names in the folder."""
    if path.is_dir() and not hasattr(os, "O_DIRECTORY"):  # Windows opens no folder
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def check_writable(folder: Path) -> None:
    """Raises LdmkitError where nothing can be written to the folder, or where it, not there yet, cannot be made."""
    existing = next(each for each in (folder, *folder.absolute().parents) if each.exists() or each.is_symlink())
    try:
        handle, name = tempfile.mkstemp(prefix=".writable.", suffix=_UNFINISHED, dir=existing)
        os.close(handle)
        Path(name).unlink()
    except OSError as error:
        raise LdmkitError(f"{folder}: cannot be written: {error.strerror or error}") from None


@contextmanager
def no_room(folder: Path) -> Iterator[None]:
    """Raises LdmkitError where the disk is full, gone or failing within the block; other errors go through."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        which = folder if error.filename is None else error.filename
        raise LdmkitError(
            f"{which}: cannot be written: {error.strerror}. What was saved before is whole: "
            "make room and run the same command again"
        ) from error
