"""The headers of a tar: plain ones many at once, all others by tarfile, which takes four times as long.

Plain are those of files and folders in POSIX.1-1988 (ustar) whose numbers are octal digits, with or without PAX times
before them, as `webdataset` writes them. What is in doubt is left to tarfile at its place, so that both find the same.
"""

import re
import tarfile  # noqa: TID251 - headers alone are read by it
from collections.abc import Generator
from contextlib import suppress
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from numpy.typing import NDArray

_BLOCK = tarfile.BLOCKSIZE
_AT_ONCE = 4096
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


def tar_headers(path: Path) -> Generator[Header, None, int]:
    """All of a tar; returns the offset where they end.

    Raises tarfile.ReadError where there is none at the beginning, or, behind those before it, where one is damaged.
    """
    with (
        tarfile.open(path, "r:", encoding="utf-8", errors="surrogateescape") as opened,
        path.open("rb") as file,
    ):
        while (info := opened.next()) is not None:
            opened.members = []  # type: ignore[attr-defined] # or it keeps them all
            if not info.isdir():
                reason = None if info.isreg() and not info.issparse() else "not a regular file"
                reason = "a link to another member" if info.islnk() or info.issym() else reason
                yield Header(info.name, info.offset_data, info.size, reason)
            if not opened.pax_headers:  # which count for all members behind them
                opened.offset = yield from _in_a_row(file, opened.offset)
        return opened.offset


def _in_a_row(file: IO[bytes], at: int) -> Generator[Header, None, int]:
    """Plain ones that lie one behind the other from `at` on; returns where the first one lies that is not plain."""
    whole = True
    while whole:
        # Each one's size says where the next one lies; they are believed once all have been looked at.
        found: list[tuple[bytes, int, int, int]] = []  # header, offset, size, and the offset with what comes before it
        here = at
        while whole and (len(found) < _AT_ONCE or at != here):
            file.seek(here)
            header = file.read(_BLOCK)
            size, whole = -1, False
            with suppress(ValueError):
                size = int(header[_SIZE][:-1], 8)
            if size >= 0 and len(header) == _BLOCK:
                is_times = header[_KIND] == _PAX
                whole = not is_times or _are_times(file.read(-(-size // _BLOCK) * _BLOCK if size < 2 * _BLOCK else 0))
            if whole:
                found.append((header, here, size, at))
                here += _BLOCK * (1 - -size // _BLOCK)
                at = at if is_times else here
        plain = _plain_ones(found)
        if plain < len(found):
            found, at, whole = found[:plain], found[plain][3], False
        for header, here, size, _ in found:
            if header[_KIND] == _FILE:
                name = header[:100].partition(b"\0")[0]
                if header[345]:
                    name = header[345:500].partition(b"\0")[0] + b"/" + name
                yield Header(name.decode("utf-8", "surrogateescape"), here + _BLOCK, size, None)
    return at


def _plain_ones(found: list[tuple[bytes, int, int, int]]) -> int:
    """How many there are before the first one of which tarfile might read something else."""
    if not found:
        return 0
    headers = np.frombuffer(b"".join(row[0] for row in found), np.uint8).reshape(-1, _BLOCK)  # (K, 512)
    digits, blanks = (headers >= ord("0")) & (headers < ord("8")), (headers == 0) | (headers == ord(" "))
    size, checksum = (_octal(headers[:, field], digits[:, field]) for field in (_SIZE, _CHECKSUM))
    others = headers.sum(axis=1, dtype=np.int64) - headers[:, _CHECKSUM].sum(axis=1, dtype=np.int64)
    kind = headers[:, _KIND]
    plain = (kind == _FILE) | (kind == _PAX) | ((kind == _FOLDER) & (size == 0))
    plain &= (size == [row[2] for row in found]) & (checksum == others + 8 * ord(" "))
    for field in _NUMBERS:  # digits, and behind them blanks
        own = digits[:, field]
        plain &= (own | blanks[:, field]).all(axis=1) & (own[:, 1:] <= own[:, :-1]).all(axis=1)
    return int(plain.argmin()) if not plain.all() else len(found)


def _octal(field: NDArray[np.uint8], digits: NDArray[np.bool_]) -> NDArray[np.int64]:
    """(K, n) characters -> (K,) numbers."""
    number = np.zeros(len(field), dtype=np.int64)
    for place in range(field.shape[1]):
        number = np.where(digits[:, place], number * 8 + field[:, place] - ord("0"), number)
    return number


def _are_times(records: bytes) -> bool:
    """Whether these are PAX records (POSIX.1-2001) of nothing but times, each as long as it says."""
    records, at = records.rstrip(b"\0"), 0
    while (found := _TIME.match(records, at)) and found.end() - at == int(found[1]):
        at = found.end()
    return 0 < at == len(records)
