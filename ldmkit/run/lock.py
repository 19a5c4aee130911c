"""The lock of a run's folder, which one process writes to at a time, and the folder's end where nothing could begin."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ldmkit.data.index_cache import index_file
from ldmkit.errors import LdmkitError


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the run's lock for the block; a process that dies, however it does, lets go of it.

    Raises LdmkitError where another living process has it, or the folder cannot be written.
    """
    from filelock import FileLock, Timeout  # 60 ms, which who only looks at a run can do without

    file = folder / ".lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(file, timeout=0, on_acquired=_write_process).acquire()
    except Timeout:
        time.sleep(0.2)  # the other one may be about to write its number
        holder = file.read_text().strip() if os.access(file, os.R_OK) else ""
        raise LdmkitError(
            f"{folder}: in use by process {holder or 'unknown'}; wait until it is done, or end it"
        ) from None
    except OSError as error:
        raise LdmkitError(f"{folder}: cannot be written: {error.strerror or error}") from None
    with lock:
        yield


@contextmanager
def leaving_nothing(folder: Path, begun: bool) -> Iterator[None]:
    """Where a run's first command cannot begin, its folder goes again, unless pictures were looked at."""
    try:
        yield
    except LdmkitError:
        if not begun and index_file(folder) is None:
            with suppress(OSError):  # Windows keeps the lock's file
                (folder / ".lock").unlink()
                folder.rmdir()
                folder.parent.rmdir()  # only where nothing else lies in it
        raise


def _write_process(handle: int) -> None:
    os.ftruncate(handle, 0)
    os.write(handle, str(os.getpid()).encode())
