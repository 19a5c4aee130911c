"""Networks as the recipe describes them, with fresh weights."""

import torch

from ldmkit.components.protocols import TextEncoder
from ldmkit.models.denoiser import Denoiser, TextToImage
from ldmkit.models.dit import DiT
from ldmkit.models.unet import UNet
from ldmkit.recipe import Recipe

NETWORKS: dict[str, type[Denoiser]] = {network.name: network for network in (UNet, DiT)}
"""what `use` in [unet] and [t2i] names"""


def build_unet(recipe: Recipe, channels: int) -> Denoiser:
    """The network of [unet], without text, with fresh weights; `channels`: of the latents."""
    assert recipe.unet is not None
    return NETWORKS[recipe.unet.use](in_channels=channels, **recipe.unet.network())


def build_text_to_image(
    recipe: Recipe, channels: int, encoder: TextEncoder, text_module: torch.nn.Module | None
) -> TextToImage:
    """The network of [t2i] with fresh weights; `text_module` is the encoder's network where it is trained along."""
    assert recipe.t2i is not None
    options = {"context_dim": encoder.context_dim, **recipe.t2i.network()}
    return TextToImage(NETWORKS[recipe.t2i.use](in_channels=channels, **options), text_module)
