"""What becomes the graphs of a bundle: each network with its random inputs."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from ldmkit.models.autoencoder import Autoencoder
from ldmkit.runtime.manifest import Latent, Schedule, Text

Size = tuple[int, int]
"""height, width"""
Draw = Callable[[int, Size, torch.Generator], dict[str, Tensor]]
"""draw(batch, size, generator) -> random inputs by name, batch first; those with four axes are of that size"""


@dataclass(frozen=True)
class Network:
    """A module on the CPU in float32, which `on_cpu` gives, and what it is exported and compared with."""

    module: nn.Module
    draw: Draw
    size: Size | None = None
    """the size that it was trained at; None for one that takes no maps"""
    multiple: int = 1
    """what any height and width must be a multiple of"""

    def cases(self) -> list[tuple[int, Size]]:
        """(batch, size) to compare at: three batches, and the trained size besides a higher and a wider one."""
        if self.size is None:
            return [(batch, (0, 0)) for batch in (1, 2, 5)]
        height, width = self.size
        other = max(self.multiple, height - self.multiple)
        return [
            (1, self.size),
            (2, (height + self.multiple, width)),
            (5, (other, width + 2 * self.multiple)),
        ]


class _OfLatents(nn.Module):
    """Between an autoencoder's z and normalised latents, by buffers that become constants of the graph."""

    mean: Tensor
    std: Tensor

    def __init__(self, latent: Latent) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(latent.mean).reshape(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(latent.std).reshape(1, -1, 1, 1))


class DecoderGraph(_OfLatents):
    """Normalised latents (B, C, h, w) -> pixels (B, 3, H, W), 1 the brightest and -1 the darkest, not clipped."""

    def __init__(self, autoencoder: Autoencoder, latent: Latent) -> None:
        super().__init__(latent)
        self.decoder = unwrapped(autoencoder).decoder

    def forward(self, latents: Tensor) -> Tensor:
        pixels: Tensor = self.decoder(latents * self.std + self.mean)
        return pixels


class EncoderGraph(_OfLatents):
    """Pixels (B, 3, H, W) in [-1, 1] -> mean of the normalised latents (B, C, h, w)."""

    def __init__(self, autoencoder: Autoencoder, latent: Latent) -> None:
        super().__init__(latent)
        self.encoder = unwrapped(autoencoder).encoder

    def forward(self, pixels: Tensor) -> Tensor:
        # Not chunk, which would fix the batch in the graph.
        z = self.encoder(pixels)[:, : self.mean.shape[1]]
        latents: Tensor = (z - self.mean) / self.std
        return latents


def unwrapped(module: Any) -> Any:
    """The module that `torch.compile` wrapped, which alone can be exported, or `module` itself."""
    return getattr(module, "_orig_mod", module)


def on_cpu(module: nn.Module) -> nn.Module:
    """A float32 copy for inference."""
    copied: nn.Module = copy.deepcopy(unwrapped(module)).cpu().float().eval()
    return copied.requires_grad_(False)


def decoder(autoencoder: Autoencoder, latent: Latent) -> Network:
    def draw(batch: int, size: Size, generator: torch.Generator) -> dict[str, Tensor]:
        return {"latents": torch.randn(batch, latent.channels, *size, generator=generator)}

    return Network(on_cpu(DecoderGraph(autoencoder, latent)), draw, (latent.height, latent.width))


def encoder(autoencoder: Autoencoder, latent: Latent) -> Network:
    def draw(batch: int, size: Size, generator: torch.Generator) -> dict[str, Tensor]:
        return {"pixels": torch.rand(batch, 3, *size, generator=generator) * 2 - 1}

    factor = autoencoder.downsample
    size = (latent.height * factor, latent.width * factor)
    return Network(on_cpu(EncoderGraph(autoencoder, latent)), draw, size, factor)


def unet(module: nn.Module, latent: Latent, schedule: Schedule, text: Text | None, *, multiple: int) -> Network:
    """A U-Net: unconditional, or with text where there is `text`."""
    last = schedule.num_timesteps if schedule.name == "flow" else schedule.num_timesteps - 1

    def draw(batch: int, size: Size, generator: torch.Generator) -> dict[str, Tensor]:
        t = torch.rand(batch, generator=generator) * last
        t[0], t[-1] = 0, last  # where each schedule ends
        inputs = {
            "x_t": torch.randn(batch, latent.channels, *size, generator=generator),
            "t": t if schedule.name == "flow" else t.round(),  # only flow has timesteps between whole ones
        }
        if text is not None:
            lengths = torch.randint(1, text.max_tokens + 1, (batch, 1), generator=generator)
            inputs["context"] = torch.randn(batch, text.max_tokens, text.context_dim, generator=generator)
            inputs["context_mask"] = (torch.arange(text.max_tokens) < lengths).long()
        return inputs

    return Network(on_cpu(module), draw, (latent.height, latent.width), multiple)


def text_encoder(module: nn.Module, tokenizer: Tokenizer) -> Network:
    empty = tokenizer.encode("")

    def draw(batch: int, size: Size, generator: torch.Generator) -> dict[str, Tensor]:
        length = len(empty.ids)
        lengths = torch.randint(sum(empty.attention_mask), length + 1, (batch, 1), generator=generator)
        mask = (torch.arange(length) < lengths).long()
        drawn = torch.randint(0, tokenizer.get_vocab_size(), (batch, length), generator=generator)
        # The tokenizer's own padding behind random tokens, and one real caption: the empty one.
        ids = torch.where(mask.bool(), drawn, torch.tensor(empty.ids[-1]))
        ids[0], mask[0] = torch.tensor(empty.ids), torch.tensor(empty.attention_mask)
        return {"ids": ids, "mask": mask}

    return Network(on_cpu(module), draw)
