"""Captioners for captions that exist: `filename` (the file's name) and `sidecar` (text beside the picture)."""

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Annotated

from pydantic import Field

from ldmkit import LdmkitError, Picture, hookimpl

# White space and ASCII punctuation but for the apostrophe of "cat's".
SEPARATORS = re.compile(r"[\s!-&(-/:-@\[-`{-~]+")


@dataclass(frozen=True, kw_only=True)
class Filename:
    """The words of the file's name: `orange_cat-01.jpg` gives "orange cat"; no caption where no word is left."""

    strip_digits: Annotated[
        bool, Field(description="drop numbers: words of digits, and the digits at a word's end")
    ] = True

    def caption(self, pictures: Sequence[Picture]) -> list[str | None]:
        return [self._words(picture.key) or None for picture in pictures]

    def _words(self, key: str) -> str:
        # NFC: macOS stores accents as separate characters.
        words = SEPARATORS.split(unicodedata.normalize("NFC", PurePosixPath(key).stem))
        if self.strip_digits:
            words = [re.sub(r"\d+$", "", word) for word in words]
        return " ".join(word for word in words if word)


@dataclass(frozen=True, kw_only=True)
class Sidecar:
    """Captions beside the picture: `<stem>.txt`, else `<stem>.caption`, else its row in `metadata.jsonl`.

    `metadata.jsonl` is the form of Hugging Face's imagefolder: one JSON object a line, with `file_name` and the
    caption, in the picture's own folder; it is read once a folder. A file that exists decides even where it is empty,
    which means no caption. `a.jpg` and `a.png` share `a.txt`. White space, line breaks too, becomes one space.

    LdmkitError for text that is not UTF-8, and for a line of `metadata.jsonl` that is not such an object.
    """

    column: Annotated[str, Field(min_length=1, description="the key of metadata.jsonl that holds the caption")] = "text"
    _tables: dict[Path, dict[str, str | None]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def caption(self, pictures: Sequence[Picture]) -> list[str | None]:
        return [self._caption(picture.path) for picture in pictures]

    def _caption(self, path: Path) -> str | None:
        for ending in (".txt", ".caption"):
            sidecar = path.with_suffix(ending)
            if sidecar.is_file():
                return " ".join(_read(sidecar).split()) or None
        if path.parent not in self._tables:
            self._tables[path.parent] = self._table(path.parent / "metadata.jsonl")
        return self._tables[path.parent].get(path.name)

    def _table(self, path: Path) -> dict[str, str | None]:
        if not path.is_file():
            return {}
        table: dict[str, str | None] = {}
        # Not splitlines(): JSON strings may hold U+2028, which it takes for a line's end.
        for number, line in enumerate(_read(path).split("\n"), start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise LdmkitError(f"{path}, line {number}: not JSON ({error.msg}); correct the line") from error
            if not isinstance(row, dict) or not isinstance(row.get("file_name"), str):
                raise LdmkitError(
                    f'{path}, line {number}: needs an object such as {{"file_name": "a.jpg", "text": "…"}}'
                )
            name = row["file_name"]
            if self.column not in row or not isinstance(row[self.column], str | None):
                keys = ", ".join(sorted(row.keys() - {"file_name"})) or "none"
                raise LdmkitError(
                    f"{path}, line {number}: {name} has no text under {self.column!r}; its keys are: {keys}; "
                    "name the right one with caption.column"
                )
            if name in table:
                raise LdmkitError(f"{path}, line {number}: {name} has a row already; keep one")
            table[name] = " ".join((row[self.column] or "").split()) or None
        return table


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise LdmkitError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from error


@hookimpl
def register_captioners() -> Mapping[str, type[Filename] | type[Sidecar]]:
    """`filename` and `sidecar`."""
    return {"filename": Filename, "sidecar": Sidecar}
