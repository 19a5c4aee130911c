"""The captioners `filename` and `sidecar`."""

import json
from pathlib import Path

import pytest
from ldmkit_captions import Filename, Sidecar
from PIL import Image

from ldmkit import Captioner, LdmkitError, Picture


def picture(path: Path, key: str | None = None) -> Picture:
    return Picture(path=path, key=key or path.name, load=lambda: Image.new("RGB", (8, 8)))


def named(*keys: str) -> list[Picture]:
    return [picture(Path("/data") / key, key) for key in keys]


def test_both_are_captioners() -> None:
    assert isinstance(Filename(), Captioner)
    assert isinstance(Sidecar(), Captioner)


@pytest.mark.parametrize(
    ("key", "caption"),
    [
        ("orange_cat-01.jpg", "orange cat"),
        ("sub/dir/Black cat (2).png", "Black cat"),
        ("grandma's cat.v2.webp", "grandma's cat v"),
        ("cat12.jpg", "cat"),
        ("mp3 player 3.jpg", "mp player"),
        ("4k_cat.jpg", "4k cat"),
        ("000123.jpg", None),
        ("---.jpg", None),
        ("cafe\u0301_de\u0301ja\u0300.jpg", "caf\u00e9 d\u00e9j\u00e0"),
        ("\u092c\u093f\u0932\u094d\u0932\u0940_1.jpg", "\u092c\u093f\u0932\u094d\u0932\u0940"),
    ],
)
def test_filename(key: str, caption: str | None) -> None:
    assert Filename().caption(named(key)) == [caption]


def test_filename_keeps_digits_where_asked() -> None:
    keys = ("orange_cat-01.jpg", "000123.jpg")
    assert Filename(strip_digits=False).caption(named(*keys)) == ["orange cat 01", "000123"]


def test_sidecar_files_go_before_metadata(tmp_path: Path) -> None:
    for name in ("a", "b", "c", "d"):
        (tmp_path / f"{name}.jpg").touch()
    (tmp_path / "a.txt").write_text("from txt")
    (tmp_path / "a.caption").write_text("from caption")
    (tmp_path / "b.caption").write_text("from caption\n")
    rows = [{"file_name": f"{name}.jpg", "text": "from metadata"} for name in ("a", "b", "c")]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    pictures = [picture(tmp_path / f"{name}.jpg") for name in ("a", "b", "c", "d")]
    assert Sidecar().caption(pictures) == ["from txt", "from caption", "from metadata", None]


def test_sidecar_metadata_belongs_to_its_folder(tmp_path: Path) -> None:
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "metadata.jsonl").write_text(json.dumps({"file_name": "a.jpg", "text": folder}))
    pictures = [picture(tmp_path / folder / "a.jpg", f"{folder}/a.jpg") for folder in ("x", "y")]
    assert Sidecar().caption(pictures) == ["x", "y"]


def test_sidecar_reads_metadata_once(tmp_path: Path) -> None:
    metadata = tmp_path / "metadata.jsonl"
    metadata.write_text(json.dumps({"file_name": "a.jpg", "text": "a cat"}))
    sidecar = Sidecar()
    assert sidecar.caption([picture(tmp_path / "a.jpg")]) == ["a cat"]
    metadata.unlink()
    assert sidecar.caption([picture(tmp_path / "a.jpg")]) == ["a cat"]
    assert Sidecar().caption([picture(tmp_path / "a.jpg")]) == [None]


def test_sidecar_stem_is_all_but_the_last_ending(tmp_path: Path) -> None:
    (tmp_path / "cat.v2.txt").write_text("second")
    assert Sidecar().caption([picture(tmp_path / "cat.v2.jpg"), picture(tmp_path / "cat.v2.png")]) == ["second"] * 2


