"""Networks as the recipe describes them, with fresh weights."""

import torch

from ldmkit.components.protocols import TextEncoder
from ldmkit.models.autoencoder import AutoencoderKL
from ldmkit.models.denoiser import Denoiser, TextToImage
from ldmkit.models.dit import DiT
from ldmkit.models.unet import UNet
from ldmkit.recipe import Recipe

NETWORKS: dict[str, type[Denoiser]] = {network.name: network for network in (UNet, DiT)}
"""what `use` in [unet] and [t2i] names"""


def build_autoencoder(recipe: Recipe) -> AutoencoderKL:
    """The recipe's autoencoder with fresh weights."""
    return AutoencoderKL(**recipe.vae.network())


def build_unet(recipe: Recipe) -> Denoiser:
    """The network of [unet], without text, with fresh weights."""
    return NETWORKS[recipe.unet.use](in_channels=recipe.vae.latent_channels, **recipe.unet.network())


def build_text_to_image(recipe: Recipe, encoder: TextEncoder, text_module: torch.nn.Module | None) -> TextToImage:
    """The network of [t2i] with fresh weights; `text_module` is the encoder's network where it is trained along."""
    options = {"context_dim": encoder.context_dim, **recipe.t2i.network()}
    return TextToImage(NETWORKS[recipe.t2i.use](in_channels=recipe.vae.latent_channels, **options), text_module)
