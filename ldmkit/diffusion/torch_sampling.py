"""Drawing with a torch network: previews while it trains, and comparisons."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from ldmkit.components.protocols import Sampler
from ldmkit.diffusion.process import NoiseSchedule, Prediction, to_x0

Text = tuple[torch.Tensor, ...]
"""() without text; (ids or states, mask) with it"""


@torch.no_grad()
def draw_latents(
    network: Callable[..., torch.Tensor],
    x_T: torch.Tensor,  # noqa: N803 - the field's name
    *,
    sampler: Sampler,
    schedule: NoiseSchedule,
    prediction: Prediction,
    randn_like: Callable[[torch.Tensor], torch.Tensor],
    text: tuple[Text, Text] | None = None,
    guidance_scale: float = 1.0,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> torch.Tensor:
    """Normalised latents, shaped like the noise `x_T` (B, C, h, w); `text` is (of the prompts, of the empty one).

    Classifier-free guidance as in Ho and Salimans 2022, eq. 6, with the weight counted as 1 for none.
    """

    def denoise(x_t: torch.Tensor, t: float) -> torch.Tensor:
        times = torch.full((len(x_t),), t, device=x_t.device)
        with autocast():
            output = network(x_t, times, *(text[0] if text else ())).float()
            if text is not None and guidance_scale != 1:
                empty = network(x_t, times, *text[1]).float()
                # Outside of half precision, whose rounding the scale would magnify.
                output = empty + guidance_scale * (output - empty)
        alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
        x0: torch.Tensor = to_x0(prediction, output, x_t, alpha, sigma)
        return x0

    latents: torch.Tensor = sampler.sample(denoise, x_T, schedule, randn_like)
    return latents
