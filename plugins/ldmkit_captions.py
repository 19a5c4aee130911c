"""Captioners for captions that exist: the names of `filename` and `folder`, and `sidecar`, text beside the picture."""

import codecs
import csv
import importlib
import io
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from pydantic import Field

from ldmkit import Files, LdmkitError, Picture, hookimpl

MAX_CAPTION = 2**20
MAX_TABLE = 2**28
"""bytes of a caption's file and of a metadata.jsonl"""
# White space and ASCII punctuation but for the apostrophe of "cat's".
ENDINGS = (".txt", ".caption")
COLUMNS = ("text", "caption", "prompt")
SEPARATORS = re.compile(r"[\s!-&(-/:-@\[-`{-~]+")
MADE_UP = re.compile(r"(?i)\b[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}\b|\b(?=[a-f]*\d)[0-9a-f]{16,}\b")
"""UUIDs and hashes"""
# fmt: off
CAMERAS = frozenset({
    "img", "imag", "image", "dsc", "dscn", "dscf", "dcim", "pxl", "mvimg", "pano", "vid", "gopr", "dji", "cimg",
    "sam", "mg", "p", "whatsapp", "screenshot", "photo", "picture", "scan", "fb", "signal", "unnamed", "untitled",
    "download",
})
# fmt: on
"""first words of the names that cameras and programs give, and what stands beside them"""
BESIDE_CAMERAS = frozenset({"at", "am", "pm", "wa", "e", "copy", "edited", "mp", "burst"})


@dataclass(frozen=True, kw_only=True)
class Filename:
    """The words of the file's name: `orange_cat-01.jpg` gives "orange cat"; no caption where no word is left, where
    a camera or a program made the name up ("IMG_0042", a UUID), or where the name is no UTF-8."""

    strip_digits: Annotated[
        bool, Field(description="drop numbers: words of digits, and the digits at a word's end")
    ] = True

    def caption(self, pictures: Sequence[Picture]) -> list[str | None]:
        return [_words(PurePosixPath(picture.key).stem, self.strip_digits) or None for picture in pictures]


@dataclass(frozen=True, kw_only=True)
class Folder:
    """The words of the name of the picture's folder, as class folders have them: `black_cat/7.jpg` gives "black cat";
    no caption for a picture that lies in none below data.path."""

    strip_digits: Annotated[bool, Field(description="drop numbers, as that of `10_cat`")] = True

    def caption(self, pictures: Sequence[Picture]) -> list[str | None]:
        return [_words(PurePosixPath(picture.key).parent.name, self.strip_digits) or None for picture in pictures]


def _words(name: str, strip_digits: bool) -> str:
    if _has_surrogates(name):  # how Python shows bytes that are no UTF-8
        return ""
    # NFC: macOS stores accents as separate characters.
    words = [word for word in SEPARATORS.split(MADE_UP.sub(" ", unicodedata.normalize("NFC", name))) if word]
    bare = [short for word in words if (short := re.sub(r"\d+$", "", word))]
    lower = [word.casefold() for word in bare]
    if lower and lower[0] in CAMERAS and CAMERAS.union(BESIDE_CAMERAS).issuperset(lower):
        return ""
    return " ".join(bare if strip_digits else words)


