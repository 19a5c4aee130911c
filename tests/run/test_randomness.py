"""Random numbers that know no position in a stream."""

import hashlib

import numpy as np
import pytest

from ldmkit.run.randomness import SampleOrder, derive, numpy_generator


def test_derive_is_the_documented_hash() -> None:
    digest = hashlib.sha256(b"7/noise/42").digest()
    assert derive(7, "noise", 42) == int.from_bytes(digest[:8], "little") // 2
    seeds = {derive(seed, purpose, n) for seed in range(5) for purpose in ("a", "b") for n in range(100)}
    assert len(seeds) == 1000
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_purposes_are_independent() -> None:
    draws = np.stack([numpy_generator(0, purpose, 3).standard_normal(20_000) for purpose in ("noise", "flip", "t")])
    assert np.abs(np.corrcoef(draws) - np.eye(3)).max() < 4 / np.sqrt(20_000)
    again = numpy_generator(0, "noise", 3).standard_normal(20_000)
    assert np.array_equal(again, draws[0])


@pytest.mark.parametrize(("num_samples", "batch_size"), [(10, 3), (7, 7), (5, 12), (1, 4), (64, 1)])
def test_every_epoch_is_a_permutation(num_samples: int, batch_size: int) -> None:
    order = SampleOrder(3, num_samples)
    steps = 5 * num_samples  # whole epochs of batches that run across their ends
    stream = np.concatenate([order.batch(step, batch_size) for step in range(steps)])
    epochs = stream.reshape(-1, num_samples)
    assert np.array_equal(np.sort(epochs, axis=1), np.tile(np.arange(num_samples), (len(epochs), 1)))
    if num_samples >= 10:
        assert len({tuple(epoch) for epoch in epochs}) == len(epochs)  # each epoch in an order of its own


def test_order_can_be_taken_up_anywhere() -> None:
    order = SampleOrder(3, 10)
    whole = [order.batch(step, 4) for step in range(30)]
    for step in (0, 1, 7, 23):
        assert np.array_equal(SampleOrder(3, 10).batch(step, 4), whole[step])
    assert np.array_equal(order.batch(2, 4), whole[2])  # and backwards
    assert not np.array_equal(SampleOrder(4, 10).batch(0, 4), whole[0])


def test_places_in_an_epoch_are_uniform() -> None:
    """Chi-squared over where each of 8 samples comes in 4,000 epochs: 49 degrees of freedom."""
    order = SampleOrder(0, 8)
    epochs = np.stack([order.batch(epoch, 8) for epoch in range(4000)])
    counts = np.stack([np.bincount(epochs[:, place], minlength=8) for place in range(8)])
    chi_squared = ((counts - 500) ** 2 / 500).sum()
    assert 20 < chi_squared < 95  # 1e-4 at either end
