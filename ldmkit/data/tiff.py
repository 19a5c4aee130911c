"""TIFFs: what Pillow gets wrong of them, and what libtiff says while it decodes."""

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image, TiffImagePlugin

_redirecting = threading.Lock()


def correct_planes(image: Image.Image) -> None:
    """Has Pillow read uncompressed 16-bit samples, a plane for each colour, as such; it takes them for 8-bit ones."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return
    bits, planes = image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE), image.tag_v2.get(284, 1)
    if planes == 2 and bits and bits[0] == 16 and all(tile.codec_name == "raw" for tile in image.tile):
        order = "L" if image.tag_v2.prefix == b"II" else "B"
        tiles = []
        for tile in image.tile:
            assert isinstance(tile.args, tuple)
            tiles.append(tile._replace(args=(f"{tile.args[0]};16{order}", *tile.args[1:])))
        image.tile = tiles


def jpeg_streams(image: Image.Image, data: bytes) -> Iterator[bytes]:
    """Each strip or tile that is compressed as JPEG, with the tables that they share (TIFF 6.0, technote 2)."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile) or image.tag_v2.get(TiffImagePlugin.COMPRESSION) != 7:
        return
    tables: bytes = image.tag_v2.get(TiffImagePlugin.JPEGTABLES, b"")
    for places, sizes in ((273, 279), (324, 325)):
        for at, size in zip(image.tag_v2.get(places, ()), image.tag_v2.get(sizes, ()), strict=False):
            yield tables[:-2] + data[at + 2 : at + size] if tables else data[at : at + size]


def load(image: Image.Image, notes: set[str]) -> None:
    """Decodes a picture of any format; what libtiff says of one is its note, or the reason why it cannot be decoded."""
    if not any(tile.codec_name == "libtiff" for tile in image.tile):  # type: ignore[attr-defined] # of opened files
        image.load()
        return
    failure: OSError | None = None
    with _complaints() as said:
        try:
            image.load()
        except OSError as error:
            failure = error
    if failure is not None:
        raise OSError("; ".join(said) or str(failure)) from failure
    notes |= {f"libtiff: {line}" for line in said}


@contextmanager
def _complaints() -> Iterator[list[str]]:
    """The lines that libtiff writes to the process's stderr in the block, where they would name no file.

    What other threads write there meanwhile is passed on after it.
    """
    found: list[str] = []
    with _redirecting:
        try:
            kept = os.dup(2)  # under the lock: before it, this would be a copy of another thread's pipe
        except OSError:  # a process without stderr, where nothing is shown
            yield found
            return
        said, told = os.pipe()
        if hasattr(os, "set_blocking"):
            # What no longer fits into the pipe is lost, and nobody waits; nor for its end, which would not come while a
            # process that was started meanwhile has it as stderr.
            os.set_blocking(told, False)
            os.set_blocking(said, False)
        os.dup2(told, 2)
        os.close(told)
        try:
            yield found
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            for line in _drained(said).splitlines(keepends=True):
                if re.fullmatch(rb"[\w.]+: .*\.\n", line):  # libtiff's "module: message."
                    found.append(line.decode(errors="replace").rstrip(".\n"))
                else:
                    os.write(2, line)


def _drained(pipe: int) -> bytes:
    """What is in the pipe, which is closed then."""
    parts = []
    with os.fdopen(pipe, "rb", buffering=0) as file:
        while part := file.read(1 << 16):  # None where nothing is there yet, b"" at the end
            parts.append(part)
    return b"".join(parts)
