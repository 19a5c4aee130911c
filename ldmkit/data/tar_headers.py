"""The headers of a tar: plain ones many at once, all others by tarfile, which takes four times as long.

Plain are those of files and folders in POSIX.1-1988 (ustar) whose numbers are octal digits, with or without PAX times
before them, as `webdataset` writes them. What is in doubt is left to tarfile at its place, so that both find the same.
"""

import re
import tarfile  # noqa: TID251 - headers alone are read by it
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from numpy.typing import NDArray

_BLOCK = tarfile.BLOCKSIZE
_AT_ONCE = 4096
_READ = 2**15  # several headers of small files at once
_FILE, _FOLDER, _PAX = b"05x"
_KIND = 156
_SIZE, _CHECKSUM = slice(124, 136), slice(148, 156)
# The others are mode, uid, gid, mtime, devmajor and devminor: tarfile reads them all.
_NUMBERS = (*(slice(at, at + 8) for at in (100, 108, 116, 329, 337)), _SIZE, slice(136, 148), _CHECKSUM)
_TIME = re.compile(rb"(\d{1,3}) [amc]time=[0-9.]+\n")


class Header(NamedTuple):
    """Of a member that is no folder."""

    name: str
    offset: int
    """of its bytes"""
    size: int
    reason: str | None
    """why it is not read"""


@dataclass(frozen=True)
class Plain:
    """Plain ones of files, in columns: a million in a row are not worth an object each."""

    names: bytes
    """with a NUL behind each"""
    offsets: NDArray[np.int64]
    """(N,) of their bytes"""
    sizes: NDArray[np.int64]
    """(N,)"""

    def __iter__(self) -> Iterator[Header]:
        names = self.names.decode("utf-8", "surrogateescape").split("\0")
        return map(Header, names, self.offsets.tolist(), self.sizes.tolist(), repeat(None))


def tar_headers(path: Path) -> Generator[Iterable[Header], None, int]:
    """All of a tar, one or several at a time; returns the offset where they end.

    Raises tarfile.ReadError where there is none at the beginning, or, behind those before it, where one is damaged.
    """
    with (
        tarfile.open(path, "r:", encoding="utf-8", errors="surrogateescape") as opened,
        path.open("rb", buffering=_READ) as file,
    ):
        while (info := opened.next()) is not None:
            opened.members = []  # type: ignore[attr-defined] # or it keeps them all
            if not info.isdir():
                reason = None if info.isreg() and not info.issparse() else "not a regular file"
                reason = "a link to another member" if info.islnk() or info.issym() else reason
                yield [Header(info.name, info.offset_data, info.size, reason)]
            if not opened.pax_headers:  # which count for all members behind them
                opened.offset = yield from _in_a_row(file, opened.offset)
        return opened.offset


def _in_a_row(file: IO[bytes], at: int) -> Generator[Plain, None, int]:
    """Plain ones that lie one behind the other from `at` on; returns where the first one lies that is not plain."""
    seek, read, whole = file.seek, file.read, True
    while whole:
        # Each one's size says where the next one lies; they are believed once all have been looked at.
        found, places, sizes = list[bytes](), list[int](), list[int]()
        begins: list[int] = []  # places with what comes before them
        here = at
        while whole and (len(found) < _AT_ONCE or at != here):
            seek(here)
            header = read(_BLOCK)
            try:
                size = int(header[124:135], 8)
            except ValueError:
                size = -1
            whole = size >= 0 and len(header) == _BLOCK
            is_times = whole and header[_KIND] == _PAX
            if is_times:
                whole = _are_times(read(-(-size // _BLOCK) * _BLOCK if size < 2 * _BLOCK else 0))
            if whole:
                found.append(header)
                places.append(here)
                sizes.append(size)
                begins.append(at)
                here += _BLOCK * (1 - -size // _BLOCK)
                at = at if is_times else here
        headers = np.frombuffer(b"".join(found), np.uint8).reshape(-1, _BLOCK)  # (K, 512)
        lengths = np.array(sizes, dtype=np.int64)
        plain = _are_plain(headers, lengths)
        number = int(plain.argmin()) if not plain.all() else len(found)
        if number < len(found):
            at, whole = begins[number], False
        files = np.flatnonzero(headers[:number, _KIND] == _FILE)
        if len(files):
            names = b"".join([_name(found[i]) + b"\0" for i in files.tolist()])
            yield Plain(names, np.array(places, dtype=np.int64)[files] + _BLOCK, lengths[files])
    return at


def _name(header: bytes) -> bytes:
    name = header[:100].partition(b"\0")[0]
    return header[345:500].partition(b"\0")[0] + b"/" + name if header[345] else name


def _are_plain(headers: NDArray[np.uint8], sizes: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(K,) of which tarfile would read nothing else; `sizes` as they were taken for."""
    sums = headers.sum(axis=1, dtype=np.uint32) - headers[:, _CHECKSUM].sum(axis=1, dtype=np.uint32) + 8 * ord(" ")
    kind = headers[:, _KIND]
    plain: NDArray[np.bool_] = (kind == _FILE) | (kind == _PAX) | ((kind == _FOLDER) & (sizes == 0))
    for field in _NUMBERS:  # digits, and behind them blanks
        own = np.ascontiguousarray(headers[:, field].T)  # (n, K)
        digits = (own >= ord("0")) & (own < ord("8"))
        plain &= (digits | (own == 0) | (own == ord(" "))).all(axis=0) & (digits[1:] <= digits[:-1]).all(axis=0)
        if field in (_SIZE, _CHECKSUM):
            number = np.zeros(len(headers), dtype=np.int64)
            for row, is_digit in zip(own, digits, strict=True):
                number = np.where(is_digit, number * 8 + row - ord("0"), number)
            plain &= number == (sizes if field == _SIZE else sums)
    return plain


def _are_times(records: bytes) -> bool:
    """Whether these are PAX records (POSIX.1-2001) of nothing but times, each as long as it says."""
    records, at = records.rstrip(b"\0"), 0
    while (found := _TIME.match(records, at)) and found.end() - at == int(found[1]):
        at = found.end()
    return 0 < at == len(records)