@dataclass(frozen=True, kw_only=True)
class Sidecar:
    """Captions beside the picture: `<stem>.txt`, else `<stem>.caption`, else those of its whole name (`a.jpg.txt`),
    else `<stem>.json`, else its row in `metadata.jsonl`, `.csv` or `.parquet`.

    The metadata has the form of Hugging Face's imagefolder: `file_name`, a path from the metadata's folder, and the
    caption; the picture's folder is asked first, then those above it within data.path. Names may differ in case, and
    `file_name` may be written `./a.jpg`, with backslashes, or from another machine's root; a .csv may have commas,
    semicolons, tabs or bars. A file or a row that exists decides: an empty text is the caption of no words, and no
    text (null) none; a `<stem>.json` only where it is an object with text in the column, as WebDataset's. `a.jpg` and
    `a.png` share `a.txt`. White space, line breaks too, becomes one space.

    LdmkitError for a symbolic link that is not followed, for more than `MAX_CAPTION` or `MAX_TABLE` bytes, for text
    that is neither UTF-8 nor UTF-16 with its mark (it names all such files below data.path), and for a row without a
    name or a caption.
    """

    column: Annotated[
        str | None, Field(min_length=1, description="the metadata's column of captions; else text, caption or prompt")
    ] = None
    _sets: dict[Path, "_Beside"] = field(default_factory=dict, init=False, repr=False, compare=False)

    def caption(self, pictures: Sequence[Picture]) -> list[str | None]:
        captions = []
        for picture in pictures:
            files = picture.files
            beside = self._sets.setdefault(files.path, _Beside(files, self.column))
            captions.append(beside.caption(PurePosixPath(picture.key)))
        return captions

    def remarks(self) -> list[str]:
        """Rows and text files without a picture, in the folders that captions were looked for in."""
        return sorted(line for beside in self._sets.values() for line in beside.remarks())


