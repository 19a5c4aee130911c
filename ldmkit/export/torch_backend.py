"""A finished run's networks in torch behind the interface of a bundle: what the export must not change."""

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from ldmkit.components.registry import Registry
from ldmkit.export.model import model_of
from ldmkit.export.networks import DecoderGraph, EncoderGraph
from ldmkit.recipe import Recipe
from ldmkit.run.networks import load_networks, load_tokenizer
from ldmkit.runtime.manifest import TEXT_ENCODER, UNET, UNET_T2I, VAE_DECODER, VAE_ENCODER


class TorchBackend:
    """`ldmkit.runtime.backend.Backend` of a run: the same noise and sampler, every network in torch, in float32."""

    def __init__(self, recipe: Recipe, registry: Registry, folder: Path, *, checkpoint: str | None = None) -> None:
        """Loads the networks of the run in `folder`, or of its `checkpoint`, to the GPU if there is one.

        Raises LdmkitError where a part of it is not finished.
        """
        self.folder = folder
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        loaded = load_networks(recipe, registry, folder, checkpoint=checkpoint)
        self.manifest = model_of(recipe, loaded)
        self._networks: dict[str, nn.Module] = {
            VAE_DECODER: DecoderGraph(loaded.autoencoder, self.manifest.latent),
            VAE_ENCODER: EncoderGraph(loaded.autoencoder, self.manifest.latent),
        }
        if loaded.unet is not None:
            self._networks[UNET] = loaded.unet
        if loaded.text is not None:
            self._networks |= {UNET_T2I: loaded.text.unet, TEXT_ENCODER: loaded.text.encoder}
        for network in self._networks.values():
            network.to(self._device).eval().requires_grad_(False)

    @property
    def draws_text(self) -> bool:
        return UNET_T2I in self._networks

    @property
    def draws_unconditionally(self) -> bool:
        return UNET in self._networks

    @property
    def provider(self) -> str:
        return f"torch {self._device.type}"

    @property
    def identity(self) -> dict[str, str]:
        return {"run": self.manifest.name}

    @cached_property
    def tokenizer(self) -> Tokenizer:
        tokenizer = load_tokenizer(self.folder / "text")
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
