"""Zip and tar archives are read in place; the oracle is the folder that they were made of, by Python's own modules."""

import io
import json
import os
import pickle
import stat
import struct
import tarfile
import zipfile

import numpy as np
import pytest
from ldmkit_captions import Sidecar
from PIL import Image

from ldmkit import LdmkitError
from ldmkit.data.archives import open_archive
from ldmkit.data.captions import caption_content_hash, caption_files_hash
from ldmkit.data.decode import load_picture
from ldmkit.data.pictures import remembered, scan


def picture(color="red", file_format="PNG"):
    file = io.BytesIO()
    Image.new("RGB", (8, 6), color).save(file, file_format)
    return file.getvalue()


FILES = {
    "one/a.png": picture("red"),
    "one/a.txt": b"a red cat",
    "two/deep/b.jpg": picture("blue", "JPEG"),
    "two/metadata.jsonl": json.dumps({"file_name": "deep/b.jpg", "text": "a blue cat"}).encode(),
    "c.webp": picture("lime", "WEBP"),
    "c.json": b'{"caption": "a green cat", "width": 8}',
    "katze süß.png": picture("white"),
    "notes.pdf": b"%PDF-1.7",
    ".hidden/d.png": picture(),
    "__MACOSX/._a.png": b"x",
    "one/LOST+FOUND/e.png": picture(),
    "one/.hidden.png": picture(),
    "lost+found.d/f.JPEG": picture("teal", "JPEG"),
}
CAPTIONS = {
    "c.webp": "a green cat",
    "katze süß.png": None,
    "lost+found.d/f.JPEG": None,
    "one/a.png": "a red cat",
    "two/deep/b.jpg": "a blue cat",
}


def write(path, files, **options):
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", options.get("method", zipfile.ZIP_DEFLATED)) as opened:
            for name, data in files.items():
                opened.writestr(name, data)
    else:
        with tarfile.open(path, "w:" + {".tar": "", ".tgz": "gz", ".xz": "xz"}[path.suffix]) as opened:
            for name, data in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                opened.addfile(info, io.BytesIO(data))
    return path


def captions(index):
    pictures = index.pictures()
    return dict(zip((p.key for p in pictures), Sidecar().caption(pictures), strict=True))


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LDMKIT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path):
    for name, data in FILES.items():
        path = tmp_path / "folder" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return scan(tmp_path / "folder")


@pytest.mark.parametrize("name", ["a.zip", "a.ZIP", "a.tar", "a.tgz", "a.tar.xz"])
def test_an_archive_is_what_its_folder_is(name, tmp_path, folder):
    made = write(tmp_path / name.lower(), FILES)
    made.rename(tmp_path / name)
    index = scan(tmp_path / name)
    assert index.hash == folder.hash
    assert [(e.key, e.width, e.height) for e in index.entries] == [(e.key, e.width, e.height) for e in folder.entries]
    assert index.unread == folder.unread
    assert captions(index) == captions(folder) == CAPTIONS
    assert caption_content_hash(index.source) == caption_content_hash(folder.source)
    for entry, loaded in zip(folder.entries, pickle.loads(pickle.dumps(index.pictures())), strict=True):  # noqa: S301
        assert np.array_equal(loaded.load(), load_picture(folder.folder / entry.key))


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_archives_in_a_folder_are_folders_of_their_names(method, tmp_path, folder):
    sets = tmp_path / "sets"
    (sets / "more").mkdir(parents=True)
    write(sets / "x.zip", {"a.png": picture("red"), "a.txt": b"in a zip", "b.png": picture("pink")}, method=method)
    write(sets / "more" / "y.tar", {"000.png": picture("navy"), "000.json": b'{"text": "in a tar"}'})
    (sets / "own.png").write_bytes(picture("teal"))
    index = scan(sets)
    assert captions(index) == {
        "more/y.tar/000.png": "in a tar",
        "own.png": None,
        "x.zip/a.png": "in a zip",
        "x.zip/b.png": None,
    }
    before = caption_files_hash(index.source), index.hash
    (sets / "own.png").unlink()
    (sets / "own.png").write_bytes(picture("red"))  # a copy of what the zip holds
    index = scan(sets, index_cache=tmp_path / "pictures.safetensors")
    assert [entry.key for entry in index.entries] == ["more/y.tar/000.png", "own.png", "x.zip/b.png"]
    assert "x.zip/: 1 of 2 pictures are copies of files beside the archive; left out" in index.unread
    assert before[0] == caption_files_hash(index.source)
    assert scan(sets, index_cache=tmp_path / "pictures.safetensors") == index
    assert remembered(tmp_path / "pictures.safetensors", sets).hash == index.hash
    write(sets / "x.zip", {"a.png": picture("olive")})
    assert "x.zip/a.png" in [entry.key for entry in scan(sets, index_cache=tmp_path / "pictures.safetensors").entries]


