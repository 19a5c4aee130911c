"""`captions.jsonl`: one line a picture, with who wrote the caption and how.

Several captions of one picture are one text, a caption a line; training takes another one each time.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ldmkit.data.sources import Source
from ldmkit.errors import LdmkitError
from ldmkit.report import printable

MAX_CAPTIONS = 64
"""of a picture: the index of captions is as wide as the picture that has most"""


def read_captions(path: Path) -> dict[str, str]:
    """Caption by picture key; later lines win, a last line cut by a kill is left out.

    Raises LdmkitError where the file is missing, or another line is no caption's.
    """
    if not path.exists():
        raise LdmkitError(f"{path}: no captions yet; `ldmkit caption` writes them")
    captions: dict[str, str] = {}
    for row in _rows(path):
        if row["caption"] is not None:
            captions[row["file"]] = row["caption"]
        else:
            captions.pop(row["file"], None)
    return captions


def captions_of(text: str) -> list[str]:
    """The captions of one picture; only U+000A parts them."""
    return text.split("\n")


def shown(text: str) -> str:
    """A picture's captions for one line of output: the first, and how many others there are."""
    first, *others = captions_of(text)
    return printable(first) + (f" (and {len(others)} more)" if others else "")


def require_captions(captions: Mapping[str, str], keys: Sequence[str], max_missing: float | None = None) -> None:
    """Raises LdmkitError where one of these pictures has no caption, or a larger share than `max_missing`."""
    missing = [key for key in keys if key not in captions]
    if len(missing) <= (max_missing or 0) * len(keys):
        return
    more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
    share, last = "", 'set caption.missing to "skip" or "empty"'
    if max_missing is not None:
        share = f", more than caption.max_missing = {max_missing:g} allows"
        last = "go on with --force or a higher caption.max_missing"
    raise LdmkitError(
        f"{len(missing)} of {len(keys)} pictures have no caption{share}: {', '.join(missing[:5])}{more}; write each to "
        f"a .txt file beside it, choose another captioner in [caption], or {last}"
    )


def captioners(path: Path) -> dict[str, str | None]:
    """Who captioned each picture that has a line, by key: None where nobody could. Empty where there is no file."""
    if not path.exists():
        return {}
    return {row["file"]: row["captioner"] for row in _rows(path)}


def captions_hash(path: Path) -> str:
    """SHA-256 of the captions themselves, whatever their order in the file."""
    return hashlib.sha256(json.dumps(sorted(read_captions(path).items())).encode()).hexdigest()


def caption_files_hash(source: Source) -> str:
    """SHA-256 over names, sizes and times of the files that captions are read from beside the pictures."""
    return hashlib.sha256(json.dumps(source.caption_files()).encode()).hexdigest()


def caption_content_hash(source: Source) -> str:
    """The same over names and contents, which a copy of the data set keeps."""
    digest = hashlib.sha256()
    for key, size, _ in source.caption_files():
        digest.update(os.fsencode(key) + b"\0")
        try:
            content = source.read(key, size)
        except (OSError, LdmkitError):  # no regular file, or a link: where it leads is not looked at
            content = b""
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    # Not splitlines(): JSON strings may hold U+2028, which it takes for a line's end.
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            if number == len(lines):  # cut by a kill, or what follows the last line's end
                return
            row = None
        if not _is_row(row):
            raise LdmkitError(
                f'{path}, line {number}: needs {{"file": ..., "caption": ...}}, with at most {MAX_CAPTIONS} captions; '
                "correct or remove it"
            )
        yield {"captioner": None, **row}


def _is_row(row: Any) -> bool:
    """A file's name may hold surrogates for bytes that are no UTF-8 (PEP 383), a caption is text."""
    if not isinstance(row, dict) or not isinstance(row.get("file"), str) or "caption" not in row:
        return False
    caption = row["caption"]
    if caption is None:
        return True
    return (
        isinstance(caption, str)
        and caption.count("\n") < MAX_CAPTIONS
        and not any("\ud800" <= c <= "\udfff" for c in caption)
    )
