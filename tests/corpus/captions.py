"""Captions beside the pictures, in metadata.jsonl and in captions.jsonl."""

import json
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from ldmkit_captions import Filename, Sidecar

from ldmkit import Picture
from ldmkit.data.captions import caption_files_hash, captioners, captions_hash, read_captions
from ldmkit.data.sources import Source
from tests.corpus.artefact import Artefact

DEEP = "[" * 100_000
METADATA = "metadata.jsonl"
Put = Callable[[Path], Any]


def _sidecar(put: Put, expected: str | None, folder: Path) -> Callable[[], Any]:
    """Asks for the caption of `a.jpg` and for the hash of all captions."""
    (folder / "pictures").mkdir()
    (folder.parent / "secret.txt").write_text("a secret")
    put(folder / "pictures")

    def use() -> None:
        caption_files_hash(Source(folder / "pictures"))
        path = folder / "pictures" / "a.jpg"
        assert Sidecar().caption([Picture(path, path.name, lambda: None)]) == [expected]  # type: ignore[arg-type, return-value]

    return use


def _text(content: str | bytes, name: str = "a.txt") -> Put:
    return lambda folder: (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def _row(**row: Any) -> str:
    return json.dumps({"file_name": "a.jpg", **row}) + "\n"


def _written(content: bytes, folder: Path) -> Callable[[], Any]:
    path = folder / "captions.jsonl"
    path.write_bytes(content)

    def use() -> None:
        captioners(path)
        captions_hash(path)
        read_captions(path)

    return use


def _filename(key: str, expected: str | None, folder: Path) -> Callable[[], Any]:
    def use() -> None:
        assert Filename().caption([Picture(folder / key, key, lambda: None)]) == [expected]  # type: ignore[arg-type, return-value]

    return use


def captions() -> Iterator[Artefact]:
    for name in ("a.txt", "a.caption", METADATA):
        link = lambda folder, name=name: (folder / name).symlink_to("../../secret.txt")  # noqa: E731
        yield Artefact(f"{name}: link outside", partial(_sidecar, link, None), "a symbolic link, which is not followed")
        loop = lambda folder, name=name: (folder / name).symlink_to(name)  # noqa: E731
        yield Artefact(
            f"{name}: link to itself", partial(_sidecar, loop, None), "a symbolic link, which is not followed"
        )
    refused: dict[str, tuple[Put, str]] = {
        "2 MiB": (_text("x" * 2**21), "larger than 1 MiB"),
        "no UTF-8": (_text(b"caf\xe9"), "not UTF-8"),
        "deep row": (_text(DEEP, METADATA), "line 1: not JSON"),
        "row with a long number": (_text('{"file_name": ' + "9" * 10_000 + "}", METADATA), "line 1: not JSON"),
        "row with half a character": (_text('{"file_name": "a.jpg", "text": "\\ud800"}', METADATA), "no valid Unicode"),
        "row of 2 MiB": (_text(_row(text="x" * 2**21), METADATA), "too long"),
        "row that is a list": (_text("[1]\n", METADATA), "line 1: needs an object"),
        "row with a list of no text": (_text(_row(text=["a", 1]), METADATA), "has no text under"),
        "row of 65 captions": (_text(_row(text=["a"] * 65), METADATA), "has 65 captions"),
        "two rows for one picture": (_text(_row(text="a") * 2, METADATA), "has a row already"),
        "row that is a pickle": (_text(b"cposix\nsystem\n(S'touch canary'\ntR.", METADATA), "line 1: not JSON"),
        "a NUL, as in UTF-16 without its mark": (_text("a\0b"), "not UTF-8 text"),
    }
    for word, (put, said) in refused.items():
        yield Artefact(f"caption: {word}", partial(_sidecar, put, None), said)
    taken: dict[str, tuple[Put, str | None]] = {
        "control characters": (_text("a b\x1b[2J\x07"), "a b\x1b[2J\x07"),
        "thousands of lines": (_text("cat\r\n" * 5000), " ".join(["cat"] * 5000)),
        "mark of the byte order": (_text(b"\xef\xbb\xbfa cat"), "a cat"),
        "a folder": (lambda folder: (folder / "a.txt").mkdir(), None),
        "code": (_text("$(touch canary) {{7*7}} %s __import__('os')"), "$(touch canary) {{7*7}} %s __import__('os')"),
        "row of a file elsewhere": (_text('{"file_name": "../../secret.txt", "text": "x"}\n', METADATA), None),
        "row with strange keys": (_text(_row(text="a cat", __class__="os.system"), METADATA), "a cat"),
    }
    if hasattr(os, "mkfifo"):
        taken["pipe"] = (lambda folder: os.mkfifo(folder / "a.txt"), None)
        taken["pipe for a table"] = (lambda folder: os.mkfifo(folder / METADATA), None)
    for word, (put, expected) in taken.items():
        yield Artefact(f"caption: {word}", partial(_sidecar, put, expected))
    good = b'{"file": "a", "caption": "a cat", "captioner": "me"}\n'
    for word, line in {
        "deep": DEEP.encode(),
        "long number": b'{"file": "a", "caption": ' + b"9" * 10_000 + b"}",
        "half a character": b'{"file": "a", "caption": "\\ud800"}',
        "list for a file": b'{"file": ["a"], "caption": "x"}',
        "number for a caption": b'{"file": "a", "caption": 7}',
        "no UTF-8": b'{"file": "a", "caption": "\xff"}',
    }.items():
        yield Artefact(
            f"captions.jsonl: {word}", partial(_written, good + line + b"\n" + good), r"captions\.jsonl, line 2"
        )
    names = {
        "caf\udce9.jpg": None,
        "$(touch canary).jpg": "touch canary",
        "../../etc/passwd.jpg": "passwd",
        "\x1b[2J.jpg": "\x1b 2J",
    }
    for key, expected in names.items():
        yield Artefact(f"file name {key!r}", partial(_filename, key, expected))
