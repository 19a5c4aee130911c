"""A run's trained networks, and what goes with them."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn

from ldmkit.components.protocols import TextEncoder
from ldmkit.components.registry import Registry
from ldmkit.errors import LdmkitError
from ldmkit.models.autoencoder import Autoencoder
from ldmkit.models.build import build_text_to_image, build_unet
from ldmkit.models.denoiser import Denoiser
from ldmkit.models.pretrained import build, read
from ldmkit.recipe import Recipe
from ldmkit.recipe.sections import Latents
from ldmkit.run.checkpoint import chosen_weights, load_weights
from ldmkit.run.files import check, remedy, trained_file
from ldmkit.run.folder import is_finished
from ldmkit.run.parts import PARTS, needed
from ldmkit.run.pretrained import CONFIG, find_source
from ldmkit.run.progress import checkpoints, step_of

UNETS = ("unet", "t2i")
BUCKETS = "buckets.json"
"""of `latents/`, where pictures are brought to several sizes"""


@dataclass(frozen=True, kw_only=True)
class RunNetworks:
    """All that a run draws with."""

    autoencoder: Autoencoder
    latent_mean: torch.Tensor
    """(C,): with `latent_std`, what turns normalised latents into the autoencoder's"""
    latent_std: torch.Tensor
    unet: Denoiser | None
    text: "TextNetworks | None"
    steps: Mapping[str, int]
    """of the U-Nets whose weights are a checkpoint's, by part"""
    sizes: tuple[tuple[int, int], ...] = ()
    """width and height of the buckets that were trained on; empty without buckets"""

    @property
    def multiple(self) -> int:
        """What the latents' height and width must be a multiple of."""
        networks = (self.unet, self.text.unet if self.text else None)
        return math.lcm(*(network.downsample for network in networks if network is not None))


@dataclass(frozen=True, kw_only=True)
class TextNetworks:
    """All that text to image takes besides."""

    unet: Denoiser
    encoder: nn.Module
    tokenizer: Tokenizer


def load_networks(recipe: Recipe, registry: Registry, run_dir: Path, *, checkpoint: str | None = None) -> RunNetworks:
    """The networks of a finished run, averaged where there is an average, on the CPU.

    `checkpoint`: of the U-Nets that have it, the weights of this step, or of the `best` one; see `chosen_weights`.
    Those need not be finished.

    Raises LdmkitError where a part of it is not finished, or a file is not what was written.
    """
    unets = [name for name in UNETS if getattr(recipe, name) is not None]
    chosen = {} if checkpoint is None else _chosen(run_dir, unets, checkpoint)
    for part in needed(PARTS["bundle"], recipe):
        if part not in chosen and not is_finished(run_dir / part):
            lacking = "not finished" if checkpoint is None else f"not finished, and without checkpoint {checkpoint}"
            raise LdmkitError(f"{run_dir / part}: {lacking}; `ldmkit train` with the run's recipe resumes it")
    autoencoder = load_autoencoder(recipe, run_dir / "vae")
    weights = {
        name: load_weights(chosen[name][0]) if name in chosen else trained_weights(run_dir / name) for name in unets
    }
    mean, std = latent_statistics(run_dir / "latents", recipe.latents)
    unet = None
    if recipe.unet is not None:
        unet = build_unet(recipe, autoencoder.latent_channels)
        unet.load_state_dict(weights["unet"])
    return RunNetworks(
        autoencoder=autoencoder,
        latent_mean=mean,
        latent_std=std,
        unet=unet,
        text=_text_networks(recipe, registry, run_dir, autoencoder.latent_channels, weights["t2i"])
        if "t2i" in weights
        else None,
        steps={name: step for name, (_, step) in chosen.items()},
        sizes=tuple(tuple(size) for size in (read_buckets(run_dir / "latents") or {"trained": ()})["trained"]),
    )


def _text_networks(
    recipe: Recipe, registry: Registry, run_dir: Path, channels: int, weights: dict[str, torch.Tensor]
) -> TextNetworks:
    encoder: TextEncoder = registry.build("text_encoder", recipe.text.table(), where="[text]")
    tokenizer = load_tokenizer(run_dir / "text")
    module = encoder.load_module(tokenizer)
    text_to_image = build_text_to_image(recipe, channels, encoder, module if encoder.trainable else None)
    text_to_image.load_state_dict(weights)
    return TextNetworks(unet=text_to_image.unet, encoder=module, tokenizer=tokenizer)


def _chosen(run_dir: Path, unets: Sequence[str], which: str) -> dict[str, tuple[Path, int]]:
    found = {name: weights for name in unets if (weights := chosen_weights(run_dir / name, which)) is not None}
    if not found:
        steps = {name: [step_of(each) for each in checkpoints(run_dir / name / "checkpoints")] for name in unets}
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


def load_autoencoder(recipe: Recipe, folder: Path) -> Autoencoder:
    """The trained autoencoder, frozen, in eval mode."""
    weights = trained_weights(folder)
    autoencoder = build(autoencoder_config(recipe, folder))
    autoencoder.load_state_dict(weights)
    return autoencoder.requires_grad_(False).eval()


def fresh_autoencoder(recipe: Recipe) -> Autoencoder:
    """The recipe's autoencoder before any training: its own with fresh weights, or the pretrained one.

    Raises LdmkitError where the pretrained one cannot be had.
    """
    return read_pretrained(recipe)[1] if recipe.vae.pretrained else build(recipe.vae.network())


def read_pretrained(recipe: Recipe) -> tuple[dict[str, Any], Autoencoder]:
    """The autoencoder that `[vae] pretrained` names, and what a run keeps as its config.json.

    Raises LdmkitError where it cannot be had.
    """
    name = recipe.vae.pretrained
    source = find_source(name)
    config, network = read(source.form, source.files, key=f'vae.pretrained = "{name}"')
    commit = {"commit": source.commit} if source.commit else {}
    return {**config, "pretrained": {"name": name, **commit, "sha256": source.sha256()}}, network


def autoencoder_config(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """What `ldmkit.models.pretrained.build` makes the autoencoder of the run's part `folder` from."""
    if not recipe.vae.pretrained:
        return recipe.vae.network()
    check(folder / CONFIG)
    config: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    return config


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


def read_buckets(folder: Path) -> dict[str, Any] | None:
    """What `encode_latents` keeps of the buckets, None without any. Raises LdmkitError where it cannot be read."""
    file = folder / BUCKETS
    check(file)
    if not file.is_file():
        return None
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        raise LdmkitError(f"{file}: damaged; {remedy(folder)}") from None
    return found
