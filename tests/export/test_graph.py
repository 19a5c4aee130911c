"""Graphs against torch, one by one, on the smallest network there is."""

import warnings
from pathlib import Path

import onnx.parser
import pytest
import torch
from torch import nn

from ldmkit.errors import LdmkitError
from ldmkit.export import bundle as export
from ldmkit.export.graph import compare, make_graph, serialized
from ldmkit.export.networks import Network, Size, on_cpu
from ldmkit.runtime.manifest import GraphEntry


class Scale(nn.Module):
    """x times a number: the smallest network."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor


def ones(batch: int, size: Size, generator: torch.Generator) -> dict[str, torch.Tensor]:
    return {"x": torch.ones(batch, 2)}


def test_a_graph_that_differs_is_named_with_its_difference() -> None:
    """Above 1 as a share of the largest value, which float32 rounds by more."""
    for exact, allowed, refused, told in ((0.5, 2**-14, 2**-13, "0.000122"), (32.0, 2**-9, 2**-8, "0.00391")):
        graph = serialized(make_graph(Network(on_cpu(Scale(exact)), ones), opset=18))

        def difference(factor: float, graph: bytes = graph) -> float:
            return compare(Network(Scale(factor), ones), graph, name="unet.onnx", tolerance=1e-4).max_abs_difference

        assert difference(exact) == 0
        assert difference(exact + allowed) == allowed
        for factor, words in ((exact + refused, told), (float("nan"), "nan")):
            with pytest.raises(
                LdmkitError, match=rf"unet\.onnx: .* differs from torch by {words} at batch 1, more than"
            ):
                difference(factor)


def test_a_graph_in_half_precision_is_compared_too(tmp_path: Path) -> None:
    def write(factor: float, x: float = 1.0) -> GraphEntry:
        network = Network(on_cpu(Scale(factor)), lambda batch, size, generator: {"x": torch.full((batch, 2), x)})
        return export.write_graph(tmp_path / "unet.onnx", network, precision="fp16", tolerance=1e-4, opset=18)

    # 1/3 in float16 is 0.33325.
    entry = write(1 / 3)
    assert entry.max_abs_difference == 0
    assert entry.fp16_max_abs_difference == pytest.approx(1 / 3 - 0.333251953125, abs=1e-7)
    with pytest.raises(LdmkitError, match=r"unet\.onnx: the graph's values are too large for float16 at batch 1"):
        write(300.0, 300.0)


def test_a_fixed_batch_is_found() -> None:
    text = '<ir_version: 8, opset_import: ["" : 18]> g (float[2,2] x) => (float[2,2] output) {output = Identity(x)}'
    graph = onnx.parser.parse_model(text).SerializeToString()
    with pytest.raises(LdmkitError, match=r"unet\.onnx: the exported graph fails at batch 1"):
        compare(Network(Scale(1.0), ones), graph, name="unet.onnx", tolerance=1e-4)


def test_a_compiled_module_is_unwrapped() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch.compile's own imports
        compiled = torch.compile(Scale(3.0).train())
    copied = on_cpu(compiled)
    assert isinstance(copied, Scale)
    assert list(copied.state_dict()) == ["factor"]
    assert not copied.training
    assert compiled.training
