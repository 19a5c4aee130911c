"""What libjpeg has to say of a JPEG, which Pillow keeps to itself: damage inside the picture's data."""

import re
import struct
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray

_END = b"\xff\xd9"
# ITU-T T.81, annex B: what ends entropy-coded data, that is any marker but stuffed zeros and restarts. Beginning with
# one plain byte it is found ten times as fast as with \xff+; fill bytes before it are counted afterwards.
_NEXT = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])", re.DOTALL)
_SCAN = 0xDA
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = (0xC2, 0xC6, 0xCA, 0xCE)
_RESTARTS = [f"d{number}" for number in range(8)]
_STRAY = 16
"""bytes too many that an encoder may leave before the end: cameras do, and lost data leave more"""


def mended(data: bytes, side: int = 1) -> tuple[bytes, str | None, NDArray[np.uint8] | None]:
    """(the file with an end marker, what is odd about it, its pixels as libjpeg decoded them).

    The pixels (H, W, 1), or (H, W, 4) of four inks, are reduced down to an eighth as long as no side falls below
    `side`: that takes as much of the data as the whole picture does. None where libjpeg did not decode it.
    Raises ValueError, with libjpeg's words, for damage.
    """
    segments = list(_segments(data))
    notes = []
    found_end = bool(segments) and segments[-1][0] == _END[1]
    ended = data if found_end else data + _END
    warning, pixels = _decoded(ended, segments, side)
    if warning is None:
        return data, None, None
    if not found_end:
        notes.append("has no end marker; its pixels are all there")
    if _lacks_scans(data, segments):
        if warning or not found_end:
            raise ValueError("its last scans are missing")
        notes.append("lacks its last scans, which bring the finest detail")
    extraneous = re.search(r"(\d+) extraneous bytes before marker 0x(..)", warning)
    if extraneous:
        number, before_restart = int(extraneous[1]), extraneous[2] in _RESTARTS
        if (number > _STRAY or before_restart) and not _is_padded(ended, segments, number):
            raise ValueError(f"{number} bytes of its data are left over: others are lost, or not its own")
        notes.append(f"has {number} stray bytes between its parts")
    elif warning.startswith(("Corrupt JPEG data", "Premature end")):
        raise ValueError(warning.removeprefix("Corrupt JPEG data: "))
    elif warning:
        notes.append(f"libjpeg: {warning}")
    return ended, "; ".join(notes) or None, pixels


def _decoded(
    data: bytes, segments: list[tuple[int, int, bytes]], side: int
) -> tuple[str | None, NDArray[np.uint8] | None]:
    """(libjpeg's first warning, "" where it has none; pixels); None for what simplejpeg does not decode: Pillow alone
    judges it."""
    components = next((body[5] for marker, _, body in segments if marker in _FRAMES and len(body) > 5), 0)
    # Grey spares the colours' arithmetic, not their data; of four inks there is no grey.
    options: dict[str, Any] = {"min_height": side, "min_width": side}
    options["colorspace"] = "CMYK" if components == 4 else "GRAY"
    try:
        return "", simplejpeg.decode_jpeg(data, **options)
    except ValueError as error:
        with suppress(ValueError):
            return str(error), simplejpeg.decode_jpeg(data, **options, strict=False)
        return None, None


def _segments(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """(marker, where it begins, what it holds) up to the first picture's end, entropy-coded data left out."""
    position = 2
    while found := _NEXT.search(data, position):
        marker, at = found[1][0], found.start()
        while at > position and data[at - 1] == 0xFF:
            at -= 1
        if marker == _END[1]:
            yield marker, at, b""
            return
        (length,) = struct.unpack(">H", data[found.end() : found.end() + 2].rjust(2, b"\0"))
        position = found.end() + length
        yield marker, at, data[found.end() + 2 : position]


def _lacks_scans(data: bytes, segments: list[tuple[int, int, bytes]]) -> bool:
    """Whether a progressive file ends before every bit of every coefficient was sent (T.81, annex G)."""
    frames = [body for marker, _, body in segments if marker in _PROGRESSIVE]
    if not frames or len(frames[0]) < 6:
        return False
    wanted = {(component, k) for component in frames[0][6::3] for k in range(64)}
    for marker, _, body in segments:
        if marker == _SCAN and body and len(body) >= 4 + 2 * body[0]:
            first, last, bits = body[1 + 2 * body[0] :][:3]
            if not bits & 15:
                wanted -= {
                    (component, k) for component in body[1 : 1 + 2 * body[0] : 2] for k in range(first, last + 1)
                }
    return bool(wanted)


def _is_padded(data: bytes, segments: list[tuple[int, int, bytes]], number: int) -> bool:
    """Whether the bytes too many are a filling before the end, one value over and over, or lie before the pixels.

    A filling that reaches further into the data than libjpeg left over was taken for pixels: zeros of a lost tail.
    """
    scan = next((at for marker, at, _ in segments if marker == _SCAN), len(data))
    header = sum(4 + len(body) for _, at, body in segments if at < scan)
    if scan - 2 - header >= number:
        return True
    end = next((at for marker, at, _ in segments if marker == _END[1]), len(data) - 2)
    filling = end - len(data[:end].rstrip(data[end - 1 : end]))
    return number <= filling <= number + _STRAY
