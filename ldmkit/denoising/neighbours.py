"""Memorisation: whether samples lie nearer to training pictures than pictures that were never trained on do."""

from collections.abc import Mapping
from functools import cached_property
from math import comb

import numpy as np
import torch

from ldmkit.caches.sets import LatentSet
from ldmkit.run.randomness import numpy_generator

MAX_TRAIN = 20_000
"""training pictures that are searched; of more, a random choice that stays the same"""
MAX_HELD_OUT = 256
"""held-out pictures that tell what distance is usual"""
CHUNK = 2**22
"""numbers read, and distances held, at once: 16 MiB each, whatever the size of the set"""
RARE = 1e-3
"""probability below which that many copies are no accident"""


class Neighbours:
    """Nearest training pictures, mirrored copies counted, by Euclidean distance between normalised latents.

    The training pictures' latents are what an evaluation takes: the posterior's means, or the one draw of
    `latents.draw = "once"`.
    """

    def __init__(
        self, latents: LatentSet, train: np.ndarray, held_out: np.ndarray, *, seed: int, device: torch.device
    ) -> None:
        self.latents = latents
        # Samples are drawn in `data.size`, and pictures of another one have latents of another.
        train, held_out = (part[latents.buckets[part] == 0] for part in (train, held_out))
        self.num_train = len(train)
        if len(train) > MAX_TRAIN:
            # In the order of the file, which is read faster so.
            train = np.sort(numpy_generator(seed, "neighbours", 0).choice(train, MAX_TRAIN, replace=False))
        self.train = train
        self.held_out = held_out[:MAX_HELD_OUT]
        self.device = device

    def nearest(self, queries: torch.Tensor) -> tuple[np.ndarray, torch.Tensor]:
        """(Q,) float64 distances of `queries` (Q, C, h, w) to their neighbours, and these (Q, C, h, w), on the CPU.

        Memory stays the same however many training pictures there are.
        """
        q = queries.to(self.device, torch.float32).flatten(1)  # (Q, D)
        least = torch.full((len(q),), torch.inf, device=self.device)
        found = torch.zeros_like(q)
        rows = max(1, CHUNK // max(q.shape))
        for first in range(0, len(self.train), rows):
            indices = self.train[first : first + rows]
            for mirrored in (False, True)[: self.latents.copies]:
                x = self._latents(indices, mirrored)  # (n, D)
                # |q - x|^2 less |q|^2, which is the same for every x: one product instead of Q * n * D differences.
                value, place = (x.square().sum(1) - 2 * q @ x.T).min(1)
                nearer = value < least
                least = torch.where(nearer, value, least)
                found[nearer] = x[place[nearer]]
        # Anew in float64: for a copy, the formula above is what two large numbers leave of each other.
        difference = q.cpu().double() - found.cpu().double()
        return difference.norm(dim=1).numpy(), found.cpu().reshape(queries.shape)

    def compare(self, distances: np.ndarray) -> dict[str, float]:
        """How near samples at these distances are, measured by the distances of held-out pictures.

        neighbour_ratio: median over that of the held-out ones, about 1 where nothing is memorised. neighbour_copies:
        share of samples nearer than half the held-out median; neighbour_copies_held_out: the held-out pictures' own.
        Empty where that says nothing: no picture is held out, most of them are training pictures too, or a sample is
        not finite.
        """
        usual = float(np.median(self.held_out_distances)) if len(self.held_out) else 0.0
        if usual == 0 or not np.isfinite(distances).all():
            return {}
        return {
            "neighbour_ratio": float(np.median(distances)) / usual,
            "neighbour_copies": float((distances < usual / 2).mean()),
            "neighbour_copies_held_out": float((self.held_out_distances < usual / 2).mean()),
        }

    @cached_property
    def held_out_distances(self) -> np.ndarray:
        """(H,) distances of held-out pictures to their nearest training pictures."""
        return self.nearest(self._latents(self.held_out, False).reshape(-1, *self.latents.shape))[0]

    def warning(self, metrics: Mapping[str, float], num_samples: int) -> str | None:
        """A line for the user where that many of `compare`'s copies are no accident; None where they may be one.

        Of held-out pictures a share p is as near, (k + 1) / (n + 2) by Laplace's rule of succession since they may be
        few; the chance of as many copies among the samples is the tail of the binomial distribution.
        """
        if "neighbour_copies" not in metrics:
            return None
        num_held_out = len(self.held_out)
        p = (metrics["neighbour_copies_held_out"] * num_held_out + 1) / (num_held_out + 2)
        copies = round(metrics["neighbour_copies"] * num_samples)
        chance = sum(comb(num_samples, k) * p**k * (1 - p) ** (num_samples - k) for k in range(copies, num_samples + 1))
        if chance >= RARE:
            return None
        return (
            f"{copies} of {num_samples} samples are nearly copies of training pictures: less than half as far from "
            "one as held-out pictures usually are (grid `neighbours` shows each beside its own; samples' median "
            f"distance is {metrics['neighbour_ratio']:.2f} of theirs). More pictures, fewer steps, dropout or a "
            "smaller network help against memorisation"
        )

    def _latents(self, indices: np.ndarray, mirrored: bool) -> torch.Tensor:
        """(n, D) latents of these pictures."""
        return self.latents.batch(indices, np.full(len(indices), mirrored), None).flatten(1).to(self.device)
