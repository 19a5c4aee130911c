"""Overfitting, read off a stage's metrics: the held-out loss rises while the training loss goes on falling."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

MARGIN = 0.02
"""rise of the held-out loss over its best, as a share of it, that counts"""
NUM_EVALUATIONS = 3
"""evaluations in a row that must find it risen"""
CURVES = {"held_out_loss_ema": "average", "held_out_loss": "raw weights"}
"""held-out losses, and what they are of: the first average, which later stages use, comes first"""


@dataclass(frozen=True)
class Evaluation:
    """One evaluation, and the training since the one before."""

    step: int
    held_out: Mapping[str, float]
    """held-out loss by curve; the same curves each time"""
    training: float
    """mean of the training losses logged since the evaluation before, in the terms that the held-out loss has"""


def find_overfitting(rows: Sequence[Mapping[str, float]], stage: str) -> str | None:
    """What the last row's evaluation has newly found in a stage's metrics and what helps; None otherwise.

    It is found where every curve has been more than MARGIN over its best for NUM_EVALUATIONS in a row and the
    training loss's mean over them is below that at the best; then not again until a curve is back near its best.
    """
    found: str | None = None
    best: dict[str, Evaluation] = {}
    risen: list[Evaluation] = []
    reported = False
    for evaluation in evaluations(rows):
        found, now = None, evaluation.held_out
        for key, value in now.items():
            if key not in best or value < best[key].held_out[key]:
                best[key] = evaluation
        lowest = {key: best[key].held_out[key] for key in now}
        if any(now[key] - lowest[key] <= MARGIN * abs(lowest[key]) for key in now):
            risen, reported = [], False
            continue
        risen.append(evaluation)
        before = best[next(key for key in CURVES if key in best)]
        training = fmean(each.training for each in risen[-NUM_EVALUATIONS:])
        if not reported and len(risen) >= NUM_EVALUATIONS and training < before.training:
            reported = True
            rises = " and ".join(f"{lowest[key]:.4g} -> {now[key]:.4g} (of the {CURVES[key]})" for key in now)
            found = (
                f"overfitting: the held-out loss was at its best at step {before.step} and has risen since, {rises}, "
                f"while the training loss fell, {before.training:.4g} -> {training:.4g}; more pictures, a higher "
                f"{stage}.dropout, a smaller network or {stage}.steps = {before.step} help"
            )
    return found


def evaluations(rows: Sequence[Mapping[str, float]]) -> Iterator[Evaluation]:
    """Evaluations of a `metrics.jsonl`; those before the first logged training loss are left out."""
    losses: list[float] = []
    mean: float | None = None
    for row in rows:
        if "loss" in row:
            # An adversarial loss counts in `loss`, and not in the held-out one.
            losses.append(row.get("loss_reconstruction", row["loss"]))
        held_out = {key: row[key] for key in CURVES if key in row}
        if held_out:
            mean, losses = fmean(losses) if losses else mean, []
            if mean is not None:
                yield Evaluation(int(row["step"]), held_out, mean)
