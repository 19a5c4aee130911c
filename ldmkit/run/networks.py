"""A run's trained networks."""

from pathlib import Path

import torch

from ldmkit.models.autoencoder import AutoencoderKL
from ldmkit.models.build import build_autoencoder
from ldmkit.recipe import Recipe
from ldmkit.run.checkpoint import load_weights
from ldmkit.run.folder import trained_file


def trained_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of a finished training stage that later ones use."""
    return load_weights(trained_file(folder))


def load_autoencoder(recipe: Recipe, folder: Path) -> AutoencoderKL:
    """The trained autoencoder, frozen, in eval mode."""
    weights = trained_weights(folder)
    autoencoder = build_autoencoder(recipe)
    autoencoder.load_state_dict(weights)
    return autoencoder.requires_grad_(False).eval()
