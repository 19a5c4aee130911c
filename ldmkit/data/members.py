"""What an archive holds and where: read off it once, and from then on mapped from the user's cache."""

import errno
import hashlib
import json
import os
import re
import struct
import zipfile
import zlib
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ldmkit.data.cache import cache_folder
from ldmkit.data.columns import Bytes, Names, load_columns, save_columns
from ldmkit.data.decode import SUFFIXES
from ldmkit.data.kinds import BESIDE, HEAD, kind
from ldmkit.data.tar_headers import Plain

_CHUNK = 2**20
_DRIVE = re.compile("[A-Za-z]:")
# Behind the start of a part of a name: nothing, one dot or two, or what may be a drive.
_TO_LOOK_AT = re.compile(rb"/(?:\.{0,2}/|[A-Za-z]:)")
_ZIP_HEADER = struct.Struct("<4s5H3I2H")
# Raised whenever archives are listed otherwise.
_VERSION = 1
_PLACE = np.dtype([("offset", "<i8"), ("packed", "<i8"), ("size", "<i8"), ("method", "<i2"), ("crc", "<i8")])
_PACK = struct.Struct("<qqqhq").pack


class Member(NamedTuple):
    """Where a file's bytes lie in its archive."""

    offset: int
    """of the bytes in a tar, of the local header in a zip"""
    packed: int
    """bytes there"""
    size: int
    """bytes unpacked"""
    method: int = -1
    """-1: in a tar, 0: stored in a zip, 8: deflated"""
    crc: int = -1
    """-1: not known"""


class Found:
    """What is found in an archive while it is listed."""

    def __init__(self) -> None:
        self._keys, self._places = bytearray(), bytearray()
        self.rejected: list[tuple[str, str]] = []

    def __len__(self) -> int:
        return len(self._places) // _PLACE.itemsize

    def add(self, name: str, member: Member, reason: str | None) -> None:
        """A member, to be left out for `reason`."""
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if not parts and not name.startswith("/"):
            self.rejected.append((name or "(a member)", "has no name"))
        elif name.startswith("/") or ".." in parts or _DRIVE.match(name):
            self.rejected.append((name, "its name leads out of the archive"))
        elif "\0" in name:
            self.rejected.append((name, "its name holds a NUL"))
        elif reason is not None:
            self.rejected.append(("/".join(parts), reason))
        else:
            self._keys += "/".join(parts).encode("utf-8", "surrogateescape") + b"\0"
            self._places += _PACK(*member)

    def add_plain(self, files: Plain) -> bool:
        """All of them, unless one's name is such that `add` would change or refuse it; returns whether it did."""
        if _TO_LOOK_AT.search(b"/" + files.names.replace(b"\0", b"/")):
            return False
        places = np.zeros(len(files.sizes), _PLACE)
        places["offset"], places["packed"], places["size"] = files.offsets, files.sizes, files.sizes
        places["method"] = places["crc"] = -1  # as of any `Member` in a tar
        self._keys += files.names
        self._places += places.tobytes()
        return True

    def columns(self, path: Path) -> dict[str, Bytes]:
        """Sorted by key, of several of one name the last; `path` is read where no name tells what a member is."""
        names, places = Names(np.frombuffer(self._keys, np.uint8)), np.frombuffer(self._places, _PLACE)
        order = names.order()
        names, places = names.take(order), places[order]
        again = np.zeros(len(names), dtype=bool)
        again[:-1] = [before == after for before, after in pairwise(names.raw())]
        said = [f"{names[i]}: is in the archive twice; the last one is used" for i in np.flatnonzero(again)]
        names, places = names.take(np.flatnonzero(~again)), places[~again]
        kinds: dict[str, str] = {}
        told = [part.end_in(SUFFIXES | BESIDE) for part in names.parts()]
        for i in np.flatnonzero(~np.concatenate(told)) if told else ():
            with suppress(OSError):
                if name := kind(read_member(path, Member(*places[i].item()), HEAD - 1))[0]:
                    kinds[names[i]] = name
        other = np.frombuffer(json.dumps([self.rejected, said, kinds]).encode(), np.uint8)
        return {"names": names.blob, "places": places.view(np.uint8), "other": other}


