"""Pictures that are added, changed or taken away: what was made of the others is kept. No torch."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ldmkit.atomic import write_json
from ldmkit.data.pictures import PictureIndex
from ldmkit.errors import LdmkitError
from ldmkit.run.files import CONTENTS, check, read_record
from ldmkit.run.folder import Part

_FREE = ("pictures", "caption_files")
"""inputs row by row of which caches are made: what is the same in both is taken over"""


class Kept(NamedTuple):
    """An autoencoder that outlives a change to the pictures."""

    pictures: str
    """hash of those that it was trained on"""
    note: str


def write_contents(folder: Path, index: PictureIndex) -> None:
    """`contents.json` of a part, at its beginning: with it one for other pictures takes over what is the same."""
    write_json(folder / CONTENTS, {entry.key: entry.sha256 for entry in index.entries})


def read_contents(folder: Path) -> dict[str, str]:
    """Raises LdmkitError where the file is not what a finished part's record has, OSError or ValueError else."""
    check(folder / CONTENTS)
    return dict(json.loads((folder / CONTENTS).read_bytes()))


def extends(part: Part) -> bool:
    """Whether what lies in the part's folder was made as it is to be, of other pictures or captions beside them."""
    try:
        record = read_record(part.folder)
    except LdmkitError:
        return False
    if record is None or record.get("made_of", {}) != part.made_of or not (part.folder / CONTENTS).is_file():
        return False
    old, new = ({k: v for k, v in x.items() if k not in _FREE} for x in (record["inputs"], part.inputs))
    return old == new


def earlier(part: Part) -> Iterator[tuple[Path, bool, dict[str, str]]]:
    """Of each part that this one takes rows over from, newest first: folder, whether it is finished, its contents."""
    folder = part.earlier
    while folder is not None and folder.is_dir():
        record = read_record(folder) or {}
        yield folder, record.get("state") == "done", read_contents(folder)
        before = record.get("earlier")
        folder = folder.parent / before if before else None


def kept(folder: Path, inputs: Mapping[str, Any], index: PictureIndex, most_new: float) -> Kept | None:
    """The finished autoencoder in `folder` where it differs from these inputs by its pictures, and not by too many.

    `most_new`: largest share of today's pictures that it may not have been trained with.
    """
    try:
        record = read_record(folder)
        if record is None or record["state"] != "done" or "pictures" not in inputs:
            return None
        then = {key: value for key, value in record["inputs"].items() if key != "format"}
        if then == inputs or {**then, "pictures": index.hash} != json.loads(json.dumps(inputs)):
            return None
        seen = set(read_contents(folder).values())
    except (LdmkitError, OSError, ValueError):
        return None
    new = sum(entry.sha256 not in seen for entry in index.entries)
    if not most_new or new > most_new * len(index):
        return None
    return Kept(
        str(then["pictures"]), f"kept: trained before the pictures changed, {new} of {len(index)} are new to it"
    )
