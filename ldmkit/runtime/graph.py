"""Which files a serialized ONNX graph needs besides itself, read off its protobuf without the package onnx."""

from collections.abc import Iterator
from mmap import mmap

# message -> {number of a field that holds messages: their type}: the ways from a model to its tensors (onnx.proto3).
_INSIDE: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Node": {5: "Attribute"},
    "Function": {7: "Node", 11: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "SparseTensor", 23: "SparseTensor"},
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
    "Tensor": {},
}
_EXTERNAL_DATA = 13  # TensorProto.external_data; data_location says the same once more
_KEY, _VALUE = 1, 2  # of a StringStringEntryProto

Buffer = bytes | mmap


def external_files(model: Buffer) -> set[bytes]:
    """The files that tensors of the model lie in, as the model spells them, b"" for one that names none.

    Raises ValueError where `model` is no ONNX protobuf.
    """
    if model[4:8] == b"ORTM":  # by which onnxruntime tells its own format
        raise ValueError("a model in onnxruntime's own format")
    found = set()
    waiting = [("Model", 0, len(model))]
    while waiting:
        message, start, end = waiting.pop()
        external = False
        located = False
        for number, first, last in _fields(model, start, end):
            if message == "Tensor" and number == _EXTERNAL_DATA:
                external = True
                key, value = _entry(model, first, last)
                if key == b"location":
                    located = True
                    found.add(value)
            elif number in _INSIDE[message]:
                waiting.append((_INSIDE[message][number], first, last))
        if external and not located:
            found.add(b"")
    return found


def _entry(model: Buffer, start: int, end: int) -> tuple[bytes, bytes]:
    """Key and value of a StringStringEntryProto; of a field that stands there twice the last counts, as in protobuf."""
    fields = {number: model[first:last] for number, first, last in _fields(model, start, end)}
    return fields.get(_KEY, b""), fields.get(_VALUE, b"")


def _fields(data: Buffer, position: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(number, start, end) of each length-delimited field of a message; the other kinds are passed over."""
    while position < end:
        key, position = _varint(data, position, end)
        if key >> 32:  # some readers drop the bits above, and would see another field than this one
            raise ValueError(f"a field's number of more than 29 bits at byte {position}")
        kind = key & 7
        if kind == 0:
            _, position = _varint(data, position, end)
        elif kind in (1, 5):
            position += 8 if kind == 1 else 4
        elif kind == 2:
            length, first = _varint(data, position, end)
            position = first + length
            if position <= end:
                yield key >> 3, first, position
        else:
            raise ValueError(f"a field of the unknown kind {kind} at byte {position}")
        if position > end:
            raise ValueError("cut off")


def _varint(data: Buffer, position: int, end: int) -> tuple[int, int]:
    """(value, position behind it) of a base-128 number, low bits first."""
    value = 0
    for shift in range(0, 70, 7):
        if position >= end:
            raise ValueError("cut off")
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
    raise ValueError(f"a number of more than 10 bytes at byte {position}")
