"""What a training stage brings to the loop."""

from typing import Any, Protocol

import torch

from ldmkit.training.ema import Ema

Metrics = dict[str, float]


class Task(Protocol):
    """Networks, their loss and their evaluation. A task is given an engine, and adds the networks it trains to it."""

    modules: dict[str, torch.nn.Module]
    """bare networks whose weights make up a checkpoint; `model` is the one that is trained and averaged"""
    emas: dict[str, Ema]
    """moving averages of `model` by name (see `emas_of`); the first is what later stages use"""
    memory: dict[str, Any]
    """JSON values that a checkpoint keeps and a resumed run gets back"""

    def train_step(self, step: int) -> dict[str, torch.Tensor]:
        """One optimizer step (step counts from 0); detached scalars, `loss` among them."""

    def evaluate(self) -> Metrics:
        """Held-out metrics, the same pictures and noise each time; asked of the first process alone."""

    def review(self, step: int, metrics: Metrics) -> list[str]:
        """Acts upon an evaluation, in every process: lines for the user; may change weights."""

    def draw(self, step: int) -> dict[str, torch.Tensor]:
        """Sample grids by name, (H, W, 3) uint8; before the same step is evaluated, which may report on them."""
