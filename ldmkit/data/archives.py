"""Zip and tar archives, read in place, member by member: nothing is extracted.

What a member is called leads nowhere, since names are keys here and no paths; what it holds is read up to a bound that
the reader sets, so that no bomb goes off.
"""

import bz2
import gzip
import io
import lzma
import shutil
import struct
import tarfile  # noqa: TID251 - archives are written with it, and its errors caught
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO

from ldmkit.data.cache import made_once
from ldmkit.data.members import Archive, Found, Member, listed_once
from ldmkit.data.tar_headers import Plain, tar_headers
from ldmkit.errors import LdmkitError

MAX_MEMBERS = 2_000_000
MAX_RATIO = 200
"""times its own size that an archive may unpack to: pictures hardly compress"""
_CHUNK = 2**20
_METHODS = {0: "stored", 8: "deflate", 9: "Deflate64", 12: "bzip2", 14: "LZMA", 93: "Zstandard", 95: "XZ", 99: "AES"}
_PACKED = {".gz": gzip.open, ".tgz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
# Beside their own error zipfile and tarfile let through those of what they read by.
_BROKEN: tuple[type[Exception], ...] = (
    *(OSError, zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, struct.error),
    *(NotImplementedError, EOFError, ValueError, OverflowError, IndexError),
)
ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


def is_archive(name: str) -> bool:
    """By its ending."""
    return name.lower().endswith(ENDINGS)


def open_archive(path: Path) -> Archive:
    """The archive's table of contents. Raises LdmkitError where it is no archive that can be read."""
    try:
        mtime_ns, whole, lister = path.stat().st_mtime_ns, path, _zip
        if not path.name.lower().endswith(".zip"):
            lister = _tar
            if path.suffix.lower() in _PACKED:  # which cannot be read from the middle
                whole = made_once("tars", path, lambda unpacked: _unpack(path, unpacked))
        archive = listed_once(whole, lister)
    except _BROKEN as error:
        if isinstance(error, OSError) and error.errno is not None:  # without a number it is gzip's or bzip2's word
            raise LdmkitError(f"{path}: cannot be read: {error.strerror}") from error
        kind = "zip" if path.name.lower().endswith(".zip") else "tar"
        raise LdmkitError(f"{path}: not a {kind} archive that can be read: {str(error).rstrip('.')}") from error
    archive.mtime_ns = mtime_ns
    return archive


def _zip(path: Path, found: Found) -> None:
    with zipfile.ZipFile(path) as opened:
        listed = opened.infolist()
    if len(listed) > MAX_MEMBERS:
        raise zipfile.BadZipFile(f"{len(listed):,} members, more than {MAX_MEMBERS:,}")
    total, size = sum(info.file_size for info in listed), path.stat().st_size
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
        found.add(name, member, reason)


def _zip_name(info: zipfile.ZipInfo) -> str:
    """Without the flag for UTF-8, zipfile reads code page 437; macOS and many others write UTF-8 without it."""
    if info.flag_bits & 0x800:
        return info.filename
    try:
        return info.filename.encode("cp437").decode()
    except UnicodeError:
        return info.filename


def _tar(path: Path, found: Found) -> None:
    size, headers = path.stat().st_size, tar_headers(path)
    try:
        while True:
            some = next(headers)
            if (
                isinstance(some, Plain)
                and (some.offsets + some.sizes <= size).all()
                and len(found) + len(some.sizes) <= MAX_MEMBERS
                and found.add_plain(some)
            ):
                continue
            for name, offset, length, reason in some:
                if reason is None and offset + length > size:
                    reason = "cut off with its archive"
                found.add(name, Member(offset, length, length), reason)
                if len(found) > MAX_MEMBERS:
                    raise tarfile.ReadError(f"more than {MAX_MEMBERS:,} members")
    except StopIteration as ended:
        with path.open("rb") as file:
            file.seek(ended.value)
            if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
                found.rejected.append(("", f"damaged at byte {ended.value:,}: what follows there is not read"))
    except tarfile.ReadError as error:
        if not len(found):
            raise
        found.rejected.append(("", f"cut off or damaged after {len(found)} files ({error})"))


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
