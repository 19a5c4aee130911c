"""Networks as the recipe describes them, with fresh weights."""

import torch

from ldmkit.components.protocols import TextEncoder
from ldmkit.models.autoencoder import AutoencoderKL
from ldmkit.models.unet import TextToImage, UNet
from ldmkit.recipe import Recipe


def build_autoencoder(recipe: Recipe) -> AutoencoderKL:
    """The recipe's autoencoder with fresh weights."""
    return AutoencoderKL(**recipe.vae.network())


def build_unet(recipe: Recipe) -> UNet:
    """The recipe's unconditional U-Net with fresh weights."""
    return UNet(in_channels=recipe.vae.latent_channels, **recipe.unet.network())


def build_text_to_image(recipe: Recipe, encoder: TextEncoder, text_module: torch.nn.Module | None) -> TextToImage:
    """The recipe's text U-Net with fresh weights; `text_module` is the encoder's network where it is trained along."""
    unet = UNet(in_channels=recipe.vae.latent_channels, context_dim=encoder.context_dim, **recipe.t2i.network())
    return TextToImage(unet, text_module)