@pytest.mark.parametrize(
    ("content", "caption"),
    [
        (b"\xef\xbb\xbfa cat\r\n", "a cat"),
        ("un chat\u00a0noir\non a mat".encode(), "un chat noir on a mat"),
        (b"", ""),
        (b" \n\t", ""),
    ],
)
def test_sidecar_text(tmp_path: Path, content: bytes, caption: str | None) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "a.jpg", "text": "not this"}))
    assert Sidecar().caption([picture(tmp_path / "a.jpg")]) == [caption]


def test_sidecar_metadata_with_bom_null_and_line_separator(tmp_path: Path) -> None:
    rows = ['{"file_name": "a.jpg", "text": "one\u2028two"}', '{"file_name": "b.jpg", "text": null}']
    (tmp_path / "metadata.jsonl").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(rows).encode())
    assert Sidecar().caption([picture(tmp_path / "a.jpg"), picture(tmp_path / "b.jpg")]) == ["one two", None]


def test_sidecar_other_column(tmp_path: Path) -> None:
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "a.jpg", "title": "a cat"}))
    assert Sidecar(column="title").caption([picture(tmp_path / "a.jpg")]) == ["a cat"]
    with pytest.raises(LdmkitError, match=r"line 1: a\.jpg has no text under 'text'; its keys are: title; .*column"):
        Sidecar().caption([picture(tmp_path / "a.jpg")])


def test_sidecar_json_of_several_captions(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"caption": ["one", "two\n\nlines"]}))
    (tmp_path / "b.json").write_text(json.dumps({"caption": [str(number) for number in range(70)]}))
    (tmp_path / "c.json").write_text(json.dumps({"caption": ["one", 2]}))
    sidecar = Sidecar()
    pictures = [picture(tmp_path / f"{name}.jpg") for name in "abc"]
    first, second, third = sidecar.caption(pictures)
    assert first == "one\ntwo lines"
    assert second == "\n".join(map(str, range(64)))
    assert third is None
    assert sidecar.remarks() == [f"{tmp_path / 'b.json'}: 70 captions; the first 64 are read"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"file_name": "b.jpg", "text": "cut', "not JSON"),
        ("[1, 2]", "needs an object"),
        ('{"text": "no name"}', "needs an object"),
        ('{"file_name": 3, "text": "x"}', "needs an object"),
        ('{"file_name": "b.jpg", "text": ["x", 1]}', "under 'text', but \\['x', 1\\]"),
        ('{"file_name": "b.jpg", "text": []}', r"no text under 'text', but \[\]"),
        ('{"file_name": "a.jpg", "text": "again"}', "has a row already"),
    ],
)
def test_sidecar_bad_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    metadata = tmp_path / "metadata.jsonl"
    metadata.write_text('{"file_name": "a.jpg", "text": "a cat"}\n\n' + line)
    with pytest.raises(LdmkitError, match=message) as caught:
        Sidecar().caption([picture(tmp_path / "a.jpg")])
    assert f"{metadata}, line 3:" in str(caught.value)


@pytest.mark.parametrize("name", ["a.txt", "metadata.jsonl"])
def test_sidecar_undecodable_file_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"caf\xe9")
    with pytest.raises(LdmkitError, match="not UTF-8") as caught:
        Sidecar().caption([picture(tmp_path / "a.jpg")])
    assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize("name", ["a.txt", "a.caption", "metadata.jsonl"])
def test_links_are_not_followed(tmp_path: Path, name: str) -> None:
    """A data set must not have any file of the user's read as a caption; a link to itself is one more link."""
    (tmp_path / "secret").write_text('{"file_name": "a.jpg", "text": "a secret"}')
    for target in (tmp_path / "secret", tmp_path / name, tmp_path / "nowhere"):
        (tmp_path / name).symlink_to(target)
        with pytest.raises(LdmkitError, match=f"{name}: a symbolic link, which is not followed"):
            Sidecar().caption([picture(tmp_path / "a.jpg")])
        (tmp_path / name).unlink()


def test_a_name_that_is_no_utf8_gives_no_caption() -> None:
    assert Filename().caption(named("caf\udce9.jpg", "cat.jpg")) == [None, "cat"]
