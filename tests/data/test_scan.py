import hashlib
import json
import os
import pickle
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldmkit.components.protocols import Picture
from ldmkit.data.index_cache import read_cache
from ldmkit.data.pictures import PictureIndex, scan
from ldmkit.data.rows import Rows
from ldmkit.errors import LdmkitError


def draw(path, color="red", size=(6, 4)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)
    return path


def keys(index):
    return [entry.key for entry in index.entries]


def test_keys_are_relative_paths_with_ending(tmp_path):
    for name in ("b/a.png", "a.png", "a.jpg", "B.BMP", "b.png", "ü\n.webp"):
        draw(tmp_path / name)
    for name in ("notes.txt", ".hidden.png", ".git/x.png", "metadata.jsonl", "x.svg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    index = scan(tmp_path)
    assert keys(index) == ["B.BMP", "a.jpg", "a.png", "b.png", "b/a.png", "ü\n.webp"]
    assert index.rejected == ()
    assert len(index) == 6


def test_entry_and_picture(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.new("RGB", (6, 4), "blue").save(tmp_path / "a.png", exif=exif)
    index = scan(tmp_path)
    (entry,) = index.entries
    data, status = (tmp_path / "a.png").read_bytes(), (tmp_path / "a.png").stat()
    assert (entry.width, entry.height) == (4, 6)
    assert (entry.size, entry.mtime_ns) == (len(data), status.st_mtime_ns)
    assert entry.sha256 == hashlib.sha256(data).hexdigest()
    (picture,) = pickle.loads(pickle.dumps(index.pictures()))  # noqa: S301 - our own bytes, as loader processes do
    assert isinstance(picture, Picture)
    assert (picture.key, picture.path) == ("a.png", tmp_path / "a.png")
    assert picture.load().size == (4, 6)


def test_hash_changes_exactly_with_keys_and_contents(tmp_path):
    draw(tmp_path / "a.png", "red")
    draw(tmp_path / "b.png", "blue")
    index = scan(tmp_path)
    first, second = ((tmp_path / name).read_bytes() for name in ("a.png", "b.png"))
    expected = hashlib.sha256(
        b"a.png\0" + hashlib.sha256(first).digest() + b"b.png\0" + hashlib.sha256(second).digest()
    )
    assert index.hash == expected.hexdigest()
    os.utime(tmp_path / "a.png", (1, 1))
    assert scan(tmp_path).hash == index.hash
    (tmp_path / "b.png").rename(tmp_path / "c.png")
    assert scan(tmp_path).hash != index.hash


def test_broken_files_are_left_out_with_the_reason(tmp_path):
    for number in range(12):
        draw(tmp_path / f"{number}.png", size=(number + 1, 3))
    whole = draw(tmp_path / "cut.jpg", size=(64, 64)).read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.png").touch()
    (tmp_path / "eps.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n")
    os.mkfifo(tmp_path / "pipe.png")  # opening it would wait for ever
    index = scan(tmp_path, max_bad=0.25)
    assert len(index) == 12
    reasons = dict(index.rejected)
    assert list(reasons) == ["cut.jpg", "empty.png", "eps.png", "pipe.png"]
    assert "truncated" in reasons["cut.jpg"].lower()
    assert "empty" in reasons["empty.png"]
    assert "not a JPEG, PNG" in reasons["eps.png"]
    assert "not a regular file" in reasons["pipe.png"]
    with pytest.raises(LdmkitError, match=r"(?s)4 of 16 files.*data\.max_bad = 0\.2 .*cut\.jpg: damaged"):
        scan(tmp_path, max_bad=0.2)


def test_links_are_not_followed(tmp_path):
    outside = draw(tmp_path / "outside" / "secret.png")
    folder = tmp_path / "data"
    draw(folder / "a.png")
    (folder / "link.png").symlink_to(outside)
    (folder / "loop").symlink_to(folder)
    (folder / "dangling.jpg").symlink_to(tmp_path / "nowhere")
    index = scan(folder, max_bad=1)
    assert keys(index) == ["a.png"]
    assert [key for key, reason in index.rejected if "symbolic link" in reason] == ["dangling.jpg", "link.png", "loop"]
    (tmp_path / "entrance").symlink_to(folder)  # the folder itself is the user's own choice
    assert keys(scan(tmp_path / "entrance", max_bad=1)) == ["a.png"]


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir(), lambda path: path.touch()])
def test_missing_or_empty_folder(tmp_path, make):
    folder = tmp_path / "pictures"
    make(folder)
    with pytest.raises(LdmkitError, match=r"data\.path: .*pictures .*--set data\.path=DIR"):
        scan(folder)


@pytest.mark.parametrize(("path", "hint"), [("~/photos", "write the whole path"), ("C:\new", "use single quotes")])
def test_a_path_that_a_recipe_reads_otherwise_than_meant(path, hint):
    with pytest.raises(LdmkitError, match=hint):
        scan(Path(path))


