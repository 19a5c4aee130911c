"""An ONNX graph in float32 -> the same in float16, but for what float16 is too coarse for."""

from typing import Any

import numpy as np

FULL_OPS = frozenset({"InstanceNormalization", "LayerNormalization", "Softmax"})
"""operators that stay in float32: GroupNorm, LayerNorm and softmax, which sum squares or exponentials"""
FULL_WEIGHTS = ("time_embedding.", "position_embedding.")
"""nodes with weights of these names, and all before them, stay in float32: float16 knows no t = 999.3"""
FULL_INPUTS = {"Resize": (1, 2)}
"""inputs that ONNX defines in float32 whatever the others are"""


def to_half(model: Any) -> None:
    """Turns `model`, an `onnx.ModelProto` without subgraphs, in place; what goes in and comes out stays float32.

    A cast stands wherever float32 and float16 meet, one for each value. (onnxruntime's own converter gives two casts
    the same name, and casts t to float16 on its way to the embedding.)
    """
    from onnx import TensorProto, helper, numpy_helper, shape_inference

    graph = model.graph
    inferred = shape_inference.infer_shapes(model, strict_mode=True).graph
    values = (*inferred.value_info, *inferred.input, *inferred.output)
    weights = {weight.name: weight for weight in graph.initializer if weight.data_type == TensorProto.FLOAT}
    floats = {value.name for value in values if value.type.tensor_type.elem_type == TensorProto.FLOAT} | set(weights)
    outputs = {value.name for value in graph.output}
    full = _up_to_time_embedding(graph)
    half_values: set[str] = set()
    nodes: list[Any] = []
    copies: dict[str, str] = {}
    """what a value is called in the other type"""

    def cast(name: str, other: str, to: int) -> None:
        nodes.append(helper.make_node("Cast", [name], [other], f"cast_{other}", to=to))

    def in_type(name: str, half: bool) -> str:
        if name not in floats or (name in half_values) == half:
            return name
        if name not in copies:
            copies[name] = f"{name}_fp16" if half else f"{name}_fp32"
            if name in weights:
                array = _halved(numpy_helper.to_array(weights[name]))
                graph.initializer.append(numpy_helper.from_array(array, copies[name]))
            else:
                cast(name, copies[name], TensorProto.FLOAT16 if half else TensorProto.FLOAT)
        return copies[name]

    for node in graph.node:
        # These say in an attribute that they give float32.
        half = node.op_type not in FULL_OPS | {"Cast", "Constant", "ConstantOfShape"} and node.output[0] not in full
        for i, name in enumerate(node.input):
            node.input[i] = in_type(name, half and i not in FULL_INPUTS.get(node.op_type, ()))
        nodes.append(node)
        for i, name in enumerate(node.output):
            if half and name in floats:
                if name in outputs:
                    node.output[i] = f"{name}_fp16"
                    cast(node.output[i], name, TensorProto.FLOAT)
                else:
                    half_values.add(name)
    used = {name for node in nodes for name in node.input}
    kept = [weight for weight in graph.initializer if weight.name in used]
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.initializer.extend(kept)


def weights_to_half(model: Any) -> None:
    """Keeps the weights of `model` in float16, in place, and computes in float32 as before.

    A session casts them once, when it is opened: half the bytes at no time. Vectors, such as biases, and what leads
    to the time embedding stay as they are.
    """
    from onnx import TensorProto, helper, numpy_helper

    graph = model.graph
    full = _up_to_time_embedding(graph)
    kept = {name for node in graph.node if node.output[0] in full for name in node.input}
    casts = []
    for weight in graph.initializer:
        if weight.data_type == TensorProto.FLOAT and len(weight.dims) > 1 and weight.name not in kept:
            name, half = weight.name, f"{weight.name}_fp16"
            weight.CopyFrom(numpy_helper.from_array(_halved(numpy_helper.to_array(weight)), half))
            casts.append(helper.make_node("Cast", [half], [name], f"cast_{name}", to=TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def rounded_as_on_gpu(model: Any) -> Any:
    """A graph in float32 alone whose values are those of `to_half`'s graph, each rounded to float16 where it is made.

    A CPU has no kernels for float16: its sessions take such casts out and compute in float32 in between, and would find
    neither the rounding nor the overflow of a GPU, which sums in float32 and rounds what each operator gives.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper, shape_inference

    model = onnx.ModelProto.FromString(model.SerializeToString())
    graph = model.graph
    inferred = shape_inference.infer_shapes(model, strict_mode=True).graph
    half = {v.name for v in inferred.value_info if v.type.tensor_type.elem_type == TensorProto.FLOAT16}
    for weight in graph.initializer:
        if weight.data_type == TensorProto.FLOAT16:
            weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight).astype(np.float32), weight.name))
    nodes = [
        helper.make_node("Constant", [], [name], value_float=value)
        for name, value in (("round_factor", 2.0**13 + 1), ("round_limit", 65520.0), ("round_inf", float("inf")))
    ]
    for node in graph.node:
        if node.op_type == "Cast" and half & {*node.input, *node.output}:
            node.op_type = "Identity"
            del node.attribute[:]
        nodes.append(node)
        for i, name in enumerate(node.output):
            if name not in half:
                continue
            exact, scaled, rest, near, size, over, infinite = (
                f"{name}_{step}" for step in ("exact", "scaled", "rest", "near", "size", "over", "infinite")
            )
            node.output[i] = exact
            nodes += [
                # To 11 bits, Veltkamp 1968: (2^13 + 1) x - ((2^13 + 1) x - x).
                helper.make_node("Mul", [exact, "round_factor"], [scaled]),
                helper.make_node("Sub", [scaled, exact], [rest]),
                helper.make_node("Sub", [scaled, rest], [near]),
                helper.make_node("Abs", [exact], [size]),
                helper.make_node("GreaterOrEqual", [size, "round_limit"], [over]),
                helper.make_node("Mul", [exact, "round_inf"], [infinite]),
                helper.make_node("Where", [over, infinite, near], [name]),
            ]
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    return model


def _up_to_time_embedding(graph: Any) -> set[str]:
    """What the nodes that hold the time embedding's weights give, and all that leads there."""
    makers = {output: node for node in graph.node for output in node.output}
    waiting = [node for node in graph.node if any(name.startswith(FULL_WEIGHTS) for name in node.input)]
    found: set[str] = set()
    while waiting:
        node = waiting.pop()
        if node.output[0] not in found:
            found |= set(node.output)
            waiting += [makers[name] for name in node.input if name in makers]
    return found


def _halved(array: np.ndarray) -> np.ndarray:
    """float16, what is finite kept finite: a mask's -3e38 need only lie far below all else."""
    limit = np.finfo(np.float16).max
    return np.where(np.isinf(array), array, np.clip(array, -limit, limit)).astype(np.float16)
