"""What every network that draws is to the rest: its inputs, its output, and the text beside it."""

from typing import Any

from torch import Tensor, nn

from ldmkit.errors import LdmkitError
from ldmkit.models.blocks import check_size


class Denoiser(nn.Module):
    """Predicts eps, x0, v or flow from noisy latents: which, its training decides.

    forward(x_t (B, C, H, W), t (B,) in [0, T], context (B, L, D), context_mask (B, L) 1 = token) -> (B, C, H, W).
    Raises LdmkitError for a size that is no multiple of `downsample`, and for a context that is missing or that this
    network was not built for. With `mask_padding` no position attends to the context's padding; without,
    `context_mask` is ignored.
    """

    name: str
    """in recipes and in error messages"""
    downsample: int
    context_dim: int | None
    """D; None for a network without text"""
    mask_padding: bool

    def checked_mask(self, x_t: Tensor, context: Tensor | None, context_mask: Tensor | None) -> Tensor | None:
        """The mask as attention takes it, bool, None where all is attended to. Raises LdmkitError as `forward` does."""
        check_size(self.name, x_t, self.downsample)
        if (context is None) != (self.context_dim is None):
            wanted = "no context" if self.context_dim is None else f"a context (B, L, {self.context_dim})"
            raise LdmkitError(
                f"{self.name}: this network was built with context_dim = {self.context_dim}: it takes {wanted}"
            )
        return context_mask.bool() if self.mask_padding and context_mask is not None else None


class TextToImage(nn.Module):
    """Rombach et al. 2022: an encoder trained jointly with the denoiser, or one that is handed cached states."""

    def __init__(self, unet: Denoiser, text_encoder: nn.Module | None) -> None:
        super().__init__()
        self.unet = unet
        self.text_encoder = text_encoder

    def forward(self, x_t: Tensor, t: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        """x_t (B, C, H, W), t (B,), text: ids (B, L) where there is an encoder, else states (B, L, D); mask (B, L)."""
        context = text if self.text_encoder is None else self.text_encoder(text, mask)
        return self.unet(x_t, t, context, mask)  # type: ignore[no-any-return]

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """The denoiser alone: beside it a text encoder costs little."""
        self.unet.compile(*args, **kwargs)
