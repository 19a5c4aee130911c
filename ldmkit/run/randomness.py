"""Random numbers and the order of samples, from (seed, purpose, step): there is no stream position to lose."""

import hashlib
from typing import Protocol

import numpy as np


def derive(seed: int, purpose: str, number: int) -> int:
    """A 63-bit seed for one purpose at one step or epoch."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{number}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def numpy_generator(seed: int, purpose: str, number: int) -> np.random.Generator:
    """A numpy generator for one purpose at one step or epoch."""
    return np.random.default_rng(derive(seed, purpose, number))


class Order(Protocol):
    """Which samples are in the batch of a step; there is no state but (seed, step)."""

    def batch(self, step: int, batch_size: int) -> np.ndarray:
        """(batch_size,) int64 positions of the batch of this step (counted from 0)."""


def order_of(seed: int, num_samples: int, buckets: np.ndarray | None) -> Order:
    """With `buckets` (N,) the samples of a batch are all in one."""
    if buckets is None or len(np.unique(buckets)) == 1:
        return SampleOrder(seed, num_samples)
    return BucketOrder(seed, buckets)


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


class BucketOrder:
    """A `SampleOrder` for each bucket, taken in turns: the batches' share of each is its share of the samples.

    A bucket of share p is due at the times (k + u_k) / p, u_k uniform: as far in its epochs as every other at all
    times, to within a batch, and in no fixed pattern.
    """

    def __init__(self, seed: int, buckets: np.ndarray) -> None:
        """`buckets` (N,): of each sample."""
        self.seed = seed
        self.members = [np.flatnonzero(buckets == bucket) for bucket in np.unique(buckets)]
        self._orders = [SampleOrder(derive(seed, "bucket", i), len(own)) for i, own in enumerate(self.members)]
        self._turns = np.empty((0, 2), dtype=np.int64)

    def batch(self, step: int, batch_size: int) -> np.ndarray:
        """(batch_size,) int64 positions of the batch of this step (counted from 0)."""
        if step >= len(self._turns):
            self._turns = self._first_turns(2 * step + 1024)
        bucket, number = self._turns[step]
        positions: np.ndarray = self.members[bucket][self._orders[bucket].batch(int(number), batch_size)]
        return positions

    def _first_turns(self, steps: int) -> np.ndarray:
        """(steps, 2) whose turn it is, and which of its batches; the same however many are asked for."""
        total, due, turns = sum(map(len, self.members)), [], []
        for bucket, own in enumerate(self.members):
            # All that are due before `steps` + the number of buckets, by which `steps` of them are.
            number = np.arange(-(-len(own) * (steps + len(self.members)) // total) + 1)
            jitter = numpy_generator(self.seed, "turns", bucket).random(len(number))
            due.append((number + jitter) * total / len(own))
            turns.append(np.stack([np.full_like(number, bucket), number], axis=1))
        return np.concatenate(turns)[np.argsort(np.concatenate(due), kind="stable")[:steps]]
