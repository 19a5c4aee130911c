"""Captioners for captions that exist: the names of `filename` and `folder`, and `sidecar`, text beside the picture."""

import codecs
import csv
import importlib
import io
import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from pydantic import Field

from ldmkit import LdmkitError, Picture, hookimpl

MAX_CAPTION = 2**20
MAX_TABLE = 2**28
"""bytes of a caption's file and of a metadata.jsonl"""
# White space and ASCII punctuation but for the apostrophe of "cat's".
ENDINGS = (".txt", ".caption")
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
    else its row in `metadata.jsonl`, `.csv` or `.parquet`.

    The metadata has the form of Hugging Face's imagefolder: `file_name`, a path from the metadata's folder, and the
    caption; the picture's folder is asked first, then those above it within data.path. Names may differ in case, and
    `file_name` may be written `./a.jpg`, with backslashes, or from another machine's root; a .csv may have commas,
    semicolons, tabs or bars. A file or a row that exists decides: an empty text is the caption of no words, and no
    text (null) none. `a.jpg` and `a.png` share `a.txt`. White space, line breaks too, becomes one space.

    LdmkitError for a symbolic link, for more than `MAX_CAPTION` or `MAX_TABLE` bytes, for text that is neither UTF-8
    nor UTF-16 with its mark (it names all such files below data.path), and for a row without a name or a caption.
    """

    column: Annotated[
        str | None, Field(min_length=1, description="the metadata's column of captions; else text, caption or prompt")
    ] = None
    _tables: dict[Path, "_Table | LdmkitError"] = field(default_factory=dict, init=False, repr=False, compare=False)
    _unreadable: dict[Path, LdmkitError] = field(default_factory=dict, init=False, repr=False, compare=False)
    _folders: dict[Path, "_Names"] = field(default_factory=dict, init=False, repr=False, compare=False)

    def caption(self, pictures: Sequence[Picture]) -> list[str | None]:
        return [self._caption(picture.path, PurePosixPath(picture.key)) for picture in pictures]

    def remarks(self) -> list[str]:
        """Rows and text files without a picture, in the folders that captions were looked for in."""
        found = [
            f"{folder}: its metadata names {name}, which is not there"
            for folder, table in self._tables.items()
            for name in (table.rows if isinstance(table, _Table) else ())
            if not self._has(folder, PurePosixPath(name))
        ]
        for folder, names in list(self._folders.items()):
            found += [f"{folder / name}: a caption without a picture" for name in names.orphans()]
        return sorted(found)

    def _has(self, folder: Path, name: PurePosixPath) -> bool:
        starts = range(len(name.parts)) if _is_rooted(name) else [0]
        return ".." not in name.parts and any(
            self._listed(folder.joinpath(*name.parts[start:-1])).find(name.name) for start in starts
        )

    def _listed(self, folder: Path) -> "_Names":
        if folder not in self._folders:
            self._folders[folder] = _Names(folder)
        return self._folders[folder]

    def _caption(self, path: Path, key: PurePosixPath) -> str | None:
        folders = path.parents[: len(key.parts)]
        for base in (path.stem, path.name):
            for ending in ENDINGS:
                name = self._listed(path.parent).find(base + ending)
                if name and _is_there(path.with_name(name)):
                    return self._read(path.with_name(name), folders[-1])
        for folder in folders:
            table = self._table(folder)
            row = table.find(path.relative_to(folder).as_posix())
            if row is not None:
                return table.rows[row]
        return None

    def _table(self, folder: Path) -> "_Table":
        """Read once, also where it cannot be: `data check` asks for one picture after the other."""
        if folder not in self._tables:
            try:
                self._tables[folder] = _Table(self._rows(folder))
            except LdmkitError as error:
                self._tables[folder] = error
        table = self._tables[folder]
        if isinstance(table, LdmkitError):
            raise table
        return table

    def _read(self, path: Path, root: Path) -> str:
        """A caption's text; where it cannot be decoded, the error names every such caption below `root`."""
        text = _decoded(path, MAX_CAPTION)
        if text is not None:
            return " ".join(text.split())
        if root not in self._unreadable:
            others = [p for p in sorted(root.rglob("*")) if p.suffix.lower() in ENDINGS]
            bad = [p for p in others if p.is_file() and not p.is_symlink() and _decoded(p, MAX_CAPTION) is None]
            self._unreadable[root] = _not_text(bad)
        raise self._unreadable[root]

    def _rows(self, folder: Path) -> Iterator[tuple[str, str, str | None]]:
        """(where, name, caption) of each row."""
        for path, read in ((folder / f"metadata.{ending}", read) for ending, read in READERS.items()):
            for place, row in read(path) if _is_there(path) else ():
                where = f"{path}, {place}"
                if not isinstance(row, dict) or not isinstance(row.get("file_name"), str):
                    raise LdmkitError(f'{where}: needs an object such as {{"file_name": "a.jpg", "text": "…"}}')
                name = row["file_name"]
                column = self.column or next((c for c in ("text", "caption", "prompt") if c in row), "text")
                if column not in row or not isinstance(row[column], str | None):
                    keys = ", ".join(sorted(str(key) for key in row.keys() - {"file_name"})) or "none"
                    raise LdmkitError(
                        f"{where}: {name} has no text under {column!r}; its keys are: {keys}; "
                        'name the right one with caption.column, beside caption.use = "sidecar"'
                    )
                if len(row[column] or "") > MAX_CAPTION or _has_surrogates(row[column] or ""):
                    raise LdmkitError(f"{where}: the caption of {name} is too long or no valid Unicode")
                yield where, name, None if row[column] is None else " ".join(row[column].split())