def test_nothing_usable_is_an_error_whatever_max_bad(tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(LdmkitError, match="1 of 1 files"):
        scan(tmp_path, max_bad=1)


def test_names_that_are_no_utf8_round_trip(tmp_path):
    try:
        draw(tmp_path / os.fsdecode(b"caf\xe9.png"))
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    cache = tmp_path / ".pictures.safetensors"
    index = scan(tmp_path, index_cache=cache)
    assert os.fsencode(index.entries[0].key) == b"caf\xe9.png"
    assert index.pictures()[0].load().size == (6, 4)
    assert len(index.hash) == 64
    assert index.split(0.5) == ([0], [])
    assert scan(tmp_path, index_cache=cache) == index


def test_remarks_name_copies_clashes_and_animations(tmp_path):
    draw(tmp_path / "a.png", "red")
    (tmp_path / "copy.png").write_bytes((tmp_path / "a.png").read_bytes())
    for form in ("NFC", "NFD"):
        draw(tmp_path / (unicodedata.normalize(form, "é") + ".png"), "blue" if form == "NFC" else "green")
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "lime")]
    frames[0].save(tmp_path / "moves.gif", save_all=True, append_images=frames[1:])
    remarks = "\n".join(scan(tmp_path).remarks())
    assert "copy.png: the same content as a.png" in remarks
    assert "by Unicode normalisation only" in remarks
    assert "moves.gif: has several frames" in remarks


def test_cache_reads_only_what_changed(tmp_path, monkeypatch):
    cache = tmp_path / "run" / "pictures.safetensors"
    folder = tmp_path / "data"
    for number in range(5):
        draw(folder / f"{number}.png", size=(number + 1, 2))
    (folder / "bad.png").write_bytes(b"bad")
    counted = []
    index = scan(folder, max_bad=0.5, index_cache=cache, progress=lambda done, total: counted.append((done, total)))
    assert counted == [(number, 6) for number in range(1, 7)]

    read = []
    original = Path.open

    def spy(self, *rest, **more):
        read.append(self.name)
        return original(self, *rest, **more)

    monkeypatch.setattr(Path, "open", spy)
    assert scan(folder, max_bad=0.5, index_cache=cache) == index
    assert "0.png" not in read
    read.clear()
    draw(folder / "0.png", size=(9, 9))
    (folder / "1.png").unlink()
    changed = scan(folder, max_bad=0.5, index_cache=cache)
    assert "0.png" in read
    assert "2.png" not in read
    assert "bad.png" not in read
    assert keys(changed) == ["0.png", "2.png", "3.png", "4.png"]
    assert changed.entries[0].width == 9
    assert list(read_cache(cache, folder).names) == ["0.png", "2.png", "3.png", "4.png", "bad.png"]


def test_change_of_the_same_length_is_noticed(tmp_path):
    cache = tmp_path / "pictures.safetensors"
    path = draw(tmp_path / "a.bmp", "red")
    os.utime(path, ns=(10**18, 10**18))
    before = scan(tmp_path, index_cache=cache)
    draw(path, "blue")
    os.utime(path, ns=(10**18, 10**18 + 1))
    after = scan(tmp_path, index_cache=cache)
    assert before.entries[0].size == after.entries[0].size
    assert before.hash != after.hash


