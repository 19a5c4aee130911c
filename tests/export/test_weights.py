"""Graphs whose weights lie in a file beside them, as those of a large text encoder do."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from ldmkit.export import bundle as export
from ldmkit.export import graph as export_graph
from ldmkit.export.certify import rounded_bundle
from ldmkit.export.networks import Network, Size
from ldmkit.runtime.bundle import Bundle
from ldmkit.runtime.manifest import file_entry, read_manifest, write_manifest

SHIPPED = Path(__file__).parents[2] / "exports" / "toy-cats"


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)  # type: ignore[no-any-return] # a Sequential is not typed by what it holds


def draw(batch: int, size: Size, generator: torch.Generator) -> dict[str, Tensor]:
    return {"x": torch.randn(batch, 64, generator=generator)}


@pytest.fixture(scope="module")
def module() -> nn.Module:
    return Layers().eval()


@pytest.fixture(scope="module")
def graph(module: nn.Module) -> bytes:
    return export_graph.serialized(export_graph.make_graph(Network(module, draw), opset=18))


@pytest.mark.parametrize("precision", ["fp32", "fp16-weights"])
def test_a_large_graph_is_written_as_two_files(
    precision: export.Precision, module: nn.Module, graph: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "make_graph", lambda *_, **__: onnx.ModelProto.FromString(graph))  # exported once
    path = tmp_path / "text_encoder.onnx"
    one = export.write_graph(path, Network(module, draw), precision=precision, tolerance=1e-4, opset=18)
    whole = path.read_bytes()
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    monkeypatch.setattr(export_graph, "INLINE_BYTES", 1000)
    for _ in range(2):  # over what is there as well
        two = export.write_graph(path, Network(module, draw), precision=precision, tolerance=1e-4, opset=18)
        data = tmp_path / "text_encoder.onnx.data"
        assert {file.name for file in tmp_path.iterdir()} == {path.name, data.name}
        assert len(path.read_bytes()) + data.stat().st_size == pytest.approx(len(whole), abs=2000)
    assert path.stat().st_mode == data.stat().st_mode
    assert one == two
    x = torch.randn(3, 64)
    outputs = [
        onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"]).run(None, {"x": x.numpy()})[0]
        for graph in (whole, path)
    ]
    np.testing.assert_array_equal(*outputs)
    np.testing.assert_allclose(outputs[1], module(x).detach(), atol=1e-5 if precision == "fp32" else 1e-2)


def test_a_bundle_of_such_graphs_draws_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the same weights within the graphs; also as a GPU would round them."""
    monkeypatch.setattr(export_graph, "INLINE_BYTES", 1 << 20)
    manifest, _ = read_manifest(SHIPPED)
    folder = tmp_path / "apart"
    folder.mkdir()
    for name in manifest.files:
        if name.endswith(".onnx"):
            export_graph.save_graph(onnx.load(SHIPPED / name), folder / name)
        else:
            (folder / name).write_bytes((SHIPPED / name).read_bytes())
    files = {path.name: file_entry(path) for path in sorted(folder.iterdir())}
    assert {name for name in files if name.endswith(".data")} >= {"unet_t2i.onnx.data", "unet.onnx.data"}
    write_manifest(folder, manifest.model_copy(update={"files": files}))
    asked = {"prompts": "an orange cat", "steps": 2, "seed": 3}
    pictures = [Bundle.load(place, provider="cpu").generate(**asked)[0] for place in (SHIPPED, folder)]
    assert pictures[0].tobytes() == pictures[1].tobytes()
    with rounded_bundle(Bundle.load(folder, provider="cpu")) as rounded:
        assert rounded.generate(**asked)[0].size == pictures[0].size
        rounded.verify()
