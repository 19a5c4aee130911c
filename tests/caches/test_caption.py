"""The caption stage: who wrote what, and going on behind a kill."""

import base64
import io
import json
import re
import shutil
import signal
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ldmkit.data.captions import caption_files_hash, captioners, captions_hash, read_captions
from ldmkit.data.sources import Source
from ldmkit.errors import LdmkitError

PLUGIN = '''
"""A captioner that notes what it was asked for."""
import os, signal
from pathlib import Path
from typing import Annotated
from pydantic import Field
from ldmkit import hookimpl

Speed = Field(gt=0, json_schema_extra={"affects_result": False})

class Slow:
    """Says the number."""
    def __init__(
        self, *, prefix: str = "number", die_at: str = "", batch_size: int = 64, threads: Annotated[int, Speed] = 1
    ):
        self.prefix, self.die_at, self.batch_size = prefix, die_at, batch_size

    def caption(self, pictures):
        for picture in pictures:
            with open("asked.txt", "a") as file:
                file.write(picture.key + "\\n")
            if picture.key == self.die_at:
                os.kill(os.getpid(), signal.SIGKILL)
        return [None if p.key == "007.png" else f"{self.prefix} {Path(p.key).stem}" for p in pictures]

@hookimpl
def register_captioners():
    return {"slow": Slow}
'''


@pytest.fixture
def many(workshop: Any) -> Any:
    """150 pictures without captions, and a captioner of the user's own."""
    shutil.rmtree(workshop.folder / "pictures")
    (workshop.folder / "pictures").mkdir()
    for i in range(150):
        pixels = np.full((8, 8, 3), i, np.uint8)
        Image.fromarray(pixels).save(workshop.folder / "pictures" / f"{i:03d}.png")
    (workshop.folder / "slow.py").write_text(PLUGIN)
    recipe = workshop.folder / "tiny.toml"
    recipe.write_text('plugins = ["./slow.py"]\n[caption]\nuse = "slow"\nprefix = "picture"\n' + recipe.read_text())
    return workshop


def rows(workshop: Any) -> list[dict[str, Any]]:
    text = (workshop.run / "captions" / "captions.jsonl").read_text()
    assert text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def test_goes_on_behind_a_kill(many: Any, processes: Any) -> None:
    asked = many.folder / "asked.txt"
    # The options are part of the inputs; what kills is not, so it is changed behind the pipeline's back.
    plugin = many.folder / "slow.py"
    plugin.write_text(PLUGIN.replace('die_at: str = ""', 'die_at: str = "100.png"'))
    code, output = processes.run(many.folder, ("caption", "tiny.toml"))
    assert code == -signal.SIGKILL, output
    assert len(rows(many)) == 64
    captions = many.run / "captions" / "captions.jsonl"
    captions.write_bytes(captions.read_bytes()[:-20])  # and the last line did not reach the disk
    asked.unlink()
    plugin.write_text(PLUGIN)
    code, output = processes.run(many.folder, ("caption", "tiny.toml"))
    assert code == 0, output
    assert asked.read_text().split() == [f"{i:03d}.png" for i in range(63, 150)]
    found = rows(many)
    assert [row["file"] for row in found] == [f"{i:03d}.png" for i in range(150)]
    expected = {"caption": "picture 100", "captioner": "slow", "options": {"prefix": "picture"}}
    assert found[100] == {"file": "100.png", **expected}
    assert found[7] == {"file": "007.png", "caption": None, "captioner": None, "options": {}}
    record = json.loads((many.run / "captions" / "record.json").read_text())
    assert record["facts"] == {"captions": {"slow": 149, "none": 1}}


def test_a_stop_waits_for_the_captioners_own_batch(many: Any, processes: Any) -> None:
    for i in range(0, 150, 3):  # captioned by hand, which is not what is slow
        (many.folder / "pictures" / f"{i:03d}.txt").write_text("by hand")
    plugin = many.folder / "slow.py"
    asks = 'die_at: str = "100.png", batch_size: int = 4'
    plugin.write_text(
        PLUGIN.replace('die_at: str = "", batch_size: int = 64', asks).replace("signal.SIGKILL", "signal.SIGTERM")
    )
    code, output = processes.run(many.folder, ("caption", "tiny.toml"))
    assert code == 143, output
    asked = (many.folder / "asked.txt").read_text().split()
    assert 1 <= len(asked) - asked.index("100.png") <= 4  # to the end of its four
    found = rows(many)
    assert len(found) == len({row["file"] for row in found}) < 150
    assert sum(row["captioner"] != "sidecar" for row in found) == len(asked)
    assert f"caption: saved, {150 - len(found)} pictures left; the same command resumes" in output


def test_what_says_how_fast_captions_nothing_anew(many: Any, processes: Any) -> None:
    commands = [("caption", "tiny.toml", "--set", f"caption.{option}") for option in ("threads=1", "threads=2")]
    code, output = processes.run(many.folder, *commands, ("caption", "tiny.toml", "--set", "caption.batch_size=63"))
    assert code == 0, output
    assert len((many.folder / "asked.txt").read_text().split()) == 2 * 150  # and not at the second command
    assert "everything is up to date" in output
    assert re.search(r"out of date \(.*caption\.batch_size", output)


