"""A run's trained networks, and what goes with them."""

import json
import math
from collections.abc import Mapping
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
from ldmkit.models.unet import UNet
from ldmkit.recipe import Recipe
from ldmkit.recipe.sections import Latents
from ldmkit.run.checkpoint import chosen_weights, load_weights
from ldmkit.run.files import check, remedy, trained_file
from ldmkit.run.folder import is_finished
from ldmkit.run.parts import PARTS
from ldmkit.run.progress import checkpoints, step_of

UNETS = ("unet", "t2i")


@dataclass(frozen=True, kw_only=True)
class RunNetworks:
    """All that a run draws with."""

    autoencoder: AutoencoderKL
    latent_mean: torch.Tensor
    """(C,): with `latent_std`, what turns normalised latents into the autoencoder's"""
    latent_std: torch.Tensor
    unet: UNet
    unet_t2i: UNet
    text_module: nn.Module
    tokenizer: Tokenizer
    steps: Mapping[str, int]
    """of the U-Nets whose weights are a checkpoint's, by part"""


def load_networks(recipe: Recipe, registry: Registry, run_dir: Path, *, checkpoint: str | None = None) -> RunNetworks:
    """The networks of a finished run, averaged where there is an average, on the CPU.

    `checkpoint`: of the U-Nets that have it, the weights of this step, or of the `best` one; see `chosen_weights`.

    Raises LdmkitError where a part of it is not finished, or a file is not what was written.
    """
    for part in PARTS["bundle"].needs:
        if not is_finished(run_dir / part):
            raise LdmkitError(f"{run_dir / part}: not finished; `ldmkit train` with the run's recipe resumes it")
    encoder: TextEncoder = registry.build("text_encoder", recipe.text.table(), where="[text]")
    tokenizer = load_tokenizer(run_dir / "text")
    text_module = encoder.load_module(tokenizer)
    chosen = {} if checkpoint is None else _chosen(run_dir, checkpoint)
    weights = {
        name: load_weights(chosen[name][0]) if name in chosen else trained_weights(run_dir / name) for name in UNETS
    }
    unet = build_unet(recipe)
    unet.load_state_dict(weights["unet"])
    text_to_image = build_text_to_image(recipe, encoder, text_module if encoder.trainable else None)
    text_to_image.load_state_dict(weights["t2i"])
    mean, std = latent_statistics(run_dir / "latents", recipe.latents)
    return RunNetworks(
        autoencoder=load_autoencoder(recipe, run_dir / "vae"),
        latent_mean=mean,
        latent_std=std,
        unet=unet,
        unet_t2i=text_to_image.unet,
        text_module=text_module,
        tokenizer=tokenizer,
        steps={name: step for name, (_, step) in chosen.items()},
    )


def _chosen(run_dir: Path, which: str) -> dict[str, tuple[Path, int]]:
    found = {name: weights for name in UNETS if (weights := chosen_weights(run_dir / name, which)) is not None}
    if not found:
        steps = {name: [step_of(each) for each in checkpoints(run_dir / name / "checkpoints")] for name in UNETS}
        there = "; ".join(f"{name} has {', '.join(map(str, own)) or 'none'}" for name, own in steps.items())
        raise LdmkitError(f"{run_dir}: --checkpoint {which}: no such checkpoint; it takes a step or best; {there}")
    return found


def trained_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of a finished training stage that later ones use. Raises LdmkitError where they are not its own."""
    file = trained_file(folder)
    check(file)
    return load_weights(file)


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a run's `text/`. Raises LdmkitError where it is not what was written."""
    file = folder / "tokenizer.json"
    check(file)
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # of no type of their own
        raise LdmkitError(f"{file}: no tokenizer that can be read: {error}; {remedy(folder)}") from None


def load_autoencoder(recipe: Recipe, folder: Path) -> AutoencoderKL:
    """The trained autoencoder, frozen, in eval mode."""
    weights = trained_weights(folder)
    autoencoder = build_autoencoder(recipe)
    autoencoder.load_state_dict(weights)
    return autoencoder.requires_grad_(False).eval()


def latent_statistics(folder: Path, options: Latents) -> tuple[torch.Tensor, torch.Tensor]:
    """(C,) mean and std that latents are normalised with: 0 and 1 where the recipe asks for none.

    Raises LdmkitError where they are not what `encode` wrote.
    """
    file = folder / "statistics.json"
    check(file)
    try:
        statistics = json.loads(file.read_text(encoding="utf-8"))
        both = [[float(value) for value in statistics[key]] for key in ("mean", "std")]
        whole = len(both[0]) == len(both[1]) and all(map(math.isfinite, both[0] + both[1])) and min(both[1]) >= 0
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        whole = False
    if not whole:
        raise LdmkitError(f"{file}: missing or damaged; {remedy(folder)}")
    mean, std = (torch.tensor(values) for values in both)
    return (mean, std) if options.normalize else (torch.zeros_like(mean), torch.ones_like(std))
