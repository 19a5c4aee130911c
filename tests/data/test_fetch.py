import socket
import stat
import struct
import zipfile

import pytest
from PIL import Image

from ldmkit.data import fetch as fetching
from ldmkit.data.fetch import fetch, unzip
from ldmkit.data.pictures import scan
from ldmkit.errors import LdmkitError


def write_zip(path, members, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as opened:
        for name, data in members:
            opened.writestr(name, data)
    return path


def leaves_nothing(folder):
    return not folder.exists() and not [path for path in folder.parent.iterdir() if path.name.endswith(".partial")]


def test_pictures_and_captions_are_unpacked(tmp_path):
    Image.new("RGB", (4, 4), "red").save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    archive = write_zip(
        tmp_path / "cat.zip",
        [
            ("cat/", b""),
            ("cat/a.png", data),
            ("cat/a.txt", "a cat"),
            ("cat/run.sh", "x"),
            ("cat/._a.png", "x"),
        ],
    )
    counted = []
    unzip(archive, tmp_path / "data", progress=lambda done, total: counted.append((done, total)))
    found = sorted(path.relative_to(tmp_path / "data").as_posix() for path in (tmp_path / "data").rglob("*.*"))
    assert found == ["cat/a.png", "cat/a.txt"]
    assert counted == [(1, 2), (2, 2)]
    assert len(scan(tmp_path / "data")) == 1


@pytest.mark.parametrize("name", ["../evil.png", "/evil.png", "a/../../evil.png", "..\\evil.png", "C:/evil.png"])
def test_members_that_land_outside(tmp_path, name):
    archive = write_zip(tmp_path / "cat.zip", [("a.png", b"x"), (name, b"x")])
    with pytest.raises(LdmkitError, match="outside the folder"):
        unzip(archive, tmp_path / "deep" / "data")
    assert not (tmp_path / "deep").exists()
    assert not list(tmp_path.rglob("evil.png"))


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_links_and_devices(tmp_path, kind):
    member = zipfile.ZipInfo("link.png")
    member.create_system = 3
    member.external_attr = (kind | 0o777) << 16
    with pytest.raises(LdmkitError, match=r"link\.png.*link or a device"):
        unzip(write_zip(tmp_path / "cat.zip", [(member, "/etc/passwd")]), tmp_path / "data")
    assert leaves_nothing(tmp_path / "data")


def test_bomb(tmp_path):
    archive = write_zip(tmp_path / "cat.zip", [("a.png", bytes(50_000_000))])
    assert archive.stat().st_size < 52_000
    with pytest.raises(LdmkitError, match=r"would unpack to 50,000,000 bytes"):
        unzip(archive, tmp_path / "data")
    assert leaves_nothing(tmp_path / "data")


def test_bomb_that_lies_about_its_size(tmp_path):
    archive = write_zip(tmp_path / "cat.zip", [("a.png", bytes(5_000_000))])
    data = bytearray(archive.read_bytes())
    central = data.index(b"PK\x01\x02")
    struct.pack_into("<I", data, central + 24, 1000)  # uncompressed size
    archive.write_bytes(data)
    with pytest.raises(LdmkitError, match="not a zip archive"):
        unzip(archive, tmp_path / "data")
    assert leaves_nothing(tmp_path / "data")


def test_caps_on_count_and_bytes(tmp_path, monkeypatch):
    archive = write_zip(tmp_path / "cat.zip", [(f"{n}.png", b"12345") for n in range(4)], zipfile.ZIP_STORED)
    monkeypatch.setattr(fetching, "MAX_MEMBERS", 3)
    with pytest.raises(LdmkitError, match="4 members"):
        unzip(archive, tmp_path / "data")
    monkeypatch.setattr(fetching, "MAX_MEMBERS", 4)
    monkeypatch.setattr(fetching, "MAX_UNPACKED_BYTES", 19)
    with pytest.raises(LdmkitError, match="20 bytes"):
        unzip(archive, tmp_path / "data")
    monkeypatch.setattr(fetching, "MAX_UNPACKED_BYTES", 20)
    unzip(archive, tmp_path / "data")


def test_damaged_archives(tmp_path):
    whole = write_zip(tmp_path / "cat.zip", [("a.png", bytes(range(256)) * 40)], zipfile.ZIP_STORED).read_bytes()
    for number, data in enumerate((b"", b"PK", whole[: len(whole) // 2], whole.replace(b"\x07\x08\x09", b"xyz", 1))):
        archive = tmp_path / f"{number}.zip"
        archive.write_bytes(data)
        with pytest.raises(LdmkitError, match=rf"{number}\.zip: not a zip archive"):
            unzip(archive, tmp_path / "data")
        assert leaves_nothing(tmp_path / "data")
    with pytest.raises(LdmkitError, match="cannot be read"):
        unzip(tmp_path / "none.zip", tmp_path / "data")


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")  # of the writer, which is the point here
def test_twice_the_same_name_and_nothing_at_all(tmp_path):
    with pytest.raises(LdmkitError, match=r"'a\.png' is there twice"):
        unzip(write_zip(tmp_path / "1.zip", [("a.png", b"x"), ("a.png", b"y")]), tmp_path / "data")
    with pytest.raises(LdmkitError, match="no pictures"):
        unzip(write_zip(tmp_path / "2.zip", [("readme.md", b"x")]), tmp_path / "data")
    assert leaves_nothing(tmp_path / "data")


def test_toy_cats_are_drawn_once(tmp_path):
    folder = tmp_path / "deep" / "toy"
    fetch("toy-cats", folder, num_pictures=3, size=32)
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert len(before) == 4
    assert scan(folder).entries[0].width == 32
    fetch("toy-cats", folder, num_pictures=3)
    fetch("toy-cats", folder, num_pictures=2)  # fewer are picked from those that are there
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    with pytest.raises(LdmkitError, match=r"data\.num_pictures is 5.*holds 3 toy cats"):
        fetch("toy-cats", folder, num_pictures=5)


def test_a_folder_of_ones_own_is_left_as_it_is(tmp_path):
    (tmp_path / "mine.png").write_bytes(b"x")
    for source in ("folder", "toy-cats", "hub:owner/name/cat.zip"):
        fetch(source, tmp_path, num_pictures=100)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.png"]


def test_missing_folder_without_a_source(tmp_path):
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(LdmkitError, match=r"data\.path: .*--set data\.path=DIR"):
            fetch("folder", folder)


@pytest.mark.parametrize("source", ["hub:cat.zip", "hub:owner/cat.zip", "hub:a/b/c.tar", "http://x/a/b.zip"])
def test_unknown_source(tmp_path, source):
    with pytest.raises(LdmkitError, match=r"data\.source.*hub:OWNER/NAME\[@COMMIT\]/FILE\.zip"):
        fetch(source, tmp_path / "data")


def test_unreachable_hub_names_the_data_set(tmp_path, monkeypatch):
    constants = pytest.importorskip("huggingface_hub.constants")

    asked = []

    def no_network(*args, **_kwargs):
        asked.append(args)
        raise OSError("no network here")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(LdmkitError) as caught:
        fetch("hub:ziyang06315/cats_images_dataset/cat.zip", tmp_path / "data")
    message = str(caught.value)
    for part in ("ziyang06315/cats_images_dataset", "cat.zip", "revision main", "--set data.path=DIR"):
        assert part in message
    assert 1 <= len(asked) <= 2  # no retries, each of which would wait
    assert not (tmp_path / "data").exists()


def test_hub_archive_is_unpacked(tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    archive = write_zip(tmp_path / "cat.zip", [("cat/a.png", b"x")])
    asked = []

    def download(repository, filename, **options):
        asked.append((repository, filename, options["repo_type"], options["revision"], options["local_files_only"]))
        return str(archive)

    monkeypatch.setattr(hub, "hf_hub_download", download)
    fetch("hub:owner/name/deep/cat.zip", tmp_path / "data")
    fetch("hub:owner/name@a1b2c3/cat.zip", tmp_path / "pinned")
    assert asked == [
        ("owner/name", "deep/cat.zip", "dataset", "main", True),  # the cache comes first
        ("owner/name", "cat.zip", "dataset", "a1b2c3", True),
    ]
    assert (tmp_path / "data" / "cat" / "a.png").read_bytes() == b"x"
