"""An exported model to draw with, for who uses it from Python."""

from collections.abc import Callable, Sequence
from typing import Unpack

import numpy as np
from PIL import Image

from ldmkit.runtime.generate import Step, draw, to_pictures
from ldmkit.runtime.onnx_backend import OnnxBackend
from ldmkit.runtime.request import (
    DEFAULT_AMOUNT,
    DrawRequest,
    PictureRequest,
    Settings,
    each_prompt,
    interpolation,
    variations,
)
from ldmkit.runtime.settings import resolve


class Options(Settings, total=False):
    """The keywords that all ways to draw share."""

    batch_size: int
    on_step: Callable[[Step], None] | None


class Bundle(OnnxBackend):
    """An exported model. `Bundle.load` opens one; `generate`, `vary` and `interpolate` draw from it.

    `options` are the fields of `DrawRequest`, `batch_size` (8), and `on_step`, which is called after each call of the
    U-Net. A value out of range raises LdmkitError before any graph is opened. A prompt that is longer than the text
    encoder reads gives a `PromptCutWarning`.
    """

    def generate(
        self, prompts: Sequence[str] | str | None = None, *, n: int = 1, seed: int = 0, **options: Unpack[Options]
    ) -> list[Image.Image]:
        """Draws `n` pictures of each prompt, prompt by prompt; None and "" draw unconditionally.

        Picture k comes from seed + k, whatever the batch.
        """
        return self._draw(each_prompt(prompts, n=n, seed=seed), **options)

    def vary(
        self,
        prompt: str | None = None,
        *,
        n: int = 4,
        seed: int = 0,
        amount: float = DEFAULT_AMOUNT,
        **options: Unpack[Options],
    ) -> list[Image.Image]:
        """The picture of `seed` and `n` like it: their noise lies `amount` of the way to the noise of other seeds."""
        return self._draw(variations(prompt, n=n, seed=seed, amount=amount), **options)

    def interpolate(
        self,
        prompts: tuple[str | None, str | None] = (None, None),
        *,
        seeds: tuple[int, int] = (0, 0),
        frames: int = 8,
        **options: Unpack[Options],
    ) -> list[Image.Image]:
        """`frames` pictures from the first prompt and seed to the second; the ends are what `generate` draws of them.

        Noise goes along a great circle; between prompts the U-Net's outputs for both are weighted.
        """
        return self._draw(interpolation(prompts, seeds, frames=frames), **options)

    def _draw(
        self,
        pictures: list[PictureRequest],
        *,
        batch_size: int = 8,
        on_step: Callable[[Step], None] | None = None,
        **settings: Unpack[Settings],
    ) -> list[Image.Image]:
        resolved = resolve(self, DrawRequest(pictures, **settings))
        return draw(self, resolved, batch_size=batch_size, on_step=on_step)

    def preview(self, x0: np.ndarray) -> list[Image.Image]:
        """Latents (B, C, h, w), as in `Step.x0`, by a cheap linear map: pictures of the bundle's size, if blurred.

        Empty where the bundle has no such map; `run(VAE_DECODER, ...)` is exact, and takes as long as some steps.
        """
        rgb = self.manifest.latent.rgb
        if rgb is None:
            return []
        pixels = np.einsum("kc,bchw->bkhw", np.asarray(rgb.weights), x0)
        pixels += np.asarray(rgb.bias)[:, None, None]
        factor = self.manifest.factor
        return [picture.resize((picture.width * factor, picture.height * factor)) for picture in to_pictures(pixels)]
