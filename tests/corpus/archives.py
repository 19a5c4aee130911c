"""Zip archives, and what only looks like one."""

import io
import lzma
import stat
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from ldmkit.data.fetch import unzip
from tests.corpus.artefact import Artefact

Members = list[tuple[str | zipfile.ZipInfo, bytes]]
OUTSIDE = (
    "../evil.png",
    "/evil.png",
    "//evil.png",
    "a/../../evil.png",
    "./../evil.png",
    "..",
    "a/..",
    "..\\evil.png",
    "\\evil.png",
    "C:/evil.png",
    "C:evil.png",
    "a.png:stream",
    "../../../../../../root/.ssh/authorized_keys.txt",
)


def zipped(members: Members, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", method) as opened:
        warnings.simplefilter("ignore", UserWarning)  # of names that are there twice
        for name, data in members:
            opened.writestr(name, data)
    return buffer.getvalue()


def _special(name: str, kind: int) -> zipfile.ZipInfo:
    member = zipfile.ZipInfo(name)
    member.create_system = 3
    member.external_attr = (kind | 0o777) << 16
    return member


def _patched(data: bytes, offset: int, form: str, value: int) -> bytes:
    """A field of the first central directory record changed (APPNOTE.TXT 4.3.12)."""
    changed = bytearray(data)
    struct.pack_into(form, changed, changed.index(b"PK\x01\x02") + offset, value)
    return bytes(changed)


def _lzma_bomb() -> bytes:
    """A member whose LZMA header asks for a dictionary of 4 GiB."""
    data = zipped([("a.png", b"x" * 999)], zipfile.ZIP_LZMA)
    return data.replace(lzma._encode_filter_properties({"id": lzma.FILTER_LZMA1}), b"\x5d\xff\xff\xff\xff", 1)  # type: ignore[attr-defined]


def _tar(link: bool, mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as opened:  # type: ignore[call-overload]
        member = tarfile.TarInfo("../evil.png")
        member.type, member.linkname = (tarfile.SYMTYPE if link else tarfile.REGTYPE), "/etc/passwd"
        opened.addfile(member, io.BytesIO())
    return buffer.getvalue()


def _overlapping() -> bytes:
    """Two entries of the directory for the same bytes, in the manner of Fifield's bombs (2019)."""
    data = zipped([("a.png", bytes(range(256)) * 9), ("b.png", b"")])
    second = data.index(b"PK\x01\x02", data.index(b"PK\x01\x02") + 1)
    changed = bytearray(data)
    changed[second + 16 : second + 28] = changed[data.index(b"PK\x01\x02") + 16 :][:12]  # checksum and sizes
    struct.pack_into("<I", changed, second + 42, 0)  # the first one's header
    return bytes(changed)


def _unpack(data: bytes, found: set[str] | None, folder: Path) -> Callable[[], Any]:
    archive, target = folder / "set.zip", folder / "data"
    archive.write_bytes(data)

    def use() -> None:
        try:
            unzip(archive, target)
        finally:
            left = {path.relative_to(folder).as_posix() for path in folder.rglob("*")} - {"set.zip"}
            assert left == (found or set()), left

    return use


def archives() -> Iterator[Artefact]:
    good: Members = [("a.png", b"x")]
    whole = zipped([("a.png", bytes(range(256)) * 40)], zipfile.ZIP_STORED)
    for name in OUTSIDE:
        yield Artefact(
            f"zip slip {name}", partial(_unpack, zipped([*good, (name, b"x")]), None), "outside the folder|link"
        )
    for word, kind in (
        ("link", stat.S_IFLNK),
        ("pipe", stat.S_IFIFO),
        ("device", stat.S_IFCHR),
        ("socket", stat.S_IFSOCK),
    ):
        yield Artefact(
            f"zip with a {word}", partial(_unpack, zipped([(_special("a.png", kind), b"/etc")]), None), "link or a"
        )
    refused = {
        "bomb": (zipped([("a.png", bytes(50_000_000))]), "would unpack to 50,000,000"),
        "bomb that lies": (_patched(zipped([("a.png", bytes(5_000_000))]), 24, "<I", 1000), "not a zip archive"),
        "overlapping members": (_overlapping(), "not a zip archive"),
        "LZMA of 4 GiB": (_lzma_bomb(), "otherwise than by deflate"),
        "damaged LZMA": (
            zipped([("a.png", b"x" * 99)], zipfile.ZIP_LZMA)[:40] + zipped(good)[31:],
            "not a zip|otherwise",
        ),
        "bzip2": (zipped(good, zipfile.ZIP_BZIP2), "otherwise than by deflate"),
        "unknown method": (_patched(zipped(good), 10, "<H", 99), "otherwise than by deflate"),
        "encrypted": (_patched(zipped(good), 8, "<H", 1), "encrypted"),
        "name that is no UTF-8": (
            _patched(zipped([("caf\xe9.png", b"x")]).replace(b"\xc3\xa9", b"\xe9\xe9"), 8, "<H", 0x800),
            "not a zip archive",
        ),
        "offset beyond the end": (_patched(zipped(good), 42, "<I", 2**31), "not a zip archive"),
        "wrong checksum": (whole.replace(b"\x07\x08\x09", b"xyz", 1), "not a zip archive"),
        "cut": (whole[: len(whole) // 2], "not a zip archive"),
        "directory alone": (whole[whole.index(b"PK\x01\x02") :], "not a zip archive"),
        "empty": (b"", "not a zip archive"),
        "file that is a folder too": (zipped([*good, ("a.png/b.png", b"x")]), "cannot be|exists"),
        "the same name twice": (zipped(good * 2), "there twice"),
        "name of 5000 letters": (zipped([("x" * 5000 + ".png", b"x")]), "cannot be"),
        "zip in a zip": (zipped([("inner.zip", zipped(good))]), "holds no pictures"),
        "tar": (_tar(link=False), "not a zip archive"),
        "tar with a link": (_tar(link=True), "not a zip archive"),
        "tar.gz": (_tar(link=True, mode="w:gz"), "not a zip archive"),
        "tar.bz2": (_tar(link=False, mode="w:bz2"), "not a zip archive"),
    }
    for word, (data, said) in refused.items():
        yield Artefact(f"zip: {word}", partial(_unpack, data, None), said)
    code: Members = [("conftest.py", b"boom"), ("sitecustomize.py", b"boom"), (".git/hooks/post-checkout", b"boom")]
    yield Artefact("zip with code", partial(_unpack, zipped([*good, *code]), {"data", "data/a.png"}))
    yield Artefact(
        "zip behind a program", partial(_unpack, b"\x7fELF" + bytes(99) + zipped(good), {"data", "data/a.png"})
    )
    home: Members = [("~/b.png", b"x"), ("$HOME/c.png", b"x")]
    found = {"data", "data/~", "data/~/b.png", "data/$HOME", "data/$HOME/c.png"}
    yield Artefact("zip with a home folder", partial(_unpack, zipped(home), found))
