"""KID against torchmetrics, its error against repeated draws, precision and coverage against their definitions."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from torchmetrics.image.kid import poly_mmd

from ldmkit.evaluation.metrics import kernel_distance, paired_difference, precision_coverage


def test_kid_is_that_of_torchmetrics() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((40, 12)), rng.standard_normal((40, 12)) * 1.3 + 0.2
    assert kernel_distance(x, y).value == pytest.approx(float(poly_mmd(torch.from_numpy(x), torch.from_numpy(y))))


def test_kid_of_sets_of_different_sizes_has_no_bias() -> None:
    rng = np.random.default_rng(1)
    values = [kernel_distance(rng.standard_normal((30, 8)), rng.standard_normal((17, 8))).value for _ in range(300)]
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(300)


@pytest.mark.parametrize("shift", [0.3, 1.0])
def test_standard_error_is_the_spread_of_repeated_draws(shift: float) -> None:
    rng = np.random.default_rng(2)
    drawn = [kernel_distance(rng.standard_normal((60, 8)), rng.standard_normal((90, 8)) + shift) for _ in range(200)]
    spread = np.std([kid.value for kid in drawn])
    assert np.mean([kid.standard_error for kid in drawn]) == pytest.approx(spread, rel=0.25)


def test_paired_difference() -> None:
    """The difference of the two KIDs, with the spread over repeated pairs as its error, which is below theirs."""
    rng = np.random.default_rng(3)
    found, apart = [], []
    for _ in range(200):
        real, noise = rng.standard_normal((60, 8)), rng.standard_normal((80, 8))
        first, second = noise + 0.8, noise + 1.0  # the same noise: matched seeds
        difference = paired_difference(real, first, second)
        a, b = kernel_distance(real, first), kernel_distance(real, second)
        assert difference.value == pytest.approx(b.value - a.value)
        found.append(difference)
        apart.append(np.hypot(a.standard_error, b.standard_error))
    spread = np.std([each.value for each in found])
    assert np.mean([each.standard_error for each in found]) == pytest.approx(spread, rel=0.25)
    assert spread < np.mean(apart) / 2


def test_precision_and_coverage_by_their_definitions() -> None:
    rng = np.random.default_rng(4)
    real, drawn = rng.standard_normal((50, 5)), rng.standard_normal((35, 5)) * 0.7 + 0.4
    radius = np.sort(cdist(real, real), axis=1)[:, 3]  # the picture itself comes first
    inside = cdist(real, drawn) < radius[:, None]
    expected = (np.mean([column.any() for column in inside.T]), np.mean([row.any() for row in inside]))
    assert precision_coverage(real, drawn, k=3) == pytest.approx(expected)
    assert 0 < expected[0] < 1
    assert 0 < expected[1] < 1


def test_a_model_that_draws_one_picture_has_precision_and_no_coverage() -> None:
    rng = np.random.default_rng(5)
    real = rng.standard_normal((100, 4))
    precision, coverage = precision_coverage(real, np.tile(real[:1] + 1e-3, (100, 1)))
    assert precision == 1
    assert coverage < 0.2
