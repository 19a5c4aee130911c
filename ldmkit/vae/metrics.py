"""How well an autoencoder gives back pictures: loss, PSNR, SSIM, LPIPS."""

from collections.abc import Iterable, Mapping

import torch
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from ldmkit.components.protocols import AdversarialLoss, Loss, Reconstruction
from ldmkit.models.autoencoder import Autoencoder
from ldmkit.recipe.training import VaeLoss


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
    have that term. At least one picture is needed.

    batches: (B, 3, H, W) pixels in [-1, 1].
    """
    network.eval()
    plain = {name: term for name, term in terms.items() if not isinstance(term, AdversarialLoss)}
    perceptual = next((name for name in plain if losses[name].use == "lpips"), None)
    sums: dict[str, float] = {"loss": 0.0, "psnr": 0.0, "ssim": 0.0}
    number = 0
    for batch in batches:
        target = batch.to(device)
        posterior = network.encode(target)
        output = network.decode(posterior.mean)
        reconstruction = Reconstruction(target, output, posterior.mean, posterior.logvar)
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
    return {key: value / number for key, value in sums.items()}
