"""One network as an ONNX graph, and its comparison with torch."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldmkit.errors import LdmkitError
from ldmkit.runtime.manifest import GraphEntry
from ldmkit.runtime.providers import open_session

BATCH_SIZES = (1, 2, 5)
"""compared at: the exporter may leave a batch size fixed in the graph without a word"""

Inputs = Callable[[int, torch.Generator], dict[str, Tensor]]
"""inputs(batch, generator) -> random inputs by name, batch first"""


def write_graph(network: nn.Module, inputs: Inputs, path: Path, *, opset: int) -> None:
    """Writes `network` to `path` with a dynamic batch and its weights inside; its output is called "output"."""
    import onnx

    # An example of one would fix the batch at one.
    example = inputs(3, torch.Generator().manual_seed(0))
    batch = torch.export.Dim("batch")
    with warnings.catch_warnings():
        # One batch for all inputs is what we want; the exporter remarks on each input after the first.
        warnings.filterwarnings("ignore", "# The axis name: batch will not be used", UserWarning)
        program = torch.onnx.export(
            network,
            kwargs=example,
            input_names=list(example),
            output_names=["output"],
            dynamic_shapes={name: {0: batch} for name in example},
            opset_version=opset,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    strip(model)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString(deterministic=True))


def strip(model: Any) -> None:
    """Removes the exporter's notes for debugging: they name files of this machine and outgrow small weights."""
    parts: list[Any] = [model, model.graph, *model.functions]
    for part in (model.graph, *model.functions):
        parts += [*part.node, *part.value_info]
    parts += [*model.graph.input, *model.graph.output, *model.graph.initializer]
    for part in parts:
        part.ClearField("doc_string")
        part.ClearField("metadata_props")
    model.graph.ClearField("value_info")


def compare(network: nn.Module, inputs: Inputs, path: Path, *, tolerance: float) -> GraphEntry:
    """The largest difference between the graph at `path` and `network` over several batches of random inputs.

    Raises LdmkitError where it is above `tolerance`, not a number, or the graph cannot take a batch size.
    """
    session, _ = open_session(path.read_bytes(), name=path.name, provider="cpu")
    known = {given.name for given in session.get_inputs()}
    largest = 0.0
    for batch in BATCH_SIZES:
        given = inputs(batch, torch.Generator().manual_seed(batch))
        with torch.inference_mode():
            wanted = network(**given)
        try:
            got = session.run(None, {key: value.numpy() for key, value in given.items() if key in known})[0]
        except Exception as error:  # onnxruntime's exceptions share no base class below Exception
            raise LdmkitError(f"{path.name}: the exported graph fails at batch {batch}: {error}") from error
        if got.shape != tuple(wanted.shape):
            raise LdmkitError(
                f"{path.name}: at batch {batch} the graph gives {got.shape}, torch {tuple(wanted.shape)}."
            )
        difference = float((torch.from_numpy(got) - wanted).abs().max())
        if not difference <= tolerance:
            raise LdmkitError(
                f"{path.name}: the exported graph differs from torch by {difference:.3g} at batch {batch}, more than "
                f"{tolerance:g}. Try another opset in [export]; if it stays, the bundle would draw something else."
            )
        largest = max(largest, difference)
    return GraphEntry(max_abs_difference=largest, batch_sizes=BATCH_SIZES)
