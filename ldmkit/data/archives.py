"""Zip and tar archives, read in place, member by member: nothing is extracted.

What a member is called leads nowhere, since names are keys here and no paths; what it holds is read up to a bound that
the reader sets, so that no bomb goes off.
"""

import bz2
import errno
import gzip
import io
import lzma
import re
import shutil
import struct
import tarfile  # noqa: TID251 - archives are written with it, and its errors caught
import zipfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO, NamedTuple

from ldmkit.data.cache import made_once
from ldmkit.data.tar_headers import tar_headers
from ldmkit.errors import LdmkitError

MAX_MEMBERS = 2_000_000
MAX_RATIO = 200
"""times its own size that an archive may unpack to: pictures hardly compress"""
_CHUNK = 2**20
_METHODS = {0: "stored", 8: "deflate", 9: "Deflate64", 12: "bzip2", 14: "LZMA", 93: "Zstandard", 95: "XZ", 99: "AES"}
_ZIP_HEADER = struct.Struct("<4s5H3I2H")
_PACKED = {".gz": gzip.open, ".tgz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
# Beside their own error zipfile and tarfile let through those of what they read by.
_BROKEN: tuple[type[Exception], ...] = (
    *(OSError, zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, struct.error),
    *(NotImplementedError, EOFError, ValueError, OverflowError, IndexError),
)
ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


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
    crc: int | None = None


@dataclass
class Archive:
    """An archive's regular files by key, and what of it cannot be read."""

    path: Path
    """the file that members are read from"""
    mtime_ns: int = 0
    members: dict[str, Member] = field(default_factory=dict)
    rejected: list[tuple[str, str]] = field(default_factory=list)
    """(key, reason); the key is "" for the archive itself"""
    said: list[str] = field(default_factory=list)
    """lines on what is taken on trust"""

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

    def _add(self, name: str, member: Member, reason: str | None) -> None:
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if not parts and not name.startswith("/"):
            self.rejected.append((name or "(a member)", "has no name"))
        elif name.startswith("/") or ".." in parts or re.match("[A-Za-z]:", name):
            self.rejected.append((name, "its name leads out of the archive"))
        elif reason is not None:
            self.rejected.append(("/".join(parts), reason))
        else:
            key = "/".join(parts)
            if key in self.members:
                self.said.append(f"{key}: is in the archive twice; the last one is used")
            self.members[key] = member


def is_archive(name: str) -> bool:
    """By its ending."""
    return name.lower().endswith(ENDINGS)


def open_archive(path: Path) -> Archive:
    """The archive's table of contents. Raises LdmkitError where it is no archive that can be read."""
    try:
        archive = Archive(path, path.stat().st_mtime_ns)
        if path.name.lower().endswith(".zip"):
            _zip(archive)
        else:
            if path.suffix.lower() in _PACKED:  # which cannot be read from the middle
                archive.path = made_once("tars", path, lambda unpacked: _unpack(path, unpacked))
            _tar(archive)
    except _BROKEN as error:
        if isinstance(error, OSError) and error.errno is not None:  # without a number it is gzip's or bzip2's word
            raise LdmkitError(f"{path}: cannot be read: {error.strerror}") from error
        kind = "zip" if path.name.lower().endswith(".zip") else "tar"
        raise LdmkitError(f"{path}: not a {kind} archive that can be read: {str(error).rstrip('.')}") from error
    return archive


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
        if member.crc is not None and zlib.crc32(data) != member.crc:
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


def _zip(archive: Archive) -> None:
    with zipfile.ZipFile(archive.path) as opened:
        listed = opened.infolist()
    if len(listed) > MAX_MEMBERS:
        raise zipfile.BadZipFile(f"{len(listed):,} members, more than {MAX_MEMBERS:,}")
    total, size = sum(info.file_size for info in listed), archive.path.stat().st_size
    if total > MAX_RATIO * size:
        raise zipfile.BadZipFile(f"would unpack to {total:,} bytes, more than {MAX_RATIO} times its size")
    end = 0
    for info in sorted(listed, key=lambda info: info.header_offset):
        if info.header_offset < end:  # a bomb has many members share their bytes
            raise zipfile.BadZipFile(f"its beginning is missing, or {info.filename!r} overlaps another member")
        end = info.header_offset + info.compress_size
    for info in listed:
        name = _zip_name(info).replace("\\", "/")  # as some programs of Windows write it
        mode = info.external_attr >> 16 & 0o170000
        if name.endswith("/"):
            continue
        reason = None
        if mode not in (0, 0o100000):
            reason = "a link or a device"
        elif info.flag_bits & 1:
            reason = "encrypted; unpack the archive with its password"
        elif info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            method = _METHODS.get(info.compress_type, f"method {info.compress_type}")
            reason = f"packed by {method}, which is not read; unpack the archive, or pack it by deflate"
        member = Member(info.header_offset, info.compress_size, info.file_size, info.compress_type, info.CRC)
        archive._add(name, member, reason)


def _zip_name(info: zipfile.ZipInfo) -> str:
    """Without the flag for UTF-8, zipfile reads code page 437; macOS and many others write UTF-8 without it."""
    if info.flag_bits & 0x800:
        return info.filename
    try:
        return info.filename.encode("cp437").decode()
    except UnicodeError:
        return info.filename


def _tar(archive: Archive) -> None:
    size, headers = archive.path.stat().st_size, tar_headers(archive.path)
    try:
        while True:
            name, offset, length, reason = next(headers)
            if reason is None and offset + length > size:
                reason = "cut off with its archive"
            archive._add(name, Member(offset, length, length), reason)
            if len(archive.members) > MAX_MEMBERS:
                raise tarfile.ReadError(f"more than {MAX_MEMBERS:,} members")
    except StopIteration as ended:
        with archive.path.open("rb") as file:
            file.seek(ended.value)
            if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
                archive.rejected.append(("", f"damaged at byte {ended.value:,}: what follows there is not read"))
    except tarfile.ReadError as error:
        if not archive.members:
            raise
        archive.rejected.append(("", f"cut off or damaged after {len(archive.members)} files ({error})"))


def _unpack(packed: Path, unpacked: Path) -> None:
    """A compressed tar as a plain one."""
    most = min(MAX_RATIO * packed.stat().st_size, shutil.disk_usage(unpacked.parent).free)
    opener: Callable[[Path], IO[bytes]] = _PACKED[packed.suffix.lower()]  # type: ignore[assignment]
    with opener(packed) as source, unpacked.open("wb") as target:
        while part := source.read(_CHUNK):
            if target.tell() + len(part) > most:
                raise tarfile.ReadError(f"would unpack to more than {most:,} bytes")
            target.write(part)


def write_tar(path: Path, files: Iterable[tuple[str, bytes]]) -> None:
    """A tar of these files, the same whenever it is written."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT, encoding="utf-8", errors="surrogateescape") as opened:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), 0o644
            opened.addfile(info, io.BytesIO(data))
