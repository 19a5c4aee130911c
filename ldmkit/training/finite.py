"""Whether losses and gradients are finite, asked before the weights change."""

import math
from collections.abc import Callable

import torch

from ldmkit.errors import LdmkitError

Names = Callable[[], list[str]]


class FiniteCheck:
    """Collects an update's losses and looks at all of them at once: each look makes the CPU wait for a GPU."""

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self._losses: list[tuple[torch.Tensor, Names, str]] = []

    def add(self, loss: torch.Tensor, names: Names, what: str) -> None:
        """A scalar to look at before the next update; `names` gives the files of its batch."""
        self._losses.append((loss.detach(), names, what))

    def settle(self, norm: torch.Tensor) -> float:
        """The gradient's norm as a number, finite or not. Raises LdmkitError where one of the losses is not finite."""
        losses, self._losses = self._losses, []
        *values, number = torch.stack([*(loss.float() for loss, _, _ in losses), norm.detach().float()]).tolist()
        for value, (_, names, what) in zip(values, losses, strict=True):
            if not math.isfinite(value):
                raise self.error(what, value, names())
        return float(number)

    def error(self, what: str, value: float, files: list[str]) -> LdmkitError:
        """What to tell the user, with the batch's first files."""
        more = f" and {len(files) - 16} more" if len(files) > 16 else ""
        return LdmkitError(
            f"{self.stage}: the {what} is {value}; nothing was changed by this batch. Its pictures: "
            f'{", ".join(files[:16])}{more}. A lower learning_rate or precision = "fp32" often helps; '
            "the last checkpoint is good"
        )