class _Beside:
    """The captions of one data set."""

    def __init__(self, files: Files, column: str | None) -> None:
        self.files = files
        self.columns = (column,) if column else COLUMNS
        self.tables: dict[PurePosixPath, _Table | LdmkitError] = {}
        self.folders: dict[PurePosixPath, _Names] = {}
        self.unreadable: LdmkitError | None = None
        self.odd: set[str] = set()

    def remarks(self) -> Iterator[str]:
        yield from self.odd
        for folder, table in self.tables.items():
            for name in table.rows if isinstance(table, _Table) else ():
                if not self._has(folder, PurePosixPath(name)):
                    yield f"{self._where(folder)}: its metadata names {name}, which is not there"
        for folder, names in list(self.folders.items()):
            for orphan in names.orphans():
                yield f"{self._where(folder / orphan)}: a caption without a picture"

    def _where(self, key: PurePosixPath) -> Path:
        return self.files.path / key

    def _has(self, folder: PurePosixPath, name: PurePosixPath) -> bool:
        starts = range(len(name.parts)) if _is_rooted(name) else [0]
        return ".." not in name.parts and any(
            self._listed(folder.joinpath(*name.parts[start:-1])).find(name.name) for start in starts
        )

    def _listed(self, folder: PurePosixPath) -> "_Names":
        if folder not in self.folders:
            self.folders[folder] = _Names(self.files.names("" if str(folder) == "." else str(folder)))
        return self.folders[folder]

    def caption(self, key: PurePosixPath) -> str | None:
        names = self._listed(key.parent)
        for base in (key.stem, key.name):
            for ending in ENDINGS:
                if name := names.find(base + ending):
                    return " ".join(self._read(key.with_name(name), MAX_CAPTION).split())
        if (name := names.find(f"{key.stem}.json")) and (text := self._of_json(key.with_name(name))) is not None:
            return text
        for folder in key.parents:
            table = self._table(folder)
            row = table.find(key.relative_to(folder).as_posix())
            if row is not None:
                return table.rows[row]
        return None

    def _table(self, folder: PurePosixPath) -> "_Table":
        """Read once, also where it cannot be: `data check` asks for one picture after the other."""
        if folder not in self.tables:
            try:
                self.tables[folder] = _Table(self._rows(folder))
            except LdmkitError as error:
                self.tables[folder] = error
        table = self.tables[folder]
        if isinstance(table, LdmkitError):
            raise table
        return table

    def _of_json(self, key: PurePosixPath) -> str | None:
        try:
            found = json.loads(self._read(key, MAX_CAPTION))
        except (ValueError, RecursionError) as error:
            self.odd.add(f"{self._where(key)}: not JSON ({error}); no caption is taken from it")
            return None
        column = next((c for c in self.columns if isinstance(found, dict) and isinstance(found.get(c), str)), None)
        if column is None or _has_surrogates(found[column]):
            return None
        return " ".join(found[column].split())

    def _rows(self, folder: PurePosixPath) -> Iterator[tuple[str, str, str | None]]:
        """(where, name, caption) of each row."""
        for ending, read in READERS.items():
            key = folder / f"metadata.{ending}"
            if key.name not in self._listed(folder).names:
                continue
            for place, row in read(self, key):
                where = f"{self._where(key)}, {place}"
                if not isinstance(row, dict) or not isinstance(row.get("file_name"), str):
                    raise LdmkitError(f'{where}: needs an object such as {{"file_name": "a.jpg", "text": "…"}}')
                name = row["file_name"]
                column = next((c for c in self.columns if c in row), self.columns[0])
                if column not in row or not isinstance(row[column], str | None):
                    keys = ", ".join(sorted(str(key) for key in row.keys() - {"file_name"})) or "none"
                    raise LdmkitError(
                        f"{where}: {name} has no text under {column!r}; its keys are: {keys}; "
                        'name the right one with caption.column, beside caption.use = "sidecar"'
                    )
                if len(row[column] or "") > MAX_CAPTION or _has_surrogates(row[column] or ""):
                    raise LdmkitError(f"{where}: the caption of {name} is too long or no valid Unicode")
                yield where, name, None if row[column] is None else " ".join(row[column].split())

    def _read(self, key: PurePosixPath, most: int) -> str:
        """A file's text; where a caption cannot be decoded, the error names all such ones of the set."""
        text = self._decoded(key, most)
        if text is not None:
            return text
        if key.suffix.lower() not in ENDINGS:
            raise self._not_text([key])
        if self.unreadable is None:  # once, as `_table`
            bad = {key}
            for other in map(PurePosixPath, self.files.walk()):
                with suppress(LdmkitError):  # a link, which is no concern here
                    if other.suffix.lower() in ENDINGS and self._decoded(other, most) is None:
                        bad.add(other)
            self.unreadable = self._not_text(sorted(bad))
        raise self.unreadable

    def _not_text(self, keys: Sequence[PurePosixPath]) -> LdmkitError:
        files = [self._where(key) for key in keys]
        return LdmkitError("not UTF-8 text; save as UTF-8: " + ", ".join(map(str, files)), files=files)

    def bytes_of(self, key: PurePosixPath, most: int) -> bytes:
        """The whole file."""
        try:
            data = self.files.read(str(key), most)
        except OSError as error:
            raise LdmkitError(f"{self._where(key)}: cannot be read: {error.strerror or error}") from error
        if len(data) > most:
            raise LdmkitError(f"{self._where(key)}: larger than {most >> 20} MiB; captions are shorter")
        return data

    def _decoded(self, key: PurePosixPath, most: int) -> str | None:
        """UTF-8, or UTF-16 with its mark; None where it is neither."""
        data = self.bytes_of(key, most)
        marked = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        try:
            text = data.decode("utf-16" if marked else "utf-8-sig")
        except UnicodeDecodeError:
            return None
        return None if "\0" in text else text  # UTF-16 without a mark

    def json_rows(self, key: PurePosixPath) -> Iterator[tuple[str, Any]]:
        # Not splitlines(): JSON strings may hold U+2028, which it takes for a line's end.
        for number, line in enumerate(self._read(key, MAX_TABLE).split("\n"), start=1):
            if line.strip():
                try:
                    yield f"line {number}", json.loads(line)
                except (ValueError, RecursionError) as error:  # beside JSON's own errors, a number of 5,000 digits
                    raise LdmkitError(
                        f"{self._where(key)}, line {number}: not JSON ({error}); correct the line"
                    ) from error

    def csv_rows(self, key: PurePosixPath) -> Iterator[tuple[str, Any]]:
        text = self._read(key, MAX_TABLE)
        head = text.partition("\n")[0].rstrip("\r")
        # What Excel writes depends on the country; that the names of the files are in a column of their own does not.
        separator = max(",;\t|", key=lambda each: "file_name" in next(csv.reader([head], delimiter=each), []))
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator)
        try:
            for row in reader:
                yield f"line {reader.line_num}", row
        except csv.Error as error:
            where = f"{self._where(key)}, line {reader.line_num}"
            raise LdmkitError(f"{where}: not CSV ({error}); correct the line") from error

    def parquet_rows(self, key: PurePosixPath) -> Iterator[tuple[str, Any]]:
        where = self._where(key)
        try:
            parquet = importlib.import_module("pyarrow.parquet")
        except ImportError as error:
            raise LdmkitError(f"{where}: Parquet is read with pyarrow; pip install pyarrow") from error
        try:
            rows = parquet.read_table(io.BytesIO(self.bytes_of(key, MAX_TABLE))).to_pylist()
        except (OSError, ValueError) as error:  # pyarrow's own errors are these
            raise LdmkitError(f"{where}: not Parquet ({error}); write it again, or remove it") from error
        for number, row in enumerate(rows, start=1):
            yield f"row {number}", row


