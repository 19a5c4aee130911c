"""The cached latents and captions that a U-Net trains on, memory-mapped."""

import json
from pathlib import Path

import numpy as np
import torch

from ldmkit.randomness import numpy_generator
from ldmkit.recipe.sections import Latents


class LatentSet:
    """Posterior means and stds on disk, handed out as normalised latents."""

    def __init__(self, folder: Path, options: Latents, seed: int) -> None:
        self.mean = np.load(folder / "mean.npy", mmap_mode="r", allow_pickle=False)  # (N, F, C, h, w)
        self.std = np.load(folder / "std.npy", mmap_mode="r", allow_pickle=False)
        self.keys: list[str] = json.loads((folder / "pictures.json").read_text(encoding="utf-8"))
        self.options = options
        self.seed = seed
        channel_mean, channel_std = latent_statistics(folder, options)
        self.channel_mean = channel_mean[:, None, None]
        self.channel_std = channel_std[:, None, None]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, h, w) of one picture's latents."""
        _, _, channels, height, width = self.mean.shape
        return channels, height, width

    def batch(self, indices: np.ndarray, mirrored: np.ndarray, noise: torch.Tensor | None) -> torch.Tensor:
        """(B, C, h, w) float32 normalised latents of these pictures, on the device of `noise`, or else the CPU.

        `noise` (B, C, h, w) draws from the posterior; without it, its mean is taken.
        """
        copies = np.where(mirrored, self.mean.shape[1] - 1, 0)
        mean = torch.from_numpy(self.mean[indices, copies].astype(np.float32))
        device = torch.device("cpu") if noise is None else noise.device
        z = mean.to(device, non_blocking=True)
        if self.options.draw == "each_step" and noise is not None:
            z = z + torch.from_numpy(self.std[indices, copies].astype(np.float32)).to(device) * noise
        elif self.options.draw == "once":
            # One draw for each picture and copy, the same whenever it is asked for.
            rows = [
                numpy_generator(self.seed, "latent-once", int(i) * 2 + int(copy)).standard_normal(self.shape)
                for i, copy in zip(indices, copies, strict=True)
            ]
            std = torch.from_numpy((self.std[indices, copies] * np.stack(rows)).astype(np.float32))
            z = z + std.to(device)
        return (z - self.channel_mean.to(device)) / self.channel_std.to(device)


def latent_statistics(folder: Path, options: Latents) -> tuple[torch.Tensor, torch.Tensor]:
    """(C,) mean and std that latents are normalised with: 0 and 1 where the recipe asks for none."""
    statistics = json.loads((folder / "statistics.json").read_text(encoding="utf-8"))
    mean, std = torch.tensor(statistics["mean"]), torch.tensor(statistics["std"])
    return (mean, std) if options.normalize else (torch.zeros_like(mean), torch.ones_like(std))


class TextSet:
    """Each picture's caption as token ids or cached states; caption 0 is the empty one."""

    def __init__(self, folder: Path) -> None:
        states = folder / "states.npy"
        source = states if states.is_file() else folder / "ids.npy"
        self.texts = np.load(source, mmap_mode="r", allow_pickle=False)  # (U, L) ids or (U, L, D) states
        self.mask = np.load(folder / "mask.npy", allow_pickle=False)  # (U, L)
        self.index = np.load(folder / "index.npy", allow_pickle=False)  # (N,)
        self.captions: list[str] = json.loads((folder / "captions.json").read_text(encoding="utf-8"))

    def batch(self, captions: np.ndarray, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids (B, L) or states (B, L, D), and mask (B, L), of these captions by number."""
        texts = torch.from_numpy(np.array(self.texts[captions]))
        return texts.to(device), torch.from_numpy(self.mask[captions]).to(device)