@pytest.mark.parametrize("name", ["pictures.safetensors", "pictures.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"version": 0}', b"\xff"])
def test_unreadable_cache_is_made_anew(tmp_path, content, name):
    draw(tmp_path / "a.png")
    cache = tmp_path / "pictures.safetensors"
    (tmp_path / name).write_bytes(content)
    assert len(scan(tmp_path, index_cache=cache)) == 1
    assert list(read_cache(cache, tmp_path).names) == ["a.png"]


def test_a_cache_with_another_byte_is_made_anew(tmp_path):
    for number in range(3):
        draw(tmp_path / "set" / f"{number}.png", size=(number + 5, 3))
    cache = tmp_path / "pictures.safetensors"
    index = scan(tmp_path / "set", index_cache=cache)
    whole = cache.read_bytes()
    for place in range(0, len(whole), 7):
        cache.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert not len(read_cache(cache, tmp_path / "set"))
    assert scan(tmp_path / "set", index_cache=cache) == index
    assert read_cache(cache, tmp_path / "set") == index.entries


@pytest.mark.parametrize("sealed", [True, False])
def test_the_list_of_a_run_begun_before_is_taken_over(tmp_path, sealed):
    """As versions of before 2027 wrote it, in JSON; a width that no file has shows that none was decoded."""
    rows = {}
    for name in ("a.png", "b.png", "caf\udce9.png", "bad.png"):
        status = draw(tmp_path / "set" / name).stat()
        rows[name] = {"size": status.st_size, "mtime_ns": status.st_mtime_ns}
        content = {"sha256": hashlib.sha256(os.fsencode(name)).hexdigest(), "width": 99, "height": 7, "note": None}
        rows[name] |= {"reason": "no picture: ü"} if name == "bad.png" else content
    rows["b.png"] |= {"note": "several frames", "look": ["0f" * 32, 200, [3.5, 1.0]]}
    table = json.dumps({"version": 3, "folder": str(tmp_path / "set"), "pictures": rows})
    seal = f', "sha256": "{hashlib.sha256(table.encode()).hexdigest()}"}}' if sealed else "}"
    (tmp_path / "pictures.json").write_text(table[:-1] + seal)
    read = []
    for _ in range(2):
        index = scan(
            tmp_path / "set",
            index_cache=tmp_path / "pictures.safetensors",
            progress=lambda *done: read.append(done),
            max_bad=1,
        )
        assert read == []
        assert index.rejected == (("bad.png", "no picture: ü"),)
        assert {e.key: (e.width, e.height, e.sha256, e.note) for e in index.entries} == {
            key: tuple(row[name] for name in ("width", "height", "sha256", "note"))
            for key, row in rows.items()
            if "reason" not in row
        }
        assert index.entries[1].look == ("0f" * 32, 200, (3.5, 1.0))
        assert not (tmp_path / "pictures.json").exists()


def test_cache_of_another_folder_is_not_used(tmp_path):
    for name, size in (("one", (3, 5)), ("two", (5, 3))):
        path = draw(tmp_path / name / "a.bmp", size=size)
        path.write_bytes(path.read_bytes().ljust(400, b"\0"))
        os.utime(path, ns=(10**18, 10**18))
    cache = tmp_path / "pictures.safetensors"
    assert scan(tmp_path / "one", index_cache=cache).entries[0].width == 3
    assert scan(tmp_path / "two", index_cache=cache).entries[0].width == 5


def test_sample_is_even_and_keeps_the_cache(tmp_path):
    cache = tmp_path / "pictures.safetensors"
    for number in range(60):
        draw(tmp_path / f"{'a' if number < 30 else 'b'}{number:02}.png")
    index = scan(tmp_path, max_pictures=20, index_cache=cache)
    assert len(index) == 20
    assert keys(index) == sorted(keys(index))
    assert 4 <= sum(key.startswith("a") for key in keys(index)) <= 16
    assert keys(scan(tmp_path, max_pictures=20)) == keys(index)
    assert set(keys(index)) < set(keys(scan(tmp_path, max_pictures=40, index_cache=cache)))
    scan(tmp_path, max_pictures=20, index_cache=cache)
    assert len(read_cache(cache, tmp_path)) == 40


def made_up_index(num, same=()):
    contents = [hashlib.sha256(b"same" if n in same else b"%d" % n).hexdigest() for n in range(num)]
    row = {"size": 1, "mtime_ns": 1, "width": 1, "height": 1, "note": None}
    rows = ((f"{n:04}.png", {**row, "sha256": content}) for n, content in enumerate(contents))
    return PictureIndex(Path("x"), Rows.of(rows), ())


def test_split_by_its_formula():
    index = made_up_index(3000, same=(7, 1500, 2000))
    for seed, share in ((0, 0.05), (41, 0.3)):
        drawn = [hashlib.sha256(f"{seed}/{n:04}.png".encode()).digest()[:7] for n in range(3000)]
        drawn[1500] = drawn[2000] = drawn[7]
        held = [n for n, number in enumerate(drawn) if int.from_bytes(number, "big") / 2**56 < share]
        assert index.split(share, seed) == (sorted(set(range(3000)) - set(held)), held)


def test_split_is_a_stable_partition():
    index = made_up_index(2000)
    train, held = index.split(0.05, seed=3)
    assert sorted(train + held) == list(range(2000))
    assert train == sorted(train)
    assert abs(len(held) - 100) < 4 * np.sqrt(2000 * 0.05 * 0.95)
    assert index.split(0.05, seed=3) == (train, held)
    assert index.split(0.05, seed=4)[1] != held
    # Adding pictures moves none, and a larger share keeps the smaller one's.
    assert made_up_index(1000).split(0.05, seed=3)[1] == [number for number in held if number < 1000]
    assert set(held) < set(index.split(0.1, seed=3)[1])
    assert index.split(0, seed=3) == (list(range(2000)), [])


def test_split_of_few_has_two_sides_and_copies_stay_together():
    for num in range(2, 20):
        for share in (0.01, 0.99):
            train, held = made_up_index(num).split(share)
            assert train
            assert held
    assert made_up_index(1).split(0.5) == ([0], [])
    for seed in range(20):
        sides = made_up_index(30, same=(0, 7, 20)).split(0.3, seed)
        assert sum(any(number in side for number in (0, 7, 20)) for side in sides) == 1
    with pytest.raises(LdmkitError, match=r"data\.held_out"):
        made_up_index(3).split(1.0)
