"""A finished run's networks in torch behind the interface of a bundle: what the export must not change."""

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from ldmkit.caches.sets import latent_statistics
from ldmkit.components.protocols import TextEncoder
from ldmkit.components.registry import Registry
from ldmkit.errors import LdmkitError
from ldmkit.export.networks import DecoderGraph, EncoderGraph
from ldmkit.models.build import build_text_to_image, build_unet
from ldmkit.recipe import Recipe
from ldmkit.run.folder import is_finished
from ldmkit.run.networks import load_autoencoder, trained_weights
from ldmkit.runtime.backend import Description
from ldmkit.runtime.manifest import TEXT_ENCODER, UNET, UNET_T2I, VAE_DECODER, VAE_ENCODER, Defaults, Latent, Schedule


class TorchBackend:
    """`ldmkit.runtime.backend.Backend` of a run: the same noise and sampler, every network in torch, in float32."""

    draws_text = True
    draws_unconditionally = True

    def __init__(self, recipe: Recipe, registry: Registry, folder: Path) -> None:
        """Loads the networks of the run in `folder`, averaged where there is an average, to the GPU if there is one.

        Raises LdmkitError where a part of it is not finished.
        """
        for part in ("vae", "latents", "text", "unet", "t2i"):
            if not is_finished(folder / part):
                raise LdmkitError(f"{folder / part}: not finished; `ldmkit train` with its recipe goes on")
        self.folder = folder
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._tokenizer_file = folder / "text" / "tokenizer.json"
        autoencoder = load_autoencoder(recipe, folder / "vae")
        mean, std = latent_statistics(folder / "latents", recipe.latents)
        unet = build_unet(recipe)
        unet.load_state_dict(trained_weights(folder / "unet"))
        encoder: TextEncoder = registry.build("text_encoder", recipe.text.table(), where="[text]")
        text_module = encoder.load_module(self.tokenizer)
        text_to_image = build_text_to_image(recipe, encoder, text_module if encoder.trainable else None)
        text_to_image.load_state_dict(trained_weights(folder / "t2i"))
        size = recipe.data.size // autoencoder.downsample
        latent = Latent(
            channels=recipe.vae.latent_channels,
            height=size,
            width=size,
            mean=tuple(mean.tolist()),
            std=tuple(std.tolist()),
            multiple=math.lcm(unet.downsample, text_to_image.unet.downsample),
        )
        self._networks: dict[str, nn.Module] = {
            UNET: unet,
            UNET_T2I: text_to_image.unet,
            TEXT_ENCODER: text_module,
            VAE_DECODER: DecoderGraph(autoencoder, latent),
            VAE_ENCODER: EncoderGraph(autoencoder, latent),
        }
        for network in self._networks.values():
            network.to(self._device).eval().requires_grad_(False)
        table = recipe.sampler.table()
        self.manifest = Description(
            name=recipe.name,
            schedule=Schedule.model_validate(recipe.diffusion.schedule_options()),
            prediction=recipe.diffusion.prediction,
            latent=latent,
            picture_size=recipe.data.size,
            defaults=Defaults(
                sampler=table["use"],
                sampler_options={key: value for key, value in table.items() if key not in ("use", "steps")},
                steps=table["steps"],
                guidance_scale=recipe.sampler.guidance_scale,
            ),
        )

    @property
    def provider(self) -> str:
        return f"torch {self._device.type}"

    @property
    def identity(self) -> dict[str, str]:
        return {"run": self.manifest.name}

    @cached_property
    def tokenizer(self) -> Tokenizer:
        tokenizer = Tokenizer.from_file(str(self._tokenizer_file))
        tokenizer.encode_special_tokens = True  # a prompt that spells one is text
        return tokenizer

    def check_encodes(self) -> None:
        """A run always has its encoder."""

    def prepare(self, prompts: Sequence[str], negative_prompt: str = "") -> None:
        """All networks are loaded."""

    def run(self, name: str, **inputs: np.ndarray) -> np.ndarray:
        return self.bind(name)(**inputs)

    def bind(self, name: str, **fixed: np.ndarray) -> Callable[..., np.ndarray]:
        given = {key: self._tensor(value) for key, value in fixed.items()}

        @torch.inference_mode()
        def call(**inputs: np.ndarray) -> np.ndarray:
            tensors = given | {key: self._tensor(value) for key, value in inputs.items()}
            output: np.ndarray = self._networks[name](**tensors).cpu().numpy()
            return output

        return call

    def _tensor(self, value: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(value)).to(self._device)
