"""How well an autoencoder gives back pictures: loss, PSNR, SSIM, LPIPS; and how rough its latents are."""

import math
from collections.abc import Iterable, Mapping

import torch
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from ldmkit.components.protocols import AdversarialLoss, Loss, Reconstruction
from ldmkit.models.autoencoder import Autoencoder
from ldmkit.recipe.training import VaeLoss


def dct_energy(latents: torch.Tensor) -> torch.Tensor:
    """(B, C, h, w) -> (2, C) float32: energy above half of Nyquist, and that of all frequencies but 0.

    Of the orthonormal two-dimensional DCT-II of each picture's channel, summed over pictures. The first is what a
    channel loses by halving its sides: what lies at half of Nyquist or above in one direction at least.
    """

    def basis(n: int) -> torch.Tensor:
        k = torch.arange(n, device=latents.device, dtype=torch.float64)
        rows = torch.cos(math.pi / n * k[:, None] * (k + 0.5)) * math.sqrt(2 / n)
        rows[0] /= math.sqrt(2)
        return rows.float()

    h, w = latents.shape[2:]
    energy = (basis(h) @ latents.float() @ basis(w).T).square().sum(0)  # (C, h, w)
    energy[:, 0, 0] = 0
    total = energy.sum((1, 2))
    return torch.stack([total - energy[:, : (h + 1) // 2, : (w + 1) // 2].sum((1, 2)), total])


@torch.no_grad()
def reconstruction_metrics(
    network: Autoencoder,
    batches: Iterable[torch.Tensor],
    *,
    terms: Mapping[str, Loss],
    losses: Mapping[str, VaeLoss],
    device: torch.device,
) -> dict[str, float]:
    """Means over the pictures, reconstructed from the posterior's mean.

    `loss` is the sum of all but adversarial terms at their full weights, `psnr` in dB (the mean of each picture's),
    `ssim` with the Gaussian window of Wang et al. 2004, pictures mirrored at their borders, `lpips` where the losses
    have that term, `high_frequency` the share of the latents' energy above half of Nyquist (see `dct_energy`), the mean
    over the channels: 0 of one that is flat, about 3/4 of white noise. At least one picture is needed.

    batches: (B, 3, H, W) pixels in [-1, 1].
    """
    network.eval()
    plain = {name: term for name, term in terms.items() if not isinstance(term, AdversarialLoss)}
    perceptual = next((name for name in plain if losses[name].use == "lpips"), None)
    sums: dict[str, float] = {"loss": 0.0, "psnr": 0.0, "ssim": 0.0}
    energies = torch.zeros(2, network.latent_channels, device=device)
    number = 0
    for batch in batches:
        target = batch.to(device)
        posterior = network.encode(target)
        output = network.decode(posterior.mean)
        reconstruction = Reconstruction(target, output, posterior.mean, posterior.logvar)
        energies += dct_energy(posterior.mean)
        number += len(batch)
        for name, term in plain.items():
            value = float(term(reconstruction)) * len(batch)
            sums["loss"] += losses[name].weight * value
            if name == perceptual:
                sums["lpips"] = sums.get("lpips", 0.0) + value
        shown = output.clamp(-1, 1)
        psnr = peak_signal_noise_ratio(shown, target, data_range=2.0, dim=(1, 2, 3), reduction="sum")
        sums["psnr"] += float(psnr)
        # In [0, 1], where black is 0: its comparison of brightness is not the same about any other zero.
        in_unit = ((shown + 1) / 2, (target + 1) / 2)
        ssim = structural_similarity_index_measure(*in_unit, data_range=1.0, reduction="sum")
        assert isinstance(ssim, torch.Tensor)
        sums["ssim"] += float(ssim)
    high, total = energies
    shares = torch.where(total > 0, high / total, 0.0)
    return {key: value / number for key, value in sums.items()} | {"high_frequency": float(shares.mean())}
