"""A run's trained networks, and what goes with them."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import nn

from ldmkit.components.protocols import TextEncoder
from ldmkit.components.registry import Registry
from ldmkit.errors import LdmkitError
from ldmkit.models.autoencoder import AutoencoderKL
from ldmkit.models.build import build_autoencoder, build_text_to_image, build_unet
from ldmkit.models.denoiser import Denoiser
from ldmkit.recipe import Recipe
from ldmkit.recipe.sections import Latents
from ldmkit.run.checkpoint import load_weights
from ldmkit.run.folder import is_finished, trained_file
from ldmkit.run.parts import PARTS


@dataclass(frozen=True, kw_only=True)
class RunNetworks:
    """All that a run draws with."""

    autoencoder: AutoencoderKL
    latent_mean: torch.Tensor
    """(C,): with `latent_std`, what turns normalised latents into the autoencoder's"""
    latent_std: torch.Tensor
    unet: Denoiser
    unet_t2i: Denoiser
    text_module: nn.Module
    tokenizer: Tokenizer


def load_networks(recipe: Recipe, registry: Registry, run_dir: Path) -> RunNetworks:
    """The networks of a finished run, averaged where there is an average, on the CPU.

    Raises LdmkitError where a part of it is not finished.
    """
    for part in PARTS["bundle"].needs:
        if not is_finished(run_dir / part):
            raise LdmkitError(f"{run_dir / part}: not finished; `ldmkit train` with the run's recipe resumes it")
    encoder: TextEncoder = registry.build("text_encoder", recipe.text.table(), where="[text]")
    tokenizer = Tokenizer.from_file(str(run_dir / "text" / "tokenizer.json"))
    text_module = encoder.load_module(tokenizer)
    unet = build_unet(recipe)
    unet.load_state_dict(trained_weights(run_dir / "unet"))
    text_to_image = build_text_to_image(recipe, encoder, text_module if encoder.trainable else None)
    text_to_image.load_state_dict(trained_weights(run_dir / "t2i"))
    mean, std = latent_statistics(run_dir / "latents", recipe.latents)
    return RunNetworks(
        autoencoder=load_autoencoder(recipe, run_dir / "vae"),
        latent_mean=mean,
        latent_std=std,
        unet=unet,
        unet_t2i=text_to_image.unet,
        text_module=text_module,
        tokenizer=tokenizer,
    )


def trained_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of a finished training stage that later ones use."""
    return load_weights(trained_file(folder))


def load_autoencoder(recipe: Recipe, folder: Path) -> AutoencoderKL:
    """The trained autoencoder, frozen, in eval mode."""
    weights = trained_weights(folder)
    autoencoder = build_autoencoder(recipe)
    autoencoder.load_state_dict(weights)
    return autoencoder.requires_grad_(False).eval()


def latent_statistics(folder: Path, options: Latents) -> tuple[torch.Tensor, torch.Tensor]:
    """(C,) mean and std that latents are normalised with: 0 and 1 where the recipe asks for none."""
    statistics = json.loads((folder / "statistics.json").read_text(encoding="utf-8"))
    mean, std = torch.tensor(statistics["mean"]), torch.tensor(statistics["std"])
    return (mean, std) if options.normalize else (torch.zeros_like(mean), torch.ones_like(std))
