"""A PNG's chunks: what Pillow would stumble over is taken out, what it does not look at is kept (ISO/IEC 15948)."""

import struct
import zlib

SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Pillow refuses a picture for a text or a profile that unpacks to more than this.
_LARGEST_TEXT = 2**20
_LARGEST_PROFILE = 16 * 2**20
_ALL_TEXT = 2**24
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
# Adam7, clause 8.2: first column, first row, steps to the right and down of each pass.
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""colour type -> samples a pixel"""


def slimmed(data: bytes) -> tuple[bytes, dict[bytes, bytes], set[str]]:
    """(the file without metadata that would cost the picture, {kind of chunk: content}, notes).

    Of several chunks of a kind the first is given, of the colour profile what it unpacks to.
    """
    view = memoryview(data)
    kept, chunks, notes = [view[:8]], dict[bytes, bytes](), set[str]()
    position, texts = 8, 0
    while position + 12 <= len(data):
        length, kind = struct.unpack(">I4s", data[position : position + 8])
        end = position + 12 + length
        body = data[position + 8 : end - 4] if kind != b"IDAT" else b""
        ancillary, keep = bool(kind[0] & 0x20), True
        if ancillary and data[end - 4 : end] != struct.pack(">I", zlib.crc32(kind + body)):
            notes.add(f"its metadata ({kind.decode('latin-1')}) are damaged and left out")
            keep = False
        elif kind in _TEXTS:
            size = _text_size(kind, body)
            texts += size or 0
            keep = size is not None and size <= _LARGEST_TEXT and texts <= _ALL_TEXT
            if not keep:
                what = "damaged" if size is None else "too large"
                notes.add(f"its metadata ({kind.decode('latin-1')}) are {what} and left out")
        elif kind == b"iCCP" and kind not in chunks:
            profile = _inflated(body[body.find(b"\0") + 2 :], _LARGEST_PROFILE)
            if profile is None:
                notes.add("its colour profile cannot be used")
            elif len(profile) > _LARGEST_TEXT:
                notes.add(f"its colour profile is unusually large ({len(profile) / 2**20:.1f} MB)")
            keep = profile is not None and len(profile) <= _LARGEST_TEXT
            body = profile or b""
        if keep:
            kept.append(view[position:end])
        if keep or (kind == b"iCCP" and body):
            chunks.setdefault(kind, body)
        position = end
    return (b"".join(kept) if notes else data), chunks, notes


def _text_size(kind: bytes, body: bytes) -> int | None:
    """Bytes that a text takes unpacked, as far as it matters; None where it does not unpack."""
    _, _, rest = body.partition(b"\0")
    if kind == b"iTXt" and rest[:1] == b"\1":
        packed = rest[2:].split(b"\0", 2)[-1]
    elif kind == b"zTXt":
        packed = rest[1:]
    else:
        return len(body)
    if kind == b"zTXt" and rest[:1] != b"\0":
        return None  # by no method that there is
    text = _inflated(packed, _LARGEST_TEXT + 1)
    return None if text is None else len(text)


def _inflated(packed: bytes, most: int) -> bytes | None:
    """What a zlib stream unpacks to, at most `most` bytes of it; None where it is none."""
    try:
        return zlib.decompressobj().decompress(packed, most)
    except zlib.error:
        return None


def lacks_pixels(data: bytes) -> bool:
    """Whether the data of a PNG that was decoded without an error unpack to fewer bytes than its header promises.

    Pillow leaves the rows black that a stream with a proper end does not bring.
    """
    width, height, bits, color_type, _, _, interlaced = struct.unpack(">IIBBBBB", data[16:29])
    promised = 0
    for left, top, right, down in _ADAM7 if interlaced else ((0, 0, 1, 1),):
        columns, rows = -(-(width - left) // right), -(-(height - top) // down)
        if columns > 0 and rows > 0:  # a filter's byte before each row
            promised += rows * (1 + -(-columns * bits * _SAMPLES[color_type] // 8))
    inflate = zlib.decompressobj()
    position, found = 8, 0
    while position + 8 <= len(data) and found < promised:
        length = struct.unpack(">I", data[position : position + 4])[0]
        if data[position + 4 : position + 8] == b"IDAT":
            packed = data[position + 8 : position + 8 + length]
            while packed and found < promised:
                found += len(inflate.decompress(packed, 2**20))
                packed = inflate.unconsumed_tail
        position += 12 + length
    return found < promised
