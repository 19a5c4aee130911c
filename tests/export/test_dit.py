"""The transformer's graph against torch, at three batches and sizes: positions follow height and width."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from onnx import TensorProto, shape_inference
from torch import nn

from ldmkit.export import networks
from ldmkit.export.graph import compare, make_graph, serialized
from ldmkit.export.half import rounded_as_on_gpu, to_half, weights_to_half
from ldmkit.models.dit import DiT
from ldmkit.runtime.manifest import Latent, Schedule, Text


@pytest.fixture(scope="module")
def exported() -> tuple[networks.Network, Any]:
    module = DiT(2, patch_size=2, width=16, depth=1, num_heads=2, context_dim=6)
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.2, generator=generator)
    latent = Latent(channels=2, height=4, width=4, mean=(0.0, 0.0), std=(1.0, 1.0), multiple=2)
    schedule = Schedule(name="flow", num_timesteps=1000, beta_start=1e-4, beta_end=0.02, zero_terminal_snr=False)
    network = networks.unet(module, latent, schedule, Text(max_tokens=5, context_dim=6), multiple=2)
    return network, make_graph(network, opset=18)


def test_its_graph_is_torchs(exported: tuple[networks.Network, Any]) -> None:
    network, graph = exported
    entry = compare(network, serialized(graph), name="unet_t2i", tolerance=1e-5)
    assert entry.max_abs_difference > 0
    assert entry.sizes == ((4, 4), (6, 4), (2, 8))
    shape = [dim.dim_param or dim.dim_value for dim in graph.graph.input[0].type.tensor_type.shape.dim]
    assert shape == ["batch", 2, "2*height", "2*width"]


@pytest.mark.parametrize("convert", [weights_to_half, to_half])
def test_in_float16_it_is_near(convert: Callable[[Any], None], exported: tuple[networks.Network, Any]) -> None:
    network, graph = exported
    convert(graph := copy.deepcopy(graph))
    inferred = shape_inference.infer_shapes(graph, strict_mode=True).graph
    kind = {value.name: value.type.tensor_type.elem_type for value in inferred.value_info}
    # float16 would tell far rows and columns as little apart as late timesteps.
    waves = [kind[node.output[0]] for node in graph.graph.node if node.op_type in ("Sin", "Cos")]
    assert waves == [TensorProto.FLOAT] * 6
    graph = rounded_as_on_gpu(graph) if convert is to_half else graph
    assert 1e-5 < compare(network, serialized(graph), name="unet_t2i", tolerance=None).max_abs_difference < 1e-2