@pytest.mark.parametrize("keep", [True, False])
def test_keep_existing(keep: bool, many: Any, processes: Any) -> None:
    for name, text in (("003", "by hand"), ("007", "by hand too"), ("009", " \n")):
        (many.folder / "pictures" / f"{name}.txt").write_text(text)
    code, output = processes.run(
        many.folder, ("caption", "tiny.toml", "--set", f"caption.keep_existing={str(keep).lower()}")
    )
    assert code == 0, output
    found = {row["file"]: (row["caption"], row["captioner"]) for row in rows(many)}
    if keep:
        assert found["009.png"] == ("", "sidecar")  # an empty caption is one
        assert found["003.png"] == ("by hand", "sidecar")
        assert found["007.png"] == ("by hand too", "sidecar")
        assert "003.png" not in (many.folder / "asked.txt").read_text()
    else:
        assert found["009.png"] == ("picture 009", "slow")
        assert found["003.png"] == ("picture 003", "slow")
        assert found["007.png"] == (None, None)


def test_captions_file(tmp_path: Path) -> None:
    path = tmp_path / "captions.jsonl"
    assert captioners(path) == {}
    with pytest.raises(LdmkitError, match=r"captions\.jsonl: no captions yet"):
        read_captions(path)
    lines = [
        {"file": "a", "caption": "one", "captioner": "me"},
        {"file": "b", "caption": None, "captioner": None},
        {"file": "ü/c", "caption": "line\u2028break", "captioner": "me"},
        {"file": "a", "caption": "two", "captioner": "you"},
    ]
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines) + '{"file": "d", "ca')
    assert read_captions(path) == {"a": "two", "ü/c": "line\u2028break"}
    assert captioners(path) == {"a": "you", "b": None, "ü/c": "me"}
    first = captions_hash(path)
    path.write_text("".join(json.dumps(line) + "\n" for line in reversed(lines[1:])))
    assert captions_hash(path) == first  # order and spelling of the file do not matter
    path.write_text(json.dumps({"file": "a", "caption": "three"}))
    assert captions_hash(path) != first


@pytest.mark.parametrize(
    "line",
    [
        b'{"file": "b", "caption": "' + 64 * b"\\n" + b'"}',
        b"",
        b"3",
        b'{"file": "b"}',
        b'{"file": "b", "ca',
        b'{"file": "\xff", "caption": "x"}',
    ],
)
def test_a_line_that_is_no_captions(line: bytes, tmp_path: Path) -> None:
    """Edited by hand and spoilt, it is named; at the end it may be what a kill left of one."""
    path = tmp_path / "captions.jsonl"
    whole = b'{"file": "a", "caption": "one", "captioner": "me"}'
    path.write_bytes(b"\n".join([whole, line, whole, b""]))
    for read in (read_captions, captioners):
        with pytest.raises(LdmkitError, match=r"captions\.jsonl, line 2: needs"):
            read(path)
    path.write_bytes(b"\n".join([whole, b'{"file": "b", "ca']))
    assert read_captions(path) == {"a": "one"}


def test_caption_files_hash(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    found = {caption_files_hash(Source(tmp_path))}
    for name in ("a.txt", "sub/b.caption", "metadata.jsonl"):
        (tmp_path / name).write_text("x")
        found.add(caption_files_hash(Source(tmp_path)))
    (tmp_path / "a.txt").write_text("xy")
    found.add(caption_files_hash(Source(tmp_path)))
    assert len(found) == 5
    (tmp_path / "a.png").write_text("x")
    assert caption_files_hash(Source(tmp_path)) in found


class Figures(HTMLParser):
    """The pictures of a page, and the words below each."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.pairs: list[tuple[Image.Image, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [str(value) for name, value in attrs if name in ("src", "href")]
        if tag == "img":
            data = base64.b64decode(self.loads[-1].removeprefix("data:image/jpeg;base64,"))
            self.pairs.append((Image.open(io.BytesIO(data)), ""))

    def handle_data(self, data: str) -> None:
        if self.pairs:
            self.pairs[-1] = (self.pairs[-1][0], f"{self.pairs[-1][1]} {data}")


def test_preview_shows_captions_beside_their_pictures_and_keeps_none(many: Any, processes: Any) -> None:
    for i in range(0, 150, 2):
        (many.folder / "pictures" / f"{i:03d}.txt").write_text("by hand")
    command = ("caption", "tiny.toml", "--preview", "5", "--set", "caption.prefix=<b>number")
    code, output = processes.run(many.folder, command)
    assert code == 0, output
    asked = ["001.png", "031.png", "061.png", "091.png", "121.png"]  # spread over what nobody captioned
    assert (many.folder / "asked.txt").read_text().split() == asked
    page = Figures()
    page.feed((many.run / "captions-preview.html").read_text())
    assert [words.split() for _, words in page.pairs] == [["<b>number", key[:3], key] for key in asked]
    assert [round(np.asarray(image).mean()) for image, _ in page.pairs] == [int(key[:3]) for key in asked]
    assert all(each.startswith("data:") for each in page.loads)
    assert "caption: 031.png: <b>number 031" in output
    assert "for the 75 without one" in output
    assert not (many.run / "captions").exists()

    code, output = processes.run(many.folder, ("caption", "tiny.toml", "--preview", "500"))
    assert code == 0, output
    assert "007.png: (no caption)" in output
    for i in range(150):
        (many.folder / "pictures" / f"{i:03d}.txt").write_text("by hand")
    code, output = processes.run(many.folder, ("caption", "tiny.toml", "--preview", "5"))
    assert code == 1
    assert "caption.use = 'slow' would not be asked for anything" in output


def test_a_preview_without_pictures_leaves_no_folder(many: Any, processes: Any) -> None:
    code, output = processes.run(
        many.folder, ("caption", "tiny.toml", "--preview", "5", "--set", "data.path=nowhere", "--set", "name=other")
    )
    assert code == 1
    assert "nowhere does not exist" in output
    assert not (many.folder / "runs" / "other").exists()