@pytest.mark.parametrize("name", ["a.zip", "a.tar"])
def test_an_archive_is_listed_once(name, tmp_path, monkeypatch):
    path = write(tmp_path / name, FILES)
    index = scan(path, index_cache=tmp_path / "pictures.safetensors")
    opened = []
    original = io.open
    monkeypatch.setattr(
        io, "open", lambda file, *rest, **more: opened.append(str(file)) or original(file, *rest, **more)
    )
    again = scan(path, index_cache=tmp_path / "pictures.safetensors")
    assert str(path) not in opened
    assert again == index
    assert np.array_equal(again.pictures()[0].load(), index.pictures()[0].load())
    assert str(path) in opened
    then = path.stat()
    write(path, {name.replace("one/a", "one/z"): data for name, data in FILES.items()})
    os.utime(path, ns=(then.st_atime_ns, then.st_mtime_ns))
    assert path.stat().st_size == then.st_size
    assert [entry.key for entry in scan(path).entries] == sorted({*CAPTIONS, "one/z.png"} - {"one/a.png"})


def test_members_that_are_not_read_are_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as opened:
        opened.writestr("good.png", picture())
        opened.writestr("lzma.png", picture("blue"), zipfile.ZIP_LZMA)
        link = zipfile.ZipInfo("link.png")
        link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        opened.writestr(link, "/etc/passwd")
        for name in ("../out.png", "/root.png", "C:/drive.png"):
            opened.writestr(name, picture())
        nameless = zipfile.ZipInfo("x")
        nameless.filename = "\0"  # where zipfile ends a name
        opened.writestr(nameless, picture())
        opened.writestr("inner.zip", b"PK\x03\x04")
        opened.writestr("locked.png", picture("green"))
    data = bytearray((tmp_path / "a.zip").read_bytes())
    entry = data.rindex(b"locked.png") - 46
    data[entry + 8] |= 1  # encrypted
    (tmp_path / "a.zip").write_bytes(data)
    index = scan(tmp_path / "a.zip", max_bad=1)
    assert [entry.key for entry in index.entries] == ["good.png"]
    assert {key: reason.split(";")[0].split(",")[0] for key, reason in index.rejected} == {
        "lzma.png": "packed by LZMA",
        "link.png": "a link or a device",
        "locked.png": "encrypted",
        "(a member)": "has no name",
        **dict.fromkeys(("../out.png", "/root.png", "C:/drive.png"), "its name leads out of the archive"),
    }
    assert "inner.zip: by its first bytes zip archive; unpack it" in index.unread


