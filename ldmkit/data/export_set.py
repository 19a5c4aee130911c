"""Writes a data set for others' trainers: as an imagefolder, in kohya's layout, or as WebDataset shards."""

import json
from collections.abc import Callable, Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from ldmkit.atomic import new_folder
from ldmkit.data.archives import write_tar
from ldmkit.data.captions import captions_of
from ldmkit.data.decode import MAX_BYTES, load_bytes
from ldmkit.data.kinds import HEAD, kind
from ldmkit.data.pictures import PictureIndex
from ldmkit.errors import LdmkitError

FORMS = ("imagefolder", "kohya", "webdataset")
SHARD_PICTURES = 10_000
SHARD_BYTES = 10**9
_ENDINGS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
"""formats that every reader of the three forms takes; others are written as PNG"""


class Sample(NamedTuple):
    """A picture to be written."""

    stem: str
    ending: str
    data: bytes
    key: str
    """in the set that it comes from"""
    caption: str | None


def export_set(
    index: PictureIndex,
    captions: Mapping[str, str],
    folder: Path,
    form: str,
    *,
    name: str,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """The pictures' own bytes and their captions in a new folder; `form`: one of FORMS, `name`: kohya's class.

    Raises LdmkitError where the folder is not empty, or a picture can no longer be read.
    """
    # A column has one type: where a picture has several captions, all have a list.
    lists = any(len(captions_of(text)) > 1 for text in captions.values())
    with new_folder(folder) as made:
        samples = _samples(index, captions, progress)
        if form == "webdataset":
            _webdataset(samples, made, lists)
        elif form == "kohya":  # images/REPEATS_CLASS/
            target = made / f"1_{name}"
            target.mkdir()
            for sample in samples:
                (target / f"{sample.stem}.{sample.ending}").write_bytes(sample.data)
                if sample.caption is not None:  # several are lines there as well, for its `enable_wildcard`
                    (target / f"{sample.stem}.txt").write_text(sample.caption, encoding="utf-8")
        else:
            with (made / "metadata.jsonl").open("w", encoding="ascii") as rows:
                for sample in samples:
                    file = f"{sample.stem}.{sample.ending}"
                    (made / file).write_bytes(sample.data)
                    text = _column(sample.caption, lists)
                    rows.write(json.dumps({"file_name": file, "text": text, "source": _text(sample.key)}) + "\n")


def _samples(
    index: PictureIndex, captions: Mapping[str, str], progress: Callable[[int, int], None] | None
) -> Iterator[Sample]:
    for number, picture in enumerate(index.pictures()):
        try:
            data = picture.files.read(picture.key, MAX_BYTES)
        except OSError as error:
            raise LdmkitError(f"{picture.path}: cannot be read: {error.strerror or error}") from error
        ending = _ENDINGS.get(kind(data[:HEAD])[0] or "")
        if ending is None:
            buffer = BytesIO()
            load_bytes(data, str(picture.path)).save(buffer, "PNG")
            ending, data = "png", buffer.getvalue()
        yield Sample(f"{number:09}", ending, data, picture.key, captions.get(picture.key))
        if progress is not None:
            progress(number + 1, len(index))


def _column(caption: str | None, lists: bool) -> str | list[str] | None:
    return caption if caption is None or not lists else captions_of(caption)


def _webdataset(samples: Iterator[Sample], folder: Path, lists: bool) -> None:
    """Every sample has a .txt, empty where there is no caption: readers want the same files of each. Of several
    captions it has the first, and the .json all."""
    following = next(samples, None)

    def shard() -> Iterator[tuple[str, bytes]]:
        nonlocal following
        count = size = 0
        while following is not None and count < SHARD_PICTURES and size < SHARD_BYTES:
            stem, ending, data, key, caption = following
            yield f"{stem}.{ending}", data
            yield f"{stem}.txt", captions_of(caption or "")[0].encode()
            yield f"{stem}.json", json.dumps({"text": _column(caption, lists), "source": _text(key)}).encode()
            count, size, following = count + 1, size + len(data), next(samples, None)

    number = 0
    while following is not None:
        write_tar(folder / f"{number:06}.tar", shard())
        number += 1


def _text(key: str) -> str:
    """Others' readers take no surrogates."""
    return key.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
