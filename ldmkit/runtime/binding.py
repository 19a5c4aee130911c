"""Calls one graph again and again with inputs and output in buffers that stay where they are, on the graph's device."""

from collections.abc import Mapping
from typing import Any

import numpy as np


class Binding:
    """A session with some of its inputs fixed; call it with the others.

    On a GPU the fixed inputs are copied there once, and a call copies no more than its own inputs and the output: they
    are latents, a few kilobytes. Buffers are made anew only where a shape changes.
    """

    def __init__(self, session: Any, device: str, fixed: Mapping[str, np.ndarray]) -> None:
        self._session = session
        self._device = device
        self._binding = session.io_binding()
        self._known = {given.name for given in session.get_inputs()}
        self._output_name = session.get_outputs()[0].name
        self._inputs: dict[str, Any] = {}
        self._output: Any = None
        self._fill(fixed)

    def __call__(self, **inputs: np.ndarray) -> np.ndarray:
        """The graph's only output; it holds until the next call."""
        if self._fill(inputs):
            self._binding.bind_output(self._output_name, self._device)  # onnxruntime makes a buffer of the right shape
            self._output = None
        self._session.run_with_iobinding(self._binding)
        if self._output is None:
            self._output = self._binding.get_outputs()[0]
            self._binding.bind_ortvalue_output(self._output_name, self._output)
        output: np.ndarray = self._output.numpy()
        return output

    def _fill(self, inputs: Mapping[str, np.ndarray]) -> bool:
        """Copies inputs into their buffers; whether one had to be made, by which the output's shape may change."""
        from onnxruntime import OrtValue

        made = False
        for name, value in inputs.items():
            if name not in self._known:  # an exporter may drop what the network ignores, as a mask
                continue
            buffer = self._inputs.get(name)
            if buffer is not None and buffer.shape() == list(value.shape):
                buffer.update_inplace(np.ascontiguousarray(value))
                continue
            self._inputs[name] = OrtValue.ortvalue_from_numpy(np.ascontiguousarray(value), self._device, 0)
            self._binding.bind_ortvalue_input(name, self._inputs[name])
            made = True
        return made