def test_links_and_devices_in_a_tar(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as opened:
        for name, kind in (
            ("soft.png", tarfile.SYMTYPE),
            ("hard.png", tarfile.LNKTYPE),
            ("pipe.png", tarfile.FIFOTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            opened.addfile(info)
        for color in ("red", "blue"):
            info = tarfile.TarInfo("./twice.png")
            info.size = len(picture(color))
            opened.addfile(info, io.BytesIO(picture(color)))
    index = scan(tmp_path / "a.tar", max_bad=1)
    assert dict(index.rejected) == {
        "soft.png": "a link to another member",
        "hard.png": "a link to another member",
        "pipe.png": "not a regular file",
    }
    assert index.pictures()[0].load().getpixel((0, 0)) == (0, 0, 255)  # as tar itself takes the last one
    assert "twice.png: is in the archive twice; the last one is used" in index.unread


@pytest.mark.parametrize(("raw", "name"), [("süß.png".encode(), "süß.png"), ("süß.png".encode("cp437"), "süß.png")])
def test_zip_names_without_the_flag_for_utf8(raw, name, tmp_path):
    stand_in = "x" * len(raw)
    data = write(tmp_path / "a.zip", {stand_in: picture()}).read_bytes()
    (tmp_path / "a.zip").write_bytes(data.replace(stand_in.encode(), raw))
    assert [entry.key for entry in scan(tmp_path / "a.zip").entries] == [name]


def test_names_by_windows_and_names_that_are_no_utf8(tmp_path):
    info = zipfile.ZipInfo("x")
    info.filename = "cats\\a.png"
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as opened:
        opened.writestr(info, picture())
    assert [entry.key for entry in scan(tmp_path / "a.zip").entries] == ["cats/a.png"]
    write(tmp_path / "a.tar", {"caf\udce9.png": picture(), "caf\udce9.txt": b"a cat"})
    index = scan(tmp_path / "a.tar", index_cache=tmp_path / "pictures.safetensors")
    assert captions(index) == {"caf\udce9.png": "a cat"}
    assert scan(tmp_path / "a.tar", index_cache=tmp_path / "pictures.safetensors") == index


def test_bombs(tmp_path):
    write(tmp_path / "a.zip", {"a.png": bytes(5_000_000)})
    with pytest.raises(LdmkitError, match=r"a\.zip: not a zip archive that can be read: would unpack to 5,000,000"):
        scan(tmp_path / "a.zip")
    write(tmp_path / "a.tgz", {"a.png": bytes(5_000_000)})
    with pytest.raises(LdmkitError, match="would unpack to more than"):
        scan(tmp_path / "a.tgz")
    data = bytearray(write(tmp_path / "a.zip", {"a.png": picture(), "b.png": picture("blue")}).read_bytes())
    second = data.rindex(b"PK\x01\x02")
    struct.pack_into("<I", data, second + 42, 0)  # the second member shares the first one's bytes
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(LdmkitError, match="overlaps another member"):
        scan(tmp_path / "a.zip")


def test_a_member_that_lies_about_its_size_or_content(tmp_path):
    data = write(tmp_path / "a.zip", {"a.png": picture(), "b.png": picture("blue")}).read_bytes()
    short, wrong = bytearray(data), bytearray(data)
    struct.pack_into("<I", short, data.index(b"PK\x01\x02") + 24, 10)
    wrong[data.index(b"PK\x01\x02") + 16] ^= 1
    for changed, said in ((short, r"bytes"), (wrong, "checksum is wrong")):
        (tmp_path / "a.zip").write_bytes(changed)
        index = scan(tmp_path / "a.zip", max_bad=1)
        assert [entry.key for entry in index.entries] == ["b.png"]
        assert "damaged in its archive" in index.rejected[0][1]
        assert said in index.rejected[0][1]


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("./a.png", "a.png"),
        ("b//c.png", "b/c.png"),
        ("d/./e.png", "d/e.png"),
        ("f/C:g.png", "f/C:g.png"),
        *((name, None) for name in ("../out.png", "h/../i.png", "h/..", "/root.png", "C:drive.png", "C:/drive.png")),
    ],
)
def test_names_in_a_tar(name, key, tmp_path):
    """POSIX.1, 4.13: dots and empty parts of a path name nothing; what could lead out is no key."""
    archive = open_archive(write(tmp_path / "a.tar", {"first.png": b"1", name: b"22", "last.png": b"333"}))
    assert list(archive.members) == sorted(["first.png", "last.png", *filter(None, [key])])
    assert archive.rejected == ([] if key else [(name, "its name leads out of the archive")])
    assert [archive.read(each, 9) for each in archive.members if each != key] == [b"1", b"333"]


def test_more_members_than_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr("ldmkit.data.archives.MAX_MEMBERS", 3)
    archive = open_archive(write(tmp_path / "a.tar", {f"{number}.png": b"1" for number in range(6)}))
    assert archive.rejected == [("", "cut off or damaged after 4 files (more than 3 members)")]


@pytest.mark.parametrize("where", ["data", "header", "middle"])
def test_a_tar_that_is_cut_or_damaged_says_so(where, tmp_path):
    data = bytearray(write(tmp_path / "a.tar", {f"{c}.png": picture(c) for c in ("red", "blue", "lime")}).read_bytes())
    third = data.index(b"lime.png")
    if where == "middle":
        data[third + 148 : third + 156] = b"\xff" * 8  # the header's checksum
    (tmp_path / "a.tar").write_bytes(data[: {"data": third + 530, "header": third + 100, "middle": len(data)}[where]])
    index = scan(tmp_path / "a.tar", max_bad=1)
    assert [entry.key for entry in index.entries] == ["blue.png", "red.png"]
    assert any("cut off" in reason or "damaged at byte" in reason for _, reason in index.rejected)
    assert (("lime.png", "cut off with its archive") in index.rejected) == (where == "data")


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tgz", "a.tar.xz"])
def test_what_is_no_archive(name, tmp_path):
    (tmp_path / name).write_bytes(b"<html>403</html>")
    with pytest.raises(LdmkitError, match=r"not a (zip|tar) archive that can be read"):
        scan(tmp_path / name)
    (tmp_path / "a.png").write_bytes(picture())
    ((key, reason),) = scan(tmp_path, max_bad=1).rejected
    assert key == name
    assert "archive that can be read" in reason
