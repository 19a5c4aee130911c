"""Captioners for captions that exist: the names of `filename` and `folder`, and `sidecar`, text beside the picture."""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Annotated

from ldmkit_captions_beside import Beside, has_surrogates
from pydantic import Field

from ldmkit import Picture, hookimpl

# White space and ASCII punctuation but for the apostrophe of "cat's".
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
    if has_surrogates(name):  # how Python shows bytes that are no UTF-8
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
    `a.png` share `a.txt`. White space, line breaks too, becomes one space. Several captions of a picture are a list of
    texts in the column, or a .json's, beside a .txt with the first of them too.

    LdmkitError for a symbolic link that is not followed, for more than `MAX_CAPTION` or `MAX_TABLE` bytes, for text
    that is neither UTF-8 nor UTF-16 with its mark (it names all such files below data.path), and for a row without a
    name or a caption.
    """

    column: Annotated[
        str | None, Field(min_length=1, description="the metadata's column of captions; else text, caption or prompt")
    ] = None
    _sets: dict[Path, Beside] = field(default_factory=dict, init=False, repr=False, compare=False)

    def caption(self, pictures: Sequence[Picture]) -> list[str | None]:
        captions = []
        for picture in pictures:
            files = picture.files
            beside = self._sets.setdefault(files.path, Beside(files, self.column))
            captions.append(beside.caption(PurePosixPath(picture.key)))
        return captions

    def remarks(self) -> list[str]:
        """Rows and text files without a picture, in the folders that captions were looked for in."""
        return sorted(line for beside in self._sets.values() for line in beside.remarks())


@hookimpl
def register_captioners() -> Mapping[str, type[Filename] | type[Folder] | type[Sidecar]]:
    """`filename`, `folder` and `sidecar`."""
    return {"filename": Filename, "folder": Folder, "sidecar": Sidecar}
