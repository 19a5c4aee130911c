"""The cheap map from latents to colours, by which a page shows a picture while it is drawn."""

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the name that every torch user knows
from torch import Tensor

from ldmkit.caches.sets import LatentSet
from ldmkit.data.batches import picture_batches
from ldmkit.data.prepared import prepared_pictures
from ldmkit.run.workspace import Workspace
from ldmkit.runtime.manifest import LatentRgb

MOST = 512
"""pictures that are looked at: more do not move a map of so few numbers"""
BATCH = 32


def fit_latent_rgb(workspace: Workspace) -> LatentRgb | None:
    """The map fitted to every other held-out picture and judged on the rest; None where there are fewer than two.

    Training pictures stand in where none is held out.
    """
    if not workspace.index.folder.exists():
        workspace.reporter.line(f"{workspace.index.folder} is not there: the page will show no pictures on the way")
        return None
    train, held_out = workspace.split()
    recipe = workspace.recipe
    cache = LatentSet(workspace.folder("latents"), recipe.latents, recipe.seed)
    # Of one size, so that they are one array.
    train, held_out = (part[cache.buckets[part] == 0] for part in (train, held_out))
    positions = (held_out if len(held_out) > 1 else train)[:MOST]
    if len(positions) < 2:
        return None
    batches = [positions[i : i + BATCH] for i in range(0, len(positions), BATCH)]
    plain = [cache.batch(batch, np.zeros(len(batch), dtype=bool), None) for batch in batches]
    latents = torch.cat(plain)
    pictures = prepared_pictures(workspace.index, recipe.data, workspace.run_dir, workspace.reporter)
    loaded = picture_batches(pictures, recipe.data, batches)
    colours = torch.cat([F.adaptive_avg_pool2d(pixels, cache.shape[1:]) for pixels in loaded])
    return fit(latents, colours)


def fit(latents: Tensor, colours: Tensor) -> LatentRgb:
    """Least squares from latents (N, C, h, w) to colours (N, 3, h, w) over the even pictures; R^2 over the odd ones."""

    def rows(maps: Tensor) -> Tensor:
        return maps.movedim(1, -1).flatten(0, -2).double()  # (N * h * w, C)

    ones = torch.ones_like(latents[:, :1])
    design = torch.cat([latents, ones], dim=1)
    solution = torch.linalg.lstsq(rows(design[::2]), rows(colours[::2]), driver="gelsd").solution  # (C + 1, 3)
    wanted = rows(colours[1::2])
    residual = (wanted - rows(design[1::2]) @ solution).square().sum()
    spread = (wanted - wanted.mean(0)).square().sum()
    weights, bias = solution[:-1].T, solution[-1]
    return LatentRgb.model_validate(
        {
            "weights": tuple(tuple(row) for row in weights.tolist()),
            "bias": tuple(bias.tolist()),
            "r2": 1 - float(residual / spread) if spread > 0 else 0.0,
        }
    )
