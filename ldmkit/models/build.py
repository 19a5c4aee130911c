"""Networks as the recipe describes them, with fresh weights."""

import torch

from ldmkit.components.protocols import TextEncoder
from ldmkit.models.unet import TextToImage, UNet
from ldmkit.recipe import Recipe


def build_unet(recipe: Recipe, channels: int) -> UNet:
    """The recipe's unconditional U-Net with fresh weights; `channels`: of the latents."""
    assert recipe.unet is not None
    return UNet(in_channels=channels, **recipe.unet.network())


def build_text_to_image(
    recipe: Recipe, channels: int, encoder: TextEncoder, text_module: torch.nn.Module | None
) -> TextToImage:
    """The recipe's text U-Net with fresh weights; `text_module` is the encoder's network where it is trained along."""
    assert recipe.t2i is not None
    unet = UNet(in_channels=channels, context_dim=encoder.context_dim, **recipe.t2i.network())
    return TextToImage(unet, text_module)