READERS = {"jsonl": _Beside.json_rows, "csv": _Beside.csv_rows, "parquet": _Beside.parquet_rows}


class _Names:
    """The files of a folder, found whatever the case of their letters."""

    def __init__(self, found: Sequence[str]) -> None:
        self.names = set(found)
        self.spelled: dict[str, list[str]] = {}
        for name in sorted(found):
            self.spelled.setdefault(name.casefold(), []).append(name)
        names = [PurePosixPath(name) for spelled in self.spelled.values() for name in spelled]
        self.captions = [name for name in names if name.suffix.lower() in ENDINGS]
        others = [name for name in names if name.suffix.lower() not in ENDINGS]
        self.owners = {owner for name in others for owner in (name.stem, name.name)}

    def find(self, name: str) -> str | None:
        """The file of this name, else the only one in another case that is no other picture's caption."""
        spelled = self.spelled.get(name.casefold(), [])
        if name in spelled:
            return name
        if len(spelled) != 1:
            return None
        stem = PurePosixPath(spelled[0]).stem
        return spelled[0] if stem == PurePosixPath(name).stem or stem not in self.owners else None

    def orphans(self) -> list[str]:
        owners = {owner.casefold() for owner in self.owners}
        return [name.name for name in self.captions if name.stem.casefold() not in owners]


class _Table:
    """The rows of a folder's metadata, by name with `/` between its parts."""

    def __init__(self, rows: Iterable[tuple[str, str, str | None]]) -> None:
        self.rows: dict[str, str | None] = {}
        self.spelled: dict[str, list[str]] = {}
        for where, name, caption in rows:
            plain = PurePosixPath(name.replace("\\", "/")).as_posix()
            if plain in self.rows:
                raise LdmkitError(f"{where}: {name} has a row already; keep one")
            self.rows[plain] = caption
            rooted = _is_rooted(PurePosixPath(plain))
            key = PurePosixPath(plain).name if rooted else plain
            self.spelled.setdefault(key.casefold(), []).append(plain)

    def find(self, name: str) -> str | None:
        """The row of a picture: its path as it is, else the only one in another case, else the only one of another
        machine that ends in it."""
        plain = name.replace("\\", "/")
        if plain in self.rows:
            return plain
        here = [row for row in self.spelled.get(plain.casefold(), []) if not _is_rooted(PurePosixPath(row))]
        there = [
            row
            for row in self.spelled.get(PurePosixPath(plain).name.casefold(), [])
            if _is_rooted(PurePosixPath(row)) and row.casefold().endswith("/" + plain.casefold())
        ]
        found = here or there
        return found[0] if len(found) == 1 else None


def _is_rooted(name: PurePosixPath) -> bool:
    return name.is_absolute() or re.match("[A-Za-z]:/", str(name)) is not None


def _has_surrogates(text: str) -> bool:
    return any("\ud800" <= letter <= "\udfff" for letter in text)


@hookimpl
def register_captioners() -> Mapping[str, type[Filename] | type[Folder] | type[Sidecar]]:
    """`filename`, `folder` and `sidecar`."""
    return {"filename": Filename, "folder": Folder, "sidecar": Sidecar}
