"""The seed's two training loops, written plainly in torch from the description of its notebooks.

Text U-Net: a latent and its CLIP states are one file each, read with torch.load when the batch is put together; mse on
eps over linear betas, AdamW 1e-4, loss.item() at each step; no average of the weights, no clipping. On CUDA fp16
autocast with a scaler and torch.compile, as published; on a CPU neither. VAE: pictures decoded and squashed one by
one; mean L1 + LPIPS (vgg) + 1e-6 KL (summed) + adaptive BCE GAN; Adam 2e-4 and 1e-4; fp32.

The networks are those of `networks`. What the description leaves open (the loaders' processes) is a parameter.
Each loop is a generator that yields the loss of each step, as long as there are batches.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the name that every torch user knows
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset


def batches(dataset: Dataset[Any], batch_size: int, num_workers: int = 0) -> Iterator[Any]:
    """Shuffled batches of full size, epoch after epoch."""
    loader = DataLoader(dataset, batch_size=batch_size, shuffle=True, drop_last=True, num_workers=num_workers)
    while True:
        yield from loader


class LatentFiles(Dataset[tuple[Tensor, Tensor]]):
    """`latents/latent_<i>.pt` (4, 32, 32) and `states/<i>.pt` (77, 768), paired by sort order."""

    def __init__(self, folder: Path) -> None:
        self.latents = sorted((folder / "latents").glob("*.pt"))
        self.states = sorted((folder / "states").glob("*.pt"))

    @staticmethod
    def write(folder: Path, latents: Tensor, states: Tensor) -> None:
        """Each row of latents (N, 4, 32, 32) and states (N, 77, 768) in a file of its own."""
        for name, rows in (("latents/latent_{:06d}.pt", latents), ("states/{:06d}.pt", states)):
            (folder / name).parent.mkdir(parents=True)
            for i, row in enumerate(rows):
                torch.save(row.clone(), folder / name.format(i))

    def __len__(self) -> int:
        return len(self.latents)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return torch.load(self.latents[index], weights_only=True), torch.load(self.states[index], weights_only=True)


def alphas_cumprod() -> Tensor:
    """(1000,) of linear betas 1e-4 to 0.02."""
    return torch.cumprod(1.0 - torch.linspace(1e-4, 0.02, 1000), dim=0)


def eps_loss(network: nn.Module, x0: Tensor, context: Tensor, t: Tensor, noise: Tensor, bar: Tensor) -> Tensor:
    """Mean squared error of eps at timesteps t (B,) in 0 .. 999; `bar` = `alphas_cumprod()`."""
    alpha_bar = bar[t].view(-1, 1, 1, 1)
    x_t = alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * noise
    return F.mse_loss(network(x_t, t, context), noise)


def text_unet_loop(network: nn.Module, loader: Iterable[list[Tensor]], *, device: torch.device) -> Iterator[float]:
    """Trains the text U-Net on batches of `LatentFiles`; yields each step's loss."""
    network = network.to(device).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    on_gpu = device.type == "cuda"
    if on_gpu:
        network.compile()
    scaler = torch.amp.GradScaler(device.type, enabled=on_gpu)
    bar = alphas_cumprod().to(device)
    for latents, states in loader:
        x0, context = latents.to(device), states.to(device)
        t = torch.randint(0, 1000, (x0.shape[0],), device=device)
        noise = torch.randn_like(x0)
        optimizer.zero_grad()
        with torch.autocast(device.type, dtype=torch.float16, enabled=on_gpu):
            loss = eps_loss(network, x0, context, t, noise, bar)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        yield loss.item()


class PictureFiles(Dataset[Tensor]):
    """Pictures squashed to size x size pixels in [-1, 1]."""

    def __init__(self, folder: Path, size: int) -> None:
        self.files = sorted(path for path in folder.iterdir() if path.suffix in (".jpg", ".png"))
        self.size = size

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        with Image.open(self.files[index]) as picture:
            resized = picture.convert("RGB").resize((self.size, self.size), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(resized)).permute(2, 0, 1).float() / 127.5 - 1


def reconstruction_loss(pixels: Tensor, output: Tensor, mean: Tensor, logvar: Tensor, lpips: nn.Module) -> Tensor:
    """Mean L1 + LPIPS + 1e-6 KL, the KL summed over channels and positions and averaged over the batch.

    lpips(output, target), pixels in [-1, 1] -> distances (B, 1, 1, 1).
    """
    kl = -0.5 * torch.sum(1 + logvar - mean.pow(2) - logvar.exp(), dim=[1, 2, 3]).mean()
    return F.l1_loss(output, pixels) + lpips(output, pixels).mean() + 1e-6 * kl


def bce(logits: Tensor, target: float) -> Tensor:
    """Binary cross entropy of logits that should all say `target`: 1 for real, 0 for fake."""
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Mean of the two cross entropies of these logits."""
    return (bce(real, 1) + bce(fake, 0)) / 2


def adaptive_weight(reconstruction: Tensor, generator: Tensor, last_layer: Tensor) -> Tensor:
    """Esser et al. 2021, eq. 7, clamped to [0, 1]."""
    reconstruction_grad = torch.autograd.grad(reconstruction, last_layer, retain_graph=True)[0]
    generator_grad = torch.autograd.grad(generator, last_layer, retain_graph=True)[0]
    weight = torch.norm(reconstruction_grad) / (torch.norm(generator_grad) + 1e-4)
    return torch.clamp(weight, 0.0, 1.0).detach()


def vae_loop(
    vae: nn.Module, gan: nn.Module | None, lpips: nn.Module, loader: Iterable[Tensor], *, device: torch.device
) -> Iterator[float]:
    """Trains the VAE on batches of `PictureFiles`, with the GAN where there is one; yields each step's loss."""
    vae = vae.to(device).train()
    optimizer = torch.optim.Adam(vae.parameters(), lr=2e-4)
    if gan is not None:
        gan = gan.to(device).train()
        gan_optimizer = torch.optim.Adam(gan.parameters(), lr=1e-4)
    for batch in loader:
        pixels = batch.to(device)
        output, mean, logvar = vae(pixels)
        loss = reconstruction_loss(pixels, output, mean, logvar, lpips)
        if gan is not None:
            generator = bce(gan(output), 1)
            loss = loss + adaptive_weight(loss, generator, vae.last_layer) * generator
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if gan is not None:
            gan_loss = discriminator_loss(gan(pixels), gan(output.detach()))
            gan_optimizer.zero_grad()
            gan_loss.backward()
            gan_optimizer.step()
        yield loss.item()