class Members(Mapping[str, Member]):
    """By key and ordered by it, each made when it is asked for."""

    def __init__(self, names: Names, places: NDArray[np.void]) -> None:
        self.names = names
        self.places = places
        """(N,) of `Member`'s fields"""

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __getitem__(self, key: str) -> Member:
        i = bisect_left(self.names, key)
        if i == len(self) or self.names[i] != key:
            raise KeyError(key)
        return Member(*self.places[i].item())


@dataclass
class Archive:
    """An archive's regular files by key, and what of it cannot be read."""

    path: Path
    """the file that members are read from"""
    mtime_ns: int
    members: Members
    rejected: list[tuple[str, str]]
    """(key, reason); the key is "" for the archive itself"""
    said: list[str]
    """lines on what is taken on trust"""
    kinds: dict[str, str]
    """by key, what the first bytes tell of a member that ends neither as pictures nor as captions do"""

    def read(self, key: str, most: int) -> bytes:
        """At most `most` + 1 bytes of a member. Raises OSError where it is damaged."""
        return read_member(self.path, self.members[key], most)

    def names(self, folder: str) -> list[str]:
        """Of the files right in this folder, "" being the whole."""
        return self._folders.get(folder, [])

    @cached_property
    def _folders(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for key in self.members:
            folder, _, name = key.rpartition("/")
            found.setdefault(folder, []).append(name)
        return found


def listed_once(path: Path, lister: Callable[[Path, Found], None]) -> Archive:
    """What `lister` finds in an archive, from the cache as long as its path, size and times are the same."""
    status, whole = path.stat(), os.path.realpath(path)
    as_it_is = [whole, status.st_size, status.st_mtime_ns, status.st_ctime_ns, sorted(SUFFIXES)]
    about = {"version": str(_VERSION), "archive": json.dumps(as_it_is)}
    file = cache_folder("members") / f"{hashlib.sha256(os.fsencode(whole)).hexdigest()[:32]}.safetensors"
    columns = load_columns(file, about)
    if columns is None:
        found = Found()
        lister(path, found)
        columns = found.columns(path)
        with suppress(OSError):  # without a cache it is listed again
            save_columns(file, columns, about)
    rejected, said, kinds = json.loads(columns["other"].tobytes())
    members = Members(Names(columns["names"]), columns["places"].view(_PLACE))
    return Archive(path, status.st_mtime_ns, members, [(key, reason) for key, reason in rejected], said, kinds)


def read_member(path: Path, member: Member, most: int) -> bytes:
    """At most `most` + 1 bytes. Safe in threads and processes. Raises OSError where the archive is damaged."""
    with path.open("rb") as file:
        offset = member.offset
        if member.method >= 0:
            file.seek(offset)
            header = file.read(_ZIP_HEADER.size)
            if len(header) < _ZIP_HEADER.size or not header.startswith(b"PK\x03\x04"):
                raise OSError(errno.EIO, "damaged in its archive: no header where it should be")
            offset += _ZIP_HEADER.size + sum(_ZIP_HEADER.unpack(header)[-2:])
        file.seek(offset)
        if member.method == zipfile.ZIP_DEFLATED:
            data = _inflated(file, member.packed, most)
        else:
            data = file.read(min(member.packed, most + 1))
    if len(data) <= most:
        if len(data) != member.size:
            raise OSError(errno.EIO, f"damaged in its archive: {len(data):,} of {member.size:,} bytes")
        if member.crc >= 0 and zlib.crc32(data) != member.crc:
            raise OSError(errno.EIO, "damaged in its archive: its checksum is wrong")
    return data


def _inflated(file: IO[bytes], packed: int, most: int) -> bytes:
    unpacker, parts, length = zlib.decompressobj(-zlib.MAX_WBITS), list[bytes](), 0
    try:
        while packed > 0 and length <= most and not unpacker.eof:
            raw = file.read(min(packed, _CHUNK))
            if not raw:
                break
            packed -= len(raw)
            while raw and length <= most:
                parts.append(unpacker.decompress(raw, most + 1 - length))
                length += len(parts[-1])
                raw = unpacker.unconsumed_tail
    except zlib.error as error:
        raise OSError(errno.EIO, f"damaged in its archive: {error}") from error
    return b"".join(parts)
