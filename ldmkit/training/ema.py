"""Moving averages of the weights, with warm-up."""

from collections.abc import Sequence

import torch
from torch.optim.swa_utils import AveragedModel


class Ema(AveragedModel):
    """Average with decay min(decay, (1 + n) / (10 + n)) after n updates, so that early grids are not noise.

    The first update takes the weights whole. AveragedModel's own update asks a GPU for n three times a step; here n
    stays in main memory, so that the next batch can be made while the GPU is still at work.
    """

    def __init__(self, model: torch.nn.Module, decay: float, device: torch.device | None = None) -> None:
        super().__init__(model, device)
        self.decay = decay
        self.n_averaged = self.n_averaged.cpu()
        # Found once: to walk through all modules takes longer than to average them on a GPU. In a tuple, since a module
        # assigned to an attribute would become a part of this one.
        averages: list[torch.Tensor] = list(self.module.parameters())
        weights: list[torch.Tensor] = list(model.parameters())
        self._pair = (model, averages, weights)

    @torch.no_grad()
    def update_parameters(self, model: torch.nn.Module) -> None:
        """One more update with the weights of the model it was made for; buffers are taken as they are."""
        averaged_model, averages, weights = self._pair
        assert model is averaged_model
        n = int(self.n_averaged)
        kept = min(self.decay, (1 + n) / (10 + n)) if n else 0.0
        torch._foreach_lerp_(averages, weights, 1 - kept)
        for averaged, current in zip(self.module.buffers(), model.buffers(), strict=True):
            averaged.copy_(current)
        self.n_averaged += 1


def names_of(decays: Sequence[float]) -> list[str]:
    """`ema` has the first decay, what later stages use; `ema_0.99` and so on the others."""
    return [f"ema_{decay:g}" if number else "ema" for number, decay in enumerate(decays)]


def emas_of(model: torch.nn.Module, decays: Sequence[float], device: torch.device) -> dict[str, Ema]:
    """Averages by name, see `names_of`."""
    return {name: Ema(model, decay, device) for name, decay in zip(names_of(decays), decays, strict=True)}
