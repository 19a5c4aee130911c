"""Buffers that stay from call to call, against plain runs of the same session."""

import numpy as np
import onnx.parser
import onnxruntime
import pytest

from ldmkit.runtime.onnx_backend import Binding


@pytest.fixture(scope="module")
def session() -> onnxruntime.InferenceSession:
    """y = a * x + t, of any size."""
    graph = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18]> g (float[B,N] x, float[B,1] t, float[N] a) => (float[B,N] y) '
        "{scaled = Mul(a, x) y = Add(scaled, t)}"
    )
    return onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])


def inputs(batch: int, width: int, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "x": rng.standard_normal((batch, width)).astype(np.float32),
        "t": rng.standard_normal((batch, 1)).astype(np.float32),
    }


def test_every_call_is_a_plain_run_whatever_came_before(session: onnxruntime.InferenceSession) -> None:
    a = np.float32([2, 3, 5])
    binding = Binding(session, "cpu", {"a": a, "dropped by the exporter": a})
    # Twice alike, then larger, smaller and as it began.
    for seed, batch in enumerate([2, 2, 4, 1, 2]):
        given = inputs(batch, 3, seed)
        (expected,) = session.run(None, {**given, "a": a})
        np.testing.assert_array_equal(binding(**given, mask=a), expected)


def test_inputs_need_not_be_contiguous(session: onnxruntime.InferenceSession) -> None:
    binding = Binding(session, "cpu", {"a": np.float32([1, 1])})
    for seed in range(2):  # the second goes into the first one's buffer
        x = np.asfortranarray(inputs(3, 2, seed)["x"])
        np.testing.assert_array_equal(binding(x=x, t=np.zeros((3, 1), np.float32)), x)
