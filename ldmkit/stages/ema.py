"""Moving averages of the weights, with warm-up."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.optim.swa_utils import AveragedModel


def emas_of(model: torch.nn.Module, decays: Sequence[float], device: torch.device) -> dict[str, AveragedModel]:
    """Averages by name: `ema` has the first decay, what later stages use; `ema_0.99` and so on the others."""
    names = ["ema", *(f"ema_{decay:g}" for decay in decays[1:])]
    return {name: ema_of(model, decay).to(device) for name, decay in zip(names, decays, strict=False)}


def ema_of(model: torch.nn.Module, decay: float) -> AveragedModel:
    """Average with decay min(decay, (1 + n) / (10 + n)) after n updates, so that early grids are not noise."""

    def average(averaged: Any, current: Any, num_averaged: Any) -> None:
        n = int(num_averaged)
        torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + n) / (10 + n)))

    return AveragedModel(model, multi_avg_fn=average)