class _Names:
    """The files of a folder, found whatever the case of their letters."""

    def __init__(self, folder: Path) -> None:
        self.spelled: dict[str, list[str]] = {}
        for name in sorted(path.name for path in folder.iterdir()) if folder.is_dir() else ():
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


def _json_rows(path: Path) -> Iterator[tuple[str, Any]]:
    # Not splitlines(): JSON strings may hold U+2028, which it takes for a line's end.
    for number, line in enumerate(_read_table(path).split("\n"), start=1):
        if line.strip():
            try:
                yield f"line {number}", json.loads(line)
            except (ValueError, RecursionError) as error:  # beside JSON's own errors, a number of 5,000 digits
                raise LdmkitError(f"{path}, line {number}: not JSON ({error}); correct the line") from error


def _csv_rows(path: Path) -> Iterator[tuple[str, Any]]:
    text = _read_table(path)
    head = text.partition("\n")[0].rstrip("\r")
    # What Excel writes depends on the country; that the names of the files are in a column of their own does not.
    separator = max(",;\t|", key=lambda each: "file_name" in next(csv.reader([head], delimiter=each), []))
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator)
    try:
        for row in reader:
            yield f"line {reader.line_num}", row
    except csv.Error as error:
        raise LdmkitError(f"{path}, line {reader.line_num}: not CSV ({error}); correct the line") from error


def _parquet_rows(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise LdmkitError(f"{path}: Parquet is read with pyarrow; pip install pyarrow") from error
    try:
        rows = parquet.read_table(path).to_pylist()
    except (OSError, ValueError) as error:  # pyarrow's own errors are these
        raise LdmkitError(f"{path}: not Parquet ({error}); write it again, or remove it") from error
    for number, row in enumerate(rows, start=1):
        yield f"row {number}", row


READERS: Mapping[str, Callable[[Path], Iterator[tuple[str, Any]]]] = {
    "jsonl": _json_rows,
    "csv": _csv_rows,
    "parquet": _parquet_rows,
}


def _is_there(path: Path) -> bool:
    """Whether the file is there; a link would let a stranger's data set read any file of the user's as a caption."""
    if path.is_symlink():
        raise LdmkitError(f"{path}: a symbolic link, which is not followed; put the file itself there, or remove it")
    return path.is_file()


def _read_table(path: Path) -> str:
    text = _decoded(path, MAX_TABLE)
    if text is None:
        raise _not_text([path])
    return text


def _not_text(files: Sequence[Path]) -> LdmkitError:
    return LdmkitError("not UTF-8 text; save as UTF-8: " + ", ".join(map(str, files)), files=files)


def _decoded(path: Path, most: int) -> str | None:
    """UTF-8, or UTF-16 with its mark; None where it is neither."""
    with path.open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise LdmkitError(f"{path}: larger than {most >> 20} MiB; captions are shorter")
    marked = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = data.decode("utf-16" if marked else "utf-8-sig")
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else text  # UTF-16 without a mark


def _has_surrogates(text: str) -> bool:
    return any("\ud800" <= letter <= "\udfff" for letter in text)


@hookimpl
def register_captioners() -> Mapping[str, type[Filename] | type[Folder] | type[Sidecar]]:
    """`filename`, `folder` and `sidecar`."""
    return {"filename": Filename, "folder": Folder, "sidecar": Sidecar}
