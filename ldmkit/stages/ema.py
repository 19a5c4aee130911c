"""Moving average of the weights, with warm-up."""

from typing import Any

import torch
from torch.optim.swa_utils import AveragedModel


def ema_of(model: torch.nn.Module, decay: float) -> AveragedModel:
    """Average with decay min(decay, (1 + n) / (10 + n)) after n updates, so that early grids are not noise."""

    def average(averaged: Any, current: Any, num_averaged: Any) -> None:
        n = int(num_averaged)
        torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + n) / (10 + n)))

    return AveragedModel(model, multi_avg_fn=average)
