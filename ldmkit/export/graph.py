"""One network as an ONNX graph, and its comparison with torch."""

import gc
import math
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ldmkit.errors import LdmkitError
from ldmkit.export.networks import Network
from ldmkit.runtime.manifest import WEIGHTS, GraphEntry
from ldmkit.runtime.providers import open_session

INLINE_BYTES = 128 << 20
"""A larger graph is kept as two files: onnxruntime maps the weights' into memory where it would copy them twice, and
protobuf ends at 2 GiB."""
SMALL_BYTES = 1024
"""Smaller tensors stay in the graph, where the shapes that depend on them can be inferred."""


def make_graph(network: Network, *, opset: int) -> Any:
    """The network as an `onnx.ModelProto`, dynamic in batch, height and width; its output is called "output"."""
    import onnx

    # No axis of an example may be 1: it would be fixed at that.
    size = (4 * network.multiple, 6 * network.multiple)
    example = network.draw(3, size, torch.Generator().manual_seed(0))
    batch, height, width = (torch.export.Dim(name) for name in ("batch", "height", "width"))
    maps = {2: height, 3: width}
    if network.multiple > 1:
        maps = {axis: network.multiple * dim for axis, dim in maps.items()}
    with warnings.catch_warnings(), _no_collection():
        # One batch for all inputs is what we want; the exporter remarks on each input after the first.
        warnings.filterwarnings("ignore", "# The axis name: batch will not be used", UserWarning)
        program = torch.onnx.export(
            network.module,
            kwargs=example,
            input_names=list(example),
            output_names=["output"],
            dynamic_shapes={name: {0: batch, **(maps if x.ndim == 4 else {})} for name, x in example.items()},
            opset_version=opset,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    strip(model)
    onnx.checker.check_model(model)
    return model


@contextmanager
def _no_collection() -> Iterator[None]:
    """The exporter makes millions of objects that live to its end: looking through them took a quarter of the time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def serialized(model: Any) -> bytes:
    """The same bytes for the same model."""
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def save_graph(model: Any, path: Path) -> None:
    """Writes the model to `path`, and its weights to a file beside it where it is larger than `INLINE_BYTES`."""
    from onnx import ModelProto, external_data_helper

    data = path.with_name(WEIGHTS[path.name])
    data.unlink(missing_ok=True)  # onnx would write behind what is there
    if model.ByteSize() > INLINE_BYTES:
        apart = ModelProto()
        apart.CopyFrom(model)
        external_data_helper.convert_model_to_external_data(apart, location=data.name, size_threshold=SMALL_BYTES)
        model = external_data_helper.write_external_data_tensors(apart, str(path.parent))
    path.write_bytes(serialized(model))
    if data.exists():
        data.chmod(path.stat().st_mode & 0o777)  # onnx makes it for its owner alone


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
    for value in (*model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if not re.fullmatch(r"(\d+\*)?(batch|height|width)", dim.dim_param):
                dim.ClearField("dim_param")  # a size that the exporter has no name for, such as "s39"


def compare(network: Network, graph: bytes | Path, *, name: str, tolerance: float | None) -> GraphEntry:
    """The largest difference of `graph`, serialized or in a file, from `network` over several random batches.

    No `tolerance`: for a graph with float16 in it, which the final pictures decide about.

    Raises LdmkitError where it is above `tolerance`, times the largest value where that is above 1, not a number, or
    the graph cannot take a batch or a size.
    """
    session, _ = open_session(graph, name=name, provider="cpu")
    known = {given.name for given in session.get_inputs()}
    largest, timesteps = 0.0, set()
    for batch, size in network.cases():
        case = f"batch {batch}" + (f", {size[0]}x{size[1]}" if any(size) else "")
        given = network.draw(batch, size, torch.Generator().manual_seed(batch))
        with torch.inference_mode():
            expected = network.module(**given)
        try:
            got = session.run(None, {key: value.numpy() for key, value in given.items() if key in known})[0]
        except Exception as error:  # onnxruntime's exceptions share no base class below Exception
            raise LdmkitError(f"{name}: the exported graph fails at {case}: {error}") from error
        if got.shape != tuple(expected.shape):
            raise LdmkitError(f"{name}: at {case} the graph gives {got.shape}, torch {tuple(expected.shape)}")
        difference = float((torch.from_numpy(got) - expected).abs().max())
        if tolerance is None and not difference < math.inf:
            raise LdmkitError(
                f"{name}: the graph's values are too large for float16 at {case}: "
                "use `ldmkit export onnx --precision fp16-weights` or fp32"
            )
        # float32 rounds large values by more: those of a text encoder that was trained for long reach tens.
        scale = max(1.0, float(expected.abs().max()))
        if tolerance is not None and not difference <= tolerance * scale:
            raise LdmkitError(
                f"{name}: the exported graph differs from torch by {difference:.3g} at {case}, more than "
                f"{tolerance * scale:.3g}. Try another opset in [export]; if it stays, the bundle would draw something "
                "else"
            )
        largest = max(largest, difference)
        timesteps |= set(given["t"].tolist()) if "t" in given else set()
    return GraphEntry(
        max_abs_difference=largest,
        batch_sizes=tuple(batch for batch, _ in network.cases()),
        sizes=tuple(size for _, size in network.cases()) if network.size else (),
        timesteps=tuple(sorted(timesteps)),
    )
