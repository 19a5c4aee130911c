"""The captions that lie beside the pictures of one data set, found and read: the files of `sidecar`."""

import codecs
import csv
import importlib
import io
import json
import re
import reprlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from ldmkit import Files, LdmkitError

MAX_CAPTION = 2**20
MAX_TABLE = 2**28
"""bytes of a caption's file and of a metadata.jsonl"""
MAX_CAPTIONS = 64
"""of a picture: the index of captions is as wide as the picture that has most"""
ENDINGS = (".txt", ".caption")
COLUMNS = ("text", "caption", "prompt")


class Beside:
    """The captions of one data set."""

    def __init__(self, files: Files, column: str | None) -> None:
        self.files = files
        self.columns = (column,) if column else COLUMNS
        self.tables: dict[PurePosixPath, Table | LdmkitError] = {}
        self.folders: dict[PurePosixPath, Names] = {}
        self.unreadable: LdmkitError | None = None
        self.odd: set[str] = set()

    def remarks(self) -> Iterator[str]:
        yield from self.odd
        for folder, table in self.tables.items():
            for name in table.rows if isinstance(table, Table) else ():
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

    def _listed(self, folder: PurePosixPath) -> "Names":
        if folder not in self.folders:
            self.folders[folder] = Names(self.files.names("" if str(folder) == "." else str(folder)))
        return self.folders[folder]

    def caption(self, key: PurePosixPath) -> str | None:
        names = self._listed(key.parent)
        name = names.find(f"{key.stem}.json")
        of_json = self._of_json(key.with_name(name)) if name else None
        for base in (key.stem, key.name):
            for ending in ENDINGS:
                if name := names.find(base + ending):
                    text = " ".join(self._read(key.with_name(name), MAX_CAPTION).split())
                    # A WebDataset's .txt has the first of several captions, its .json all of them.
                    return of_json if of_json is not None and of_json.partition("\n")[0] == text else text
        if of_json is not None:
            return of_json
        for folder in key.parents:
            table = self._table(folder)
            row = table.find(key.relative_to(folder).as_posix())
            if row is not None:
                return table.rows[row]
        return None

    def _table(self, folder: PurePosixPath) -> "Table":
        """Read once, also where it cannot be: `data check` asks for one picture after the other."""
        if folder not in self.tables:
            try:
                self.tables[folder] = Table(self._rows(folder))
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
        column = next((c for c in self.columns if isinstance(found, dict) and _is_text(found.get(c))), None)
        text = None if column is None else found[column]
        if isinstance(text, list) and len(text) > MAX_CAPTIONS:
            self.odd.add(f"{self._where(key)}: {len(text)} captions; the first {MAX_CAPTIONS} are read")
            text = text[:MAX_CAPTIONS]
        return None if text is None or has_surrogates(_plain(text)) else _plain(text)

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
                if column not in row or not (row[column] is None or _is_text(row[column])):
                    keys = ", ".join(sorted(str(key) for key in row.keys() - {"file_name"})) or "none"
                    found = f", but {reprlib.repr(row[column])}" if column in row else ""
                    raise LdmkitError(
                        f"{where}: {name} has no text under {column!r}{found}; its keys are: {keys}; "
                        'name the right one with caption.column, beside caption.use = "sidecar"'
                    )
                if isinstance(row[column], list) and len(row[column]) > MAX_CAPTIONS:
                    raise LdmkitError(f"{where}: {name} has {len(row[column])} captions; leave at most {MAX_CAPTIONS}")
                text = None if row[column] is None else _plain(row[column])
                if len(text or "") > MAX_CAPTION or has_surrogates(text or ""):
                    raise LdmkitError(f"{where}: the caption of {name} is too long or no valid Unicode")
                yield where, name, text

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


READERS = {"jsonl": Beside.json_rows, "csv": Beside.csv_rows, "parquet": Beside.parquet_rows}


class Names:
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


class Table:
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


def _is_text(value: Any) -> bool:
    """A caption, or a list of some, as COCO's and Flickr30k's tables have them."""
    return isinstance(value, str) or (
        isinstance(value, list) and value != [] and all(isinstance(v, str) for v in value)
    )


def _plain(value: str | list[str]) -> str:
    """A caption a line."""
    return "\n".join(" ".join(text.split()) for text in ([value] if isinstance(value, str) else value))


def has_surrogates(text: str) -> bool:
    return any("\ud800" <= letter <= "\udfff" for letter in text)
