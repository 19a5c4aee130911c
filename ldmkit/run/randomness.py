"""Random numbers and the order of samples, from (seed, purpose, step): there is no stream position to lose."""

import hashlib

import numpy as np


def derive(seed: int, purpose: str, number: int) -> int:
    """A 63-bit seed for one purpose at one step or epoch."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{number}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def numpy_generator(seed: int, purpose: str, number: int) -> np.random.Generator:
    """A numpy generator for one purpose at one step or epoch."""
    return np.random.default_rng(derive(seed, purpose, number))


class SampleOrder:
    """An endless stream of sample positions: each epoch is a fresh permutation, batches run across its end.

    Every sample is seen exactly once per epoch and none is dropped, whatever the batch size.
    """

    def __init__(self, seed: int, num_samples: int) -> None:
        self.seed = seed
        self.num_samples = num_samples
        self._permutations: dict[int, np.ndarray] = {}

    def batch(self, step: int, batch_size: int) -> np.ndarray:
        """(batch_size,) int64 positions of the batch of this step (counted from 0)."""
        stream = np.arange(step * batch_size, (step + 1) * batch_size)
        epochs, places = np.divmod(stream, self.num_samples)
        self._permutations = {e: p for e, p in self._permutations.items() if e >= epochs[0]}
        positions = np.empty(batch_size, dtype=np.int64)
        for epoch in np.unique(epochs):
            if epoch not in self._permutations:
                rng = numpy_generator(self.seed, "order", int(epoch))
                self._permutations[epoch] = rng.permutation(self.num_samples)
            mine = epochs == epoch
            positions[mine] = self._permutations[epoch][places[mine]]
        return positions
