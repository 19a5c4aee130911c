"""A WebP's container."""

import struct


def holds_zeros(data: bytes) -> bool:
    """Whether a WebP's coded pixels hold 1,024 zeros in a row: no coder writes them, and libwebp decodes them.

    Chunks of the container: RFC 9649, clause 2.3.
    """
    position = 12
    while position + 8 <= len(data):
        kind, size = struct.unpack("<4sI", data[position : position + 8])
        if kind in (b"VP8 ", b"VP8L"):
            return data.find(bytes(1024), position, position + 8 + size) >= 0
        position += 8 + size + size % 2
    return False
