"""Whether a PNG holds all its pixels: Pillow leaves the rows black that a stream with a proper end does not bring."""

import struct
import zlib

# Adam7, ISO/IEC 15948, clause 8.2: first column, first row, steps to the right and down of each pass.
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""colour type -> samples a pixel"""


def lacks_pixels(data: bytes) -> bool:
    """Whether the data of a PNG that was decoded without an error unpack to fewer bytes than its header promises."""
    width, height, bits, color_type, _, _, interlaced = struct.unpack(">IIBBBBB", data[16:29])
    passes = _ADAM7 if interlaced else ((0, 0, 1, 1),)
    wanted = 0
    for left, top, right, down in passes:
        columns, rows = -(-(width - left) // right), -(-(height - top) // down)
        if columns > 0 and rows > 0:
            wanted += rows * (1 + -(-columns * bits * _SAMPLES[color_type] // 8))  # a filter's byte before each row
    inflate = zlib.decompressobj()
    position, found = 8, 0
    while position + 8 <= len(data) and found < wanted:
        length = struct.unpack(">I", data[position : position + 4])[0]
        if data[position + 4 : position + 8] == b"IDAT":
            packed = data[position + 8 : position + 8 + length]
            while packed and found < wanted:
                found += len(inflate.decompress(packed, 2**20))
                packed = inflate.unconsumed_tail
        position += 12 + length
    return found < wanted
