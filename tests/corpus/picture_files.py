"""Picture files byte by byte: what no library would write as well."""

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

SIDE = 24


def quilt(width: int = SIDE, height: int = SIDE) -> np.ndarray[Any, Any]:
    """Patches of 8 x 8 pixels, every side different, none of them grey."""
    rng = np.random.default_rng(width)
    patches = rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return np.kron(patches, np.ones((8, 8, 1), np.uint8))


def flat(*color: int, width: int = 8, height: int = 8) -> np.ndarray[Any, Any]:
    return np.broadcast_to(np.array(color, np.uint8), (height, width, 3))


def saved(image: Any, file_format: str, **options: Any) -> bytes:
    """The file of a picture, or of an array."""
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, file_format, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    width: int, height: int, bits: int, color_type: int, rows: Any, extra: bytes = b"", interlace: int = 0
) -> bytes:
    """PNG, ISO/IEC 15948, chapter 11: colour type 0 grey, 2 RGB, 3 palette, 4 grey and alpha, 6 RGBA."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, interlace))
    body = rows if isinstance(rows, bytes) else zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def tiff(tags: list[tuple[int, int, int, int]], data: bytes = b"", following: int = 0) -> bytes:
    """TIFF 6.0, little endian: one directory at byte 8 of (tag, type, count, value), then `data`."""
    body = b"II*\0" + struct.pack("<IH", 8, len(tags))
    body += b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return body + struct.pack("<I", following) + data


def grey_tiff(bits: int, sample_format: int, values: bytes, width: int, height: int = 1, compression: int = 1) -> bytes:
    at = 8 + 2 + 10 * 12 + 4
    fields = {256: width, 257: height, 258: bits, 259: compression, 262: 1, 273: at, 277: 1, 278: height}
    fields |= {279: len(values), 339: sample_format}
    return tiff([(tag, 4, 1, value) for tag, value in fields.items()], values)
