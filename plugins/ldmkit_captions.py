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

MAX_CAPTION = 2**20
MAX_TABLE = 2**28
"""bytes of a caption's file and of a metadata.jsonl"""
# White space and ASCII punctuation but for the apostrophe of "cat's".
SEPARATORS = re.compile(r"[\s!-&(-/:-@\[-`{-~]+")


@dataclass(frozen=True, kw_only=True)
class Filename:
    """The words of the file's name: `orange_cat-01.jpg` gives "orange cat"; no caption where no word is left, or
    where the name is no UTF-8."""

    strip_digits: Annotated[
        bool, Field(description="drop numbers: words of digits, and the digits at a word's end")
    ] = True

    def caption(self, pictures: Sequence[Picture]) -> list[str | None]:
        return [self._words(picture.key) or None for picture in pictures]

    def _words(self, key: str) -> str:
        if _has_surrogates(key):  # how Python shows bytes that are no UTF-8
            return ""
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

    LdmkitError for a symbolic link, for more than `MAX_CAPTION` or `MAX_TABLE` bytes, for text that is not UTF-8, and
    for a line of `metadata.jsonl` that is not such an object.
    """

    column: Annotated[str, Field(min_length=1, description="the key of metadata.jsonl that holds the caption")] = "text"
    _tables: dict[Path, dict[str, str | None]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def caption(self, pictures: Sequence[Picture]) -> list[str | None]:
        return [self._caption(picture.path) for picture in pictures]

    def _caption(self, path: Path) -> str | None:
        for ending in (".txt", ".caption"):
            sidecar = path.with_suffix(ending)
            if _is_there(sidecar):
                return " ".join(_read(sidecar, MAX_CAPTION).split()) or None
        if path.parent not in self._tables:
            self._tables[path.parent] = self._table(path.parent / "metadata.jsonl")
        return self._tables[path.parent].get(path.name)

    def _table(self, path: Path) -> dict[str, str | None]:
        if not _is_there(path):
            return {}
        table: dict[str, str | None] = {}
        # Not splitlines(): JSON strings may hold U+2028, which it takes for a line's end.
        for number, line in enumerate(_read(path, MAX_TABLE).split("\n"), start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:  # beside JSON's own errors, a number of 5,000 digits
                raise LdmkitError(f"{path}, line {number}: not JSON ({error}); correct the line") from error
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
            if len(row[self.column] or "") > MAX_CAPTION or _has_surrogates(row[self.column] or ""):
                raise LdmkitError(f"{path}, line {number}: the caption of {name} is too long or no valid Unicode")
            if name in table:
                raise LdmkitError(f"{path}, line {number}: {name} has a row already; keep one")
            table[name] = " ".join((row[self.column] or "").split()) or None
        return table


def _is_there(path: Path) -> bool:
    """Whether the file is there; a link would let a stranger's data set read any file of the user's as a caption."""
    if path.is_symlink():
        raise LdmkitError(f"{path}: a symbolic link, which is not followed; put the file itself there, or remove it")
    return path.is_file()


def _read(path: Path, most: int) -> str:
    with path.open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise LdmkitError(f"{path}: larger than {most >> 20} MiB; captions are shorter")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise LdmkitError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from error


def _has_surrogates(text: str) -> bool:
    return any("\ud800" <= letter <= "\udfff" for letter in text)


@hookimpl
def register_captioners() -> Mapping[str, type[Filename] | type[Sidecar]]:
    """`filename` and `sidecar`."""
    return {"filename": Filename, "sidecar": Sidecar}
