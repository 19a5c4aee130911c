"""float16 in graphs: what becomes of it, what must not, and how far the outputs move."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
from onnx import TensorProto, numpy_helper, shape_inference
from onnx.reference import ReferenceEvaluator

from ldmkit.export.half import rounded_as_on_gpu, to_half, weights_to_half

# A timestep's embedding of one frequency, a convolution, a norm, a softmax with a mask, a Resize: each trap once.
NETWORK = """<ir_version: 8, opset_import: ["" : 18]>
g (float[batch, 4, height, width] x_t, float[batch] t, bool[batch, 6] mask)
    => (float[batch, 4, height, width] output, float[batch, 4, high, wide] larger)
<float[1] frequency = {1.0}, float[4] ones = {1.0, 1.0, 1.0, 1.0}, float[4] zeros = {0.0, 0.0, 0.0, 0.0},
 float low = {-3.4e38}, float none = {0.0},
 float[4] scales = {1.0, 1.0, 2.0, 2.0}, int64[1] last = {1}, int64[2] lasts = {2, 3}, int64[2] middle = {1, 2}>
{
    column = Unsqueeze(t, last)
    angle = Mul(column, frequency)
    wave = Sin(angle)
    other = Cos(angle)
    both = Add(wave, other)
    time = Gemm <transB = 1> (both, embedding)
    time4 = Unsqueeze(time, lasts)
    h = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x_t, conv)
    normed = InstanceNormalization(h, ones, zeros)
    timed = Add(normed, time4)
    score = Where(mask, none, low)
    share = Softmax <axis = 1> (score)
    share3 = Unsqueeze(share, middle)
    mean = ReduceMean <keepdims = 1> (share3, lasts)
    output = Add(timed, mean)
    doubled = Relu(timed)
    larger = Resize <mode = "nearest"> (doubled, , scales)
}"""


def network() -> Any:
    model = onnx.parser.parse_model(NETWORK)
    weight = np.random.default_rng(0).standard_normal((4, 4, 3, 3)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weight, "conv"))
    embedding = np.array([[1], [0.3], [0.25], [0.1]], dtype=np.float32)
    model.graph.initializer.append(numpy_helper.from_array(embedding, "time_embedding.weight"))
    (gemm,) = [node for node in model.graph.node if node.op_type == "Gemm"]
    gemm.input[1] = "time_embedding.weight"  # no name for the parser
    onnx.checker.check_model(model, full_check=True)
    return model


def inputs() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    mask = np.array([[True, True, False, False, False, False], [True] * 6])
    x_t = rng.standard_normal((2, 4, 6, 8)).astype(np.float32)
    return {"x_t": x_t, "t": np.array([999.3, 0.25], dtype=np.float32), "mask": mask}


def run(model: Any) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, inputs())


def types(model: Any) -> dict[str, int]:
    inferred = shape_inference.infer_shapes(model, strict_mode=True).graph
    return {v.name: v.type.tensor_type.elem_type for v in (*inferred.value_info, *inferred.input, *inferred.output)}


@pytest.mark.parametrize("convert", [to_half, weights_to_half])
def test_the_graph_is_whole_and_near(convert: Callable[[Any], None]) -> None:
    model = network()
    expected = run(model)
    convert(model)
    onnx.checker.check_model(model, full_check=True)  # sorted, typed, and no value made twice
    names = [node.name for node in model.graph.node if node.name]
    assert len(names) == len(set(names))
    found = types(model)
    assert {found[v.name] for v in (*model.graph.input, *model.graph.output)} == {TensorProto.FLOAT, TensorProto.BOOL}
    for got, wanted in zip(run(model), expected, strict=True):
        assert got.dtype == np.float32
        assert 0 < np.abs(got - wanted).max() < 0.01  # of about 4; with t in float16 it is 0.5


def test_what_stays_in_float32() -> None:
    model = network()
    to_half(model)
    found = types(model)
    weights = {weight.name: weight.data_type for weight in model.graph.initializer}
    half, full = TensorProto.FLOAT16, TensorProto.FLOAT
    makers = {node.op_type: node for node in model.graph.node}

    def of_inputs(op_type: str) -> list[int]:
        return [found.get(name, weights.get(name, 0)) for name in makers[op_type].input if name]

    assert of_inputs("Conv") == [half, half]
    assert of_inputs("InstanceNormalization") == [full, full, full]
    assert of_inputs("Softmax") == [full]
    assert of_inputs("Sin") == of_inputs("Cos") == [full]
    assert of_inputs("Gemm") == [full, full]
    assert of_inputs("Resize") == [half, full]
    # -3.4e38 is finite in float32, and so it is here.
    (low,) = [numpy_helper.to_array(w) for w in model.graph.initializer if w.name == "low_fp16"]
    assert low == np.finfo(np.float16).min
    assert "low" not in weights
    assert "conv" not in weights


def test_rounding_as_on_a_gpu_is_that_of_float16() -> None:
    """onnx's own reference evaluator really computes in float16; ours may differ where it sums in float16 as well."""
    model = network()
    to_half(model)
    rounded = rounded_as_on_gpu(model)
    onnx.checker.check_model(rounded, full_check=True)
    inferred = set(types(rounded).values())
    assert TensorProto.FLOAT16 not in inferred
    assert model.graph.node[0].op_type != "Constant"  # a copy was changed
    exact, here = run(network()), run(rounded)
    for got, wanted in zip(here, ReferenceEvaluator(model).run(None, inputs()), strict=True):
        assert np.array_equal(got, got.astype(np.float16))
        assert np.abs(got - wanted).mean() < 2e-4  # a step of float16 at 1 is 1e-3
    assert np.abs(here[0] - exact[0]).max() > 1e-4


@pytest.mark.parametrize("x", [1 / 3, -1 / 3, 2049.0, 2051.0, 65519.0, 65520.0, -1e6, float("-inf"), 0.0, 1e-3])
def test_a_value_is_rounded_as_numpy_does(x: float) -> None:
    text = """<ir_version: 8, opset_import: ["" : 18]> g (float[1] x) => (float[1] output) { output = Relu(x) }"""
    model = onnx.parser.parse_model(text)
    model.graph.node[0].op_type = "Identity"
    to_half(model)
    session = onnxruntime.InferenceSession(
        rounded_as_on_gpu(model).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    with np.errstate(over="ignore"):
        expected = np.array([x], dtype=np.float32).astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(session.run(None, {"x": np.array([x], dtype=np.float32)})[0], expected)


def test_stored_in_float16_it_computes_with_the_rounded_weights() -> None:
    """The same network whose weights were rounded beforehand gives the very same numbers."""
    stored, rounded = network(), network()
    weights_to_half(stored)
    assert {w.name for w in stored.graph.initializer if w.data_type == TensorProto.FLOAT16} == {"conv_fp16"}
    for weight in rounded.graph.initializer:
        if weight.name == "conv":
            array = numpy_helper.to_array(weight).astype(np.float16).astype(np.float32)
            weight.CopyFrom(numpy_helper.from_array(array, "conv"))
    for got, wanted in zip(run(stored), run(rounded), strict=True):
        np.testing.assert_array_equal(got, wanted)
    assert np.abs(run(network())[0] - run(stored)[0]).max() > 1e-4
