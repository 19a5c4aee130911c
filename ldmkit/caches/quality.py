"""What the gate looks at: held-out reconstructions, and the latents' statistics channel by channel."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

from ldmkit.components.protocols import Loss
from ldmkit.data.batches import picture_batches
from ldmkit.data.buckets import of_one_bucket
from ldmkit.data.prepared import prepared_pictures
from ldmkit.models.autoencoder import Autoencoder
from ldmkit.run.workspace import Workspace
from ldmkit.vae.metrics import reconstruction_metrics

MAX_HELD_OUT = 512
"""held-out pictures that are reconstructed, evenly spread over all of them"""


class LatentMoments:
    """Sums over pictures, copies and places from which each channel's moments follow, in float64.

    Of the posterior's mean m and std s, and through them of z = m + s * noise, whose moments over all draws are
    E[z^2] = E[m^2 + s^2], E[z^3] = E[m^3 + 3 m s^2], E[z^4] = E[m^4 + 6 m^2 s^2 + 3 s^4].
    """

    def __init__(self, channels: int, sums: Iterable[Iterable[float]] | None = None) -> None:
        """`sums` go on from those of an earlier process."""
        self.sums = np.zeros((6, channels)) if sums is None else np.array(sums, dtype=np.float64)

    def add(self, mean: np.ndarray, std: np.ndarray) -> None:
        """(B, F, C, h, w) each."""
        m, v = mean.astype(np.float64), std.astype(np.float64) ** 2
        terms = (m, m**2, v, m**2 + v, m**3 + 3 * m * v, m**4 + 6 * m**2 * v + 3 * v**2)
        self.sums += np.stack([term.sum(axis=(0, 1, 3, 4)) for term in terms])

    def channels(self, count: int) -> list[dict[str, float]]:
        """Of each channel, over `count` values: mean, std and excess kurtosis of z, and the signal.

        `signal`: share of the variance of z that lies between pictures and places, var(m) / (var(m) + E[s^2]); the
        rest is the posterior's noise. A channel that never changes has a kurtosis and a signal of 0.
        """
        rows = []
        for m, m2, v, z2, z3, z4 in (self.sums / count).T.tolist():
            variance = z2 - m**2
            fourth = z4 - 4 * m * z3 + 6 * m**2 * z2 - 3 * m**4
            flat = variance <= 0
            rows.append(
                {
                    "mean": m,
                    "std": max(variance, 0.0) ** 0.5,
                    "kurtosis": 0.0 if flat else fourth / variance**2 - 3,
                    "signal": 0.0 if flat else max(m2 - m**2, 0.0) / (max(m2 - m**2, 0.0) + v),
                }
            )
        return rows


def perceptual_terms(workspace: Workspace) -> dict[str, Loss]:
    """The recipe's losses of LPIPS by name. Raises LdmkitError where their weights are missing."""
    return {
        name: workspace.registry.build("loss", loss.table(), where=f"[vae.losses.{name}]")
        for name, loss in workspace.recipe.vae.losses.items()
        if loss.use == "lpips"
    }


def held_out_quality(
    workspace: Workspace, autoencoder: Autoencoder, terms: Mapping[str, Loss], device: torch.device
) -> dict[str, Any]:
    """`num_pictures`, and where that is not 0: `psnr`, `ssim`, `high_frequency`; `lpips` where `terms` have it."""
    _, held_out = workspace.split()
    if not len(held_out):
        return {"num_pictures": 0}
    chosen = held_out[:: -(-len(held_out) // MAX_HELD_OUT)]
    data = workspace.recipe.data
    pictures = prepared_pictures(workspace.index, data, workspace.run_dir, workspace.reporter)
    batches = picture_batches(
        pictures, data, [chosen[places] for places in of_one_bucket(workspace.buckets()[chosen], 32)]
    )
    found = reconstruction_metrics(autoencoder, batches, terms=terms, losses=workspace.recipe.vae.losses, device=device)
    return {"num_pictures": len(chosen), **{key: value for key, value in found.items() if key != "loss"}}
