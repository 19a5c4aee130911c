"""Large arrays that are written shard by shard: a writer that is killed loses the shard that it was at, no more."""

import io
import math
import os
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np

from ldmkit.errors import LdmkitError
from ldmkit.report import megabytes
from ldmkit.run.files import read_sealed, write_sealed

PROGRESS = "progress.json"


class ShardedArrays:
    """`NAME.npy` files that grow row by row, all by the same number of rows, until they are whole.

    Each file says from the start how large it will be, so that half a file opens for nobody. `progress.json` counts
    the rows that are safe and keeps whatever belongs to them; it is replaced once their bytes are on the disk. A next
    writer cuts the files back to it. Written and not memory-mapped: a full disk is then an error and no SIGBUS.

    Raises LdmkitError where the disk is too full for what is still to come.
    """

    def __init__(
        self, folder: Path, arrays: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]], *, joins: bool = False
    ) -> None:
        """`arrays`: name -> (dtype, shape once whole); the first entries of the shapes are the same. `joins`: another
        process has opened them to write, and this one writes rows of its own."""
        self.folder = folder
        self.done = 0
        self.memory: dict[str, Any] = {}
        self._dtypes = {name: dtype for name, (dtype, _) in arrays.items()}
        self._files: dict[str, IO[bytes]] = {}
        headers = {name: _header(dtype, shape) for name, (dtype, shape) in arrays.items()}
        row_bytes = {name: dtype.itemsize * math.prod(shape[1:]) for name, (dtype, shape) in arrays.items()}
        done, memory = read_progress(folder)
        if done and all(_holds(folder / f"{n}.npy", h, len(h) + done * row_bytes[n]) for n, h in headers.items()):
            self.done, self.memory = done, memory
        elif done and not joins:
            write_progress(folder, 0, {})  # for whoever joins
        self._places = {name: (len(header), row_bytes[name]) for name, header in headers.items()}
        left = 0 if joins else sum((shape[0] - self.done) * row_bytes[name] for name, (_, shape) in arrays.items())
        if (free := shutil.disk_usage(folder).free) < (least := left * 1.05 + 2**20):
            raise LdmkitError(
                f"{folder}: {megabytes(least)} are needed and {megabytes(free)} are free; "
                "make room and run the same command again"
            )
        for name, header in headers.items():
            file = self._files[name] = (folder / f"{name}.npy").open("r+b" if self.done or joins else "wb")
            if joins:
                continue
            if not self.done:
                file.write(header)
            file.truncate(file.seek(len(header) + self.done * row_bytes[name]))
            file.flush()

    def seek(self, row: int) -> None:
        """What is appended next begins at this row."""
        for name, (start, row_bytes) in self._places.items():
            self._files[name].seek(start + row * row_bytes)
        self.done = row

    def append(self, **rows: np.ndarray) -> None:
        """The next rows of every array, as many of each; cast to its dtype."""
        (count,) = {len(array) for array in rows.values()}
        for name, array in rows.items():
            self._files[name].write(np.ascontiguousarray(array, dtype=self._dtypes[name]).data)
        self.done += count

    def save(self, memory: Mapping[str, Any]) -> None:
        """Ends a shard: what was appended so far is safe, `memory` (JSON values) with it."""
        self.sync()
        self.memory = dict(memory)
        write_progress(self.folder, self.done, self.memory)

    def sync(self) -> None:
        """Brings what was appended to the disk."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for file in self._files.values():
            file.close()


def write_progress(folder: Path, done: int, memory: Mapping[str, Any]) -> None:
    """So many rows are safe, and this belongs to them."""
    write_sealed(folder / PROGRESS, {"done": done, "memory": memory})


def read_progress(folder: Path) -> tuple[int, dict[str, Any]]:
    """(rows that are safe, what belongs to them); none where the file is not there, or not what was written."""
    try:
        progress = read_sealed(folder / PROGRESS)
        if progress.keys() == {"done", "memory"} and type(progress["done"]) is int and progress["done"] >= 0:
            return progress["done"], dict(progress["memory"])
    except FileNotFoundError:
        return 0, {}
    except (OSError, ValueError, TypeError):
        pass
    warnings.warn(f"{folder / PROGRESS} is damaged: what was cached is computed again", stacklevel=2)
    return 0, {}


def _header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    )
    return buffer.getvalue()


def _holds(path: Path, header: bytes, size: int) -> bool:
    """Whether the file begins with these bytes and is at least `size` bytes long."""
    if not path.is_file() or path.stat().st_size < size:
        return False
    with path.open("rb") as file:
        return file.read(len(header)) == header
