"""Overfitting in curves drawn by hand."""

from collections.abc import Sequence

import pytest

from ldmkit.training.overfitting import find_overfitting

FALLING = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2]


def rows(held_out: Sequence[float], training: Sequence[float], ema: Sequence[float] = ()) -> list[dict[str, float]]:
    """An evaluation every 100 steps, the training loss logged every 50 around the given mean."""
    found: list[dict[str, float]] = []
    for i, value in enumerate(held_out):
        found.append({"step": 100 * i + 50, "loss": training[i] - 0.25})
        found.append({"step": 100 * i + 100, "loss": training[i] + 0.25, "held_out_loss": value})
        if ema:
            found[-1]["held_out_loss_ema"] = ema[i]
    return found


def steps_reported(every: list[dict[str, float]]) -> list[int]:
    """Steps of the evaluations that found it, each asked when it was the newest, as in training."""
    newest = [i for i, row in enumerate(every) if "held_out_loss" in row]
    return [int(every[i]["step"]) for i in newest if find_overfitting(every[: i + 1], "unet")]


@pytest.mark.parametrize(
    ("held_out", "training", "reported"),
    [
        ([1.0, 0.5, 0.52, 0.53, 0.54, 0.55, 0.6, 0.7], FALLING, [500]),  # the third in a row above 0.51, and once
        ([1.0, 0.5, 0.509, 0.509, 0.509, 0.509, 0.509, 0.509], FALLING, []),  # less than two in a hundred
        ([1.0, 0.5, 0.52, 0.53, 0.505, 0.55, 0.6, 0.5], FALLING, []),  # never three in a row
        ([1.0, 0.5, 0.6, 0.6, 0.6, 0.49, 0.6, 0.6, 0.6], [*FALLING, 0.1], [500, 900]),  # twice, after a new best
        ([1.0, 0.5, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6], [0.9, 0.5, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6], []),  # diverging
        ([1.0, 0.5, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6], [0.9, 0.5, 0.6, 0.6, 0.6, 0.4, 0.4, 0.3], [700]),  # its mean falls
        ([1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3], FALLING, []),
        ([-1.0, -2.0, -1.9, -1.9, -1.9, -1.8, -1.8, -1.8], FALLING, [500]),  # a likelihood may be negative
    ],
)
def test_when_it_is_reported(held_out: list[float], training: list[float], reported: list[int]) -> None:
    assert steps_reported(rows(held_out, training)) == reported


def test_the_average_has_to_rise_too() -> None:
    raw = [1.0, 0.5, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6]
    lagging = [1.0, 0.8, 0.7, 0.6, 0.55, 0.58, 0.58, 0.59]
    assert steps_reported(rows(raw, FALLING, ema=sorted(raw, reverse=True))) == []
    assert steps_reported(rows(raw, FALLING, ema=lagging)) == [800]
    # Step 500 is the best of the average: it is what later stages use.
    assert find_overfitting(rows(raw, FALLING, ema=lagging), "unet") == (
        "overfitting: the held-out loss was at its best at step 500 and has risen since, 0.55 -> 0.59 (of the average) "
        "and 0.5 -> 0.6 (of the raw weights), while the training loss fell, 0.5 -> 0.3; more pictures, a higher "
        "unet.dropout, a smaller network or unet.steps = 500 help"
    )


def test_adversarial_term_is_not_taken_for_overfitting() -> None:
    """It makes the held-out loss rise, and the whole training loss fall where it is negative."""
    every = rows([1.0, 0.5, 0.6, 0.6, 0.6, 0.6], FALLING)
    for row in every[4:]:
        row["loss_reconstruction"] = 0.9
    assert steps_reported(every) == []


def test_rows_without_what_is_needed() -> None:
    assert find_overfitting([], "unet") is None
    assert find_overfitting([{"step": 1, "held_out_loss": 1.0}, {"step": 2, "loss": 1.0}], "unet") is None
    # Logged less often than evaluated: the newest mean counts.
    sparse: list[dict[str, float]] = [{"step": 1, "loss": 1.0, "held_out_loss": 0.5}]
    sparse += [{"step": 2, "held_out_loss": 0.6}, {"step": 3, "held_out_loss": 0.6, "loss": 0.1}]
    sparse += [{"step": 4, "held_out_loss": 0.6}]
    assert find_overfitting(sparse, "unet") is not None
