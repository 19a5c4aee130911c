"""Where a graph's weights lie, against the package onnx."""

from collections.abc import Callable

import onnx
import pytest
from google.protobuf.message import DecodeError
from onnx import AttributeProto, GraphProto, ModelProto, TensorProto, helper

from ldmkit.runtime import graph
from ldmkit.runtime.graph import external_files


def tensor(name: str, *, external: bool) -> TensorProto:
    if not external:
        return helper.make_tensor(name, TensorProto.FLOAT, [2], [1.0, 2.0])
    found = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
    found.external_data.add(key="location", value="weights.bin")
    return found


def with_initializer(model: ModelProto, weight: TensorProto) -> None:
    model.graph.initializer.append(weight)


def with_constant(model: ModelProto, weight: TensorProto) -> None:
    model.graph.node.append(helper.make_node("Constant", [], ["c"], value=weight))


def with_branch(model: ModelProto, weight: TensorProto) -> None:
    inner = GraphProto(name="branch", initializer=[weight])
    model.graph.node.append(helper.make_node("If", ["x"], ["y"], then_branch=inner))


def with_sparse(model: ModelProto, weight: TensorProto) -> None:
    model.graph.sparse_initializer.add().values.CopyFrom(weight)


def with_function(model: ModelProto, weight: TensorProto) -> None:
    node = helper.make_node("Constant", [], ["c"])
    node.attribute.append(AttributeProto(name="values", type=AttributeProto.TENSORS, tensors=[weight]))
    model.functions.add(name="f").node.append(node)


@pytest.mark.parametrize("put", [with_initializer, with_constant, with_branch, with_sparse, with_function])
@pytest.mark.parametrize("external", [False, True])
def test_weights_are_found_wherever_a_model_may_hold_them(
    put: Callable[[ModelProto, TensorProto], None], external: bool
) -> None:
    # Names that hold the word which marks an external file are names and nothing else.
    nodes = [helper.make_node("Relu", ["location"], ["external_data"], doc_string="weights.bin")]
    model = helper.make_model(helper.make_graph(nodes, "location", [], []))
    put(model, tensor("location", external=external))
    assert external_files(model.SerializeToString()) == ({b"weights.bin"} if external else set())


def test_files_are_read_as_protobuf_and_onnx_read_them() -> None:
    weight = tensor("w", external=True)
    other = TensorProto(name="v", data_type=TensorProto.FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
    other.external_data.add(key="offset", value="0")
    twice = TensorProto(name="u", data_type=TensorProto.FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
    for location in ("first", "second"):  # readers differ in which of them counts
        twice.external_data.add(key="location", value=location)
    model = helper.make_model(helper.make_graph([], "g", [], [], [weight, other, twice]))
    assert external_files(model.SerializeToString()) == {b"weights.bin", b"", b"first", b"second"}

    # Of a field that an entry holds twice, the last.
    entry = b"\x0a\x01x\x0a\x08location\x12\x01a\x12\x01b"
    assert onnx.StringStringEntryProto.FromString(entry).value == "b"
    inner = bytes([13 << 3 | 2, len(entry)]) + entry
    model_bytes = b"\x3a" + bytes([len(inner) + 2]) + b"\x2a" + bytes([len(inner)]) + inner
    assert onnx.load_from_string(model_bytes).graph.initializer[0].external_data[0].key == "location"
    assert external_files(model_bytes) == {b"b"}


def test_every_way_from_a_model_to_a_tensor_is_known() -> None:
    """onnx's own description of its messages decides."""
    ways: dict[str, dict[int, str]] = {}
    waiting = [ModelProto.DESCRIPTOR]
    while waiting:
        message = waiting.pop()
        if message.name in ways:
            continue
        ways[message.name] = {field.number: field.message_type for field in message.fields if field.message_type}
        waiting += ways[message.name].values()
    leads = {"TensorProto"}
    while grown := {name for name, inner in ways.items() if {type_.name for type_ in inner.values()} & leads} - leads:
        leads |= grown
    short = {name: name.removesuffix("Proto").removesuffix("Info") for name in leads}
    assert {
        short[name]: {number: short[type_.name] for number, type_ in ways[name].items() if type_.name in leads}
        for name in leads
    } == graph._INSIDE
    assert TensorProto.DESCRIPTOR.fields_by_name["external_data"].number == graph._EXTERNAL_DATA


def test_a_tag_of_more_than_32_bits_is_read_as_protobuf_reads_it() -> None:
    """It is refused: whoever drops the upper bits would see a field 13 that was hidden here."""
    hidden = bytes([13 << 3 | 2 | 0x80, 0x80, 0x80, 0x80, 0x70, 0])
    with pytest.raises(DecodeError):
        TensorProto.FromString(hidden)
    model = b"\x3a" + bytes([len(hidden) + 2]) + b"\x2a" + bytes([len(hidden)]) + hidden
    with pytest.raises(ValueError, match="more than 29 bits"):
        external_files(model)


def test_the_shipped_graphs_hold_all_of_theirs() -> None:
    from ldmkit import shipped

    folder = shipped.exports_dir()
    paths = sorted((folder / "toy-cats").glob("*.onnx")) if folder else []
    if not paths:
        pytest.skip("no bundle is here")
    for path in paths:
        data = path.read_bytes()
        assert external_files(data) == set()
        assert onnx.load_from_string(data).graph.initializer
