"""Large pictures decoded once: kept at the working size, by their content's hash, in files that only grow."""

import math
import mmap
import os
import shutil
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import IO

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image

from ldmkit.atomic import no_room
from ldmkit.components.protocols import Picture
from ldmkit.data.batches import uint8_batches
from ldmkit.data.buckets import of_one_bucket
from ldmkit.data.columns import Lazy
from ldmkit.data.decode import PIXELS_VERSION
from ldmkit.data.pictures import PictureIndex
from ldmkit.data.rows import Rows
from ldmkit.recipe.data import Data
from ldmkit.report import Reporter

WORTH = 2
"""times the pixels of the working size from which a picture is kept: smaller ones decode as fast as a file is read"""
BATCH = 8
SAVED = 64
"""pictures that a killed run may have to decode again"""
_RECORD = np.dtype([("sha256", "V32"), ("crc32", "<u4")])


class Store:
    """`pixels.bin`, rows of (H, W, 3) uint8, and `rows.bin`, each row's content hash and checksum.

    Each is as long as the largest shape takes, and counts once its record is written, which is after its pixels are on
    the disk.
    """

    def __init__(self, folder: Path, shapes: Sequence[tuple[int, int]]) -> None:
        """`shapes`: W and H of each bucket."""
        self.file = folder / "pixels.bin"
        self.shapes = shapes
        self.row_bytes = max(map(math.prod, shapes)) * 3
        self._records = folder / "rows.bin"
        self.records = np.zeros(0, _RECORD)
        if self._records.is_file() and self.file.is_file():
            written = np.fromfile(self._records, _RECORD, self._records.stat().st_size // _RECORD.itemsize)
            self.records = written[: self.file.stat().st_size // self.row_bytes]

    def rows(self) -> dict[str, int]:
        """{content hash: row}."""
        return {record.tobytes().hex(): row for row, record in enumerate(self.records["sha256"])}

    def open(self) -> tuple[IO[bytes], IO[bytes]]:
        """Both files behind their last whole row, to be written on."""
        files = []
        for path, length in ((self.file, self.row_bytes), (self._records, _RECORD.itemsize)):
            path.touch()
            file = path.open("r+b")
            file.truncate(file.seek(len(self.records) * length))
            files.append(file)
        return files[0], files[1]

    def load(self, row: int, bucket: int, anew: Callable[[], Image.Image]) -> Image.Image:
        """The picture in its bucket's size; decoded `anew` where the disk changed its row."""
        pixels = _mapped(self.file, len(self.records) * self.row_bytes)[
            row * self.row_bytes : (row + 1) * self.row_bytes
        ]
        if zlib.crc32(pixels) != self.records["crc32"][row]:
            return anew()
        shape = self.shapes[bucket]
        return Image.frombytes("RGB", shape, pixels[: math.prod(shape) * 3])


@lru_cache(maxsize=4)
def _mapped(file: Path, length: int) -> mmap.mmap:
    """By each process for itself: a mapping does not pickle."""
    with file.open("rb") as opened:
        mapped = mmap.mmap(opened.fileno(), length, access=mmap.ACCESS_READ)
    if hasattr(mmap, "MADV_RANDOM"):  # else the system reads each row's neighbours as well
        mapped.madvise(mmap.MADV_RANDOM)
    return mapped


def prepared_pictures(index: PictureIndex, data: Data, run_dir: Path, reporter: Reporter | None) -> Sequence[Picture]:
    """The pictures of an index, the large ones already in the working size: `prepare` leaves those as is.

    What is not there yet is decoded first, as far as `data.cache_gb` and the disk go; without a `reporter` nothing is.
    Raises LdmkitError for a picture that can no longer be decoded.
    """
    pictures, files = index.pictures(), index.entries.files
    pixels = files["width"].astype(np.int64) * files["height"]
    large = np.flatnonzero(pixels > WORTH * math.prod(data.shapes[0])).tolist()
    if not large or not data.cache_gb:
        return pictures
    # Other versions of Pillow may resize otherwise in the last bit.
    sizes = "x".join(map(str, dict.fromkeys(data.shapes[0])))
    if data.buckets:
        sizes += f"-{zlib.crc32(repr(data.shapes).encode()):08x}"
    folder = run_dir / "prepared" / f"{sizes}-{data.crop}-{PIXELS_VERSION}-pillow-{PIL.__version__}"
    store = Store(folder, data.shapes)
    if reporter is not None:
        store = _filled(store, folder, index, large, data, reporter)
    return Lazy(len(index), partial(_kept, pictures, index.entries, store, store.rows(), data))


def _kept(
    pictures: Sequence[Picture], entries: Rows, store: Store, rows: Mapping[str, int], data: Data, i: int
) -> Picture:
    picture, entry = pictures[i], entries[i]
    if (row := rows.get(entry.sha256)) is None:
        return picture
    bucket = data.bucket(entry.width, entry.height)
    return replace(picture, load=partial(store.load, row, bucket, picture.load))


def _filled(store: Store, folder: Path, index: PictureIndex, large: list[int], data: Data, reporter: Reporter) -> Store:
    """The store with every large picture in it, as far as there is room."""
    from filelock import FileLock

    for other in folder.parent.glob("*"):  # of another size, or another Pillow
        if other != folder:
            shutil.rmtree(other, ignore_errors=True)
    with no_room(folder):
        folder.mkdir(parents=True, exist_ok=True)
        # Of several processes the first one prepares, and the others wait.
        with FileLock(folder / "lock"):
            store = Store(folder, store.shapes)
            missing = _missing(store, index, large)
            taken = len(store.records) * store.row_bytes
            budget = int(min(data.cache_gb * 1e9, shutil.disk_usage(folder).free * 0.9 + taken)) // store.row_bytes
            wanted = {index.entries[i].sha256 for i in large}
            if len(missing) + len(store.records) > budget and not wanted >= store.rows().keys():
                store.file.unlink()  # it holds pictures that are gone, whose room is needed
                store = Store(folder, store.shapes)
                missing = _missing(store, index, large)
            room = max(0, budget - len(store.records))
            if len(missing) > room:
                reporter.line(
                    f"{len(missing) - room} of {len(wanted)} large pictures do not fit into data.cache_gb = "
                    f"{data.cache_gb:g} and the disk's free space; they are decoded at each draw"
                )
            if missing[:room]:
                _decode(store, index, missing[:room], data, reporter)
            return Store(folder, store.shapes)


def _missing(store: Store, index: PictureIndex, large: list[int]) -> list[int]:
    """Positions of large pictures whose content is not in the store, one for each content."""
    first = {index.entries[i].sha256: i for i in reversed(large)}
    there = store.rows()
    return sorted(i for content, i in first.items() if content not in there)


def _decode(store: Store, index: PictureIndex, missing: list[int], data: Data, reporter: Reporter) -> None:
    entries = (index.entries[i] for i in missing)
    buckets = np.array([data.bucket(entry.width, entry.height) for entry in entries])
    batches = [np.array(missing)[places] for places in of_one_bucket(buckets, BATCH)]
    pixels_file, records_file = store.open()
    with pixels_file, records_file, reporter.bar("prepare", len(missing)) as bar:
        records: list[NDArray[np.void]] = []

        def save() -> None:
            pixels_file.flush()
            os.fsync(pixels_file.fileno())
            records_file.write(b"".join(record.tobytes() for record in records))
            records_file.flush()
            records.clear()

        try:
            for batch, pixels in zip(batches, uint8_batches(index.pictures(), data, batches), strict=True):
                for i, row in zip(batch, pixels.numpy(), strict=True):
                    content = row.tobytes().ljust(store.row_bytes, b"\0")
                    pixels_file.write(content)
                    record = (bytes.fromhex(index.entries[i].sha256), zlib.crc32(content))
                    records.append(np.array(record, _RECORD))
                if len(records) >= SAVED:
                    save()
                bar.advance(len(batch))
        finally:
            save()
