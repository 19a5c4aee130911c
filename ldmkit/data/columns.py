"""Tables in columns: files of safetensors with their own SHA-256, mapped from the disk."""

import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, SupportsIndex, TypeVar, overload

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ldmkit.atomic import write_atomic

T = TypeVar("T")
Positions = NDArray[np.int64]
Bytes = NDArray[np.uint8]
_AT_ONCE = 2**14


class Names:
    """Texts as one run of UTF-8 with a NUL behind each; bytes that are no UTF-8 are surrogates (PEP 383)."""

    def __init__(self, blob: Bytes) -> None:
        self.blob = blob
        self.ends: Positions = np.flatnonzero(blob == 0)
        """(N,) where each one's NUL lies"""

    @classmethod
    def of(cls, names: Iterable[str]) -> "Names":
        """Raises UnicodeEncodeError for a surrogate that stands for no byte."""
        return cls.joined(name.encode("utf-8", "surrogateescape") for name in names)

    @classmethod
    def joined(cls, names: Iterable[bytes]) -> "Names":
        """Of the bytes of each."""
        return cls(np.frombuffer(b"".join(name + b"\0" for name in names), np.uint8))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: SupportsIndex) -> str:
        i = range(len(self))[index]
        return self.blob[self._begin(i) : self.ends[i]].tobytes().decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        return (name.decode("utf-8", "surrogateescape") for name in self.raw())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Names) and np.array_equal(self.blob, other.blob)

    def _begin(self, i: int) -> int:
        return int(self.ends[i - 1]) + 1 if i else 0

    def parts(self) -> Iterator["Names"]:
        """The same, a few thousand at a time: what is made of them for a moment shall not be made of millions."""
        for i in range(0, len(self), _AT_ONCE):
            yield Names(self.blob[self._begin(i) : self.ends[i:][:_AT_ONCE][-1] + 1])

    def raw(self) -> Iterator[bytes]:
        """The bytes of each."""
        for part in self.parts():
            yield from part.blob[:-1].tobytes().split(b"\0")

    def where(self, others: "Names") -> Positions:
        """(len(others),) where each of them is among these, -1 for nowhere."""
        if self == others:
            return np.arange(len(self))
        if not len(self):
            return np.full(len(others), -1)
        places = {name: i for i, name in enumerate(self.raw())}
        return np.fromiter((places.get(name, -1) for name in others.raw()), np.int64, len(others))

    def order(self) -> Positions:
        """(N,) how they are sorted, as `sorted` does; of those that are the same the earlier one comes first."""
        if all(before <= after for before, after in pairwise(self)):
            return np.arange(len(self))
        every = list(self)
        return np.array(sorted(range(len(every)), key=every.__getitem__), dtype=np.int64)

    def end_in(self, endings: Collection[str]) -> NDArray[np.bool_]:
        """(N,) whether each has one of these endings of at most 8 letters, in upper or lower case."""
        lower = np.frombuffer(bytes(8) + self.blob.tobytes().lower(), np.uint8)
        found, last = np.zeros(len(self), dtype=bool), np.zeros(len(self), dtype=np.uint64)
        for length in range(1, 9):
            last = last << np.uint64(8) | lower[self.ends + (8 - length)]
            found |= np.isin(last, [int.from_bytes(each.encode(), "little") for each in endings if len(each) == length])
        return found

    def take(self, positions: Positions) -> "Names":
        """Those at `positions`, in that order."""
        if np.array_equal(positions, np.arange(len(self))):
            return self
        every = list(self.raw())
        return Names.joined(every[i] for i in positions)

    def prefixed(self, prefix: str) -> "Names":
        """Each behind `prefix`."""
        before = prefix.encode("utf-8", "surrogateescape")
        if not len(self) or not before:
            return self
        return Names(np.frombuffer(before + self.blob.tobytes()[:-1].replace(b"\0", b"\0" + before) + b"\0", np.uint8))


class Lazy(Sequence[T]):
    """What `make` gives for each of the numbers below `length`, anew at each time; it pickles where `make` does."""

    def __init__(self, length: int, make: Callable[[int], T]) -> None:
        self._numbers = range(length)
        self._make = make

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        found = self._numbers[index]
        return self._make(found) if isinstance(found, int) else [self._make(i) for i in found]


def save_columns(path: Path, columns: Mapping[str, NDArray[Any]], about: Mapping[str, str]) -> None:
    """Writes a file of arrays as they lie in the memory, and of words about them. Raises OSError."""
    plain = {name: np.frombuffer(column.tobytes(), np.uint8) for name, column in sorted(columns.items())}
    digest = _begun(about, {name: len(column) for name, column in plain.items()})
    for column in plain.values():
        digest.update(column.data)
    write_atomic(path, save(plain, {**about, "sha256": digest.hexdigest()}))


def load_columns(path: Path, about: Mapping[str, str]) -> dict[str, Bytes] | None:
    """What `save_columns` wrote with the same words, and maybe others; None where it did not, or it has changed since.

    The columns are read-only.
    """
    try:
        with safe_open(path, "np") as whole:  # which looks whether the header is one
            words = whole.metadata()
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
            header.pop("__metadata__")
            begin = file.tell()
            places = {name: entry["data_offsets"] for name, entry in sorted(header.items())}
            sha256 = words.pop("sha256")
            lengths = {name: last - first for name, (first, last) in places.items()}
            # Not by way of the mapping, whose pages would then all count as this process's memory.
            digest = hashlib.file_digest(file, lambda: _begun(words, lengths))
    except (OSError, SafetensorError, AttributeError, KeyError):
        return None
    if digest.hexdigest() != sha256 or not about.items() <= words.items():
        return None
    # Windows replaces no file that is mapped.
    data = np.fromfile(path, np.uint8) if os.name == "nt" else np.memmap(path, np.uint8, "r").view(np.ndarray)
    return {name: data[begin + first : begin + last] for name, (first, last) in places.items()}


def _begun(about: Mapping[str, str], lengths: Mapping[str, int]) -> "hashlib._Hash":
    return hashlib.sha256(json.dumps([about, lengths], sort_keys=True).encode())
