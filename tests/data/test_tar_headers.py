"""Every member of a tar is found where Python's tarfile finds it, in whatever form it is and however it is damaged."""

import io
import random
import tarfile

import pytest

from ldmkit.data.tar_headers import tar_headers

NAMES = ("a.png", "cats/ü.png", "long/" * 30 + "a.png", "caf\udce9.png", "cats//./b.png", "n" * 120 + ".jpg", "folder/")
KINDS = (tarfile.REGTYPE, tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE)
FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)


def made(rng, file_format):
    """A tar of members of every kind; with a header for all of them now and then."""
    buffer = io.BytesIO()
    everywhere = rng.choice(({}, {}, {}, {"comment": "all"}, {"path": "same.png"}))
    with tarfile.open(
        fileobj=buffer, mode="w", format=file_format, errors="surrogateescape", pax_headers=everywhere
    ) as opened:
        for _ in range(rng.randrange(12)):
            name = rng.choice(NAMES)
            if file_format == tarfile.USTAR_FORMAT and len(name) > 100 and "/" not in name:
                continue
            info = tarfile.TarInfo(name)
            info.type = rng.choice(KINDS)
            info.linkname = "elsewhere" if info.type in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
            info.size = rng.choice((0, 1, 511, 512, 513, 3000)) if info.isreg() else 0
            info.mtime = rng.choice((0, 1_700_000_000, 1_700_000_000.25, -5))
            info.uid = rng.choice((0, 1000, 2**22))  # beyond seven octal digits: base 256 by GNU, a record by PAX
            if file_format == tarfile.USTAR_FORMAT:
                info.mtime, info.uid = abs(int(info.mtime)), 1000
            if rng.random() < 0.2 and file_format == tarfile.PAX_FORMAT:
                info.pax_headers = rng.choice(({"atime": "12.5"}, {"SCHILY.xattr.user.a": "b"}, {"path": "other.png"}))
            opened.addfile(info, io.BytesIO(rng.randbytes(info.size)))
    return bytearray(buffer.getvalue())


def spoil(data, rng):
    """One byte of a header changed, with its checksum as often as not; or the end cut off, or something behind it."""
    how = rng.random()
    if how < 0.2 or not data:
        return data
    if how < 0.3:
        return data[: rng.randrange(len(data))]
    if how < 0.35:
        return data.rstrip(b"\0") + bytes(512) + b"what follows"
    headers = [at for at in range(0, len(data), 512) if data[at + 257 : at + 262] == b"ustar"]
    block = rng.choice(headers or [0])
    at = rng.choice((0, 99, 103, 110, 119, 130, 133, 134, 135, 140, 148, 154, 156, 257, 329, 345, 400, 513, 520))
    if block + at < len(data):
        data[block + at] = rng.choice(b"\0  0179/x\x80\xff-_LSgx5")
    if rng.random() < 0.8:
        header = data[block : block + 512]
        header[148:156] = b" " * 8
        data[block + 148 : block + 156] = b"%06o\0 " % sum(header)
    return data


def by_tarfile(path):
    with tarfile.open(path, "r:", encoding="utf-8", errors="surrogateescape") as opened:
        while (info := opened.next()) is not None:
            if not info.isdir():
                yield info.name, info.offset_data, info.size, info.isreg() and not info.issparse()
        return opened.offset


def by_ldmkit(path):
    headers = tar_headers(path)
    try:
        while True:
            yield from ((name, offset, size, reason is None) for name, offset, size, reason in next(headers))
    except StopIteration as ended:
        return ended.value


def outcome(members):
    """(members, how it ends: the offset or the error)."""
    found = []
    try:
        while True:
            found.append(next(members))
    except StopIteration as ended:
        return found, ended.value
    except (tarfile.TarError, ValueError, OverflowError, IndexError) as error:  # on what is damaged
        return found, repr(error)


@pytest.mark.parametrize("file_format", FORMATS)
def test_every_member_is_what_tarfile_reads(file_format, tmp_path):
    path, rng, ends = tmp_path / "a.tar", random.Random(file_format), []
    for _ in range(150):
        path.write_bytes(spoil(made(rng, file_format), rng))
        wanted = outcome(by_tarfile(path))
        assert outcome(by_ldmkit(path)) == wanted
        ends.append(wanted[1])
    assert {type(end) for end in ends} == {int, str}


def test_more_members_than_are_looked_at_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr("ldmkit.data.tar_headers._AT_ONCE", 3)
    rng = random.Random(7)
    for number in range(60):
        path = tmp_path / f"{number}.tar"
        path.write_bytes(made(rng, tarfile.PAX_FORMAT))
        assert outcome(by_ldmkit(path)) == outcome(by_tarfile(path))
