"""Overfitting, read off a stage's metrics: the held-out loss rises while the training loss goes on falling."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

MARGIN = 0.02
"""rise of the held-out loss over its best, as a share of it, that counts"""
NUM_EVALUATIONS = 3
"""evaluations in a row that must find it risen"""
CURVES = ("held_out_loss_ema", "held_out_loss")
"""of the first average, which later stages use, and of the raw weights"""


@dataclass(frozen=True)
class Evaluation:
    """One evaluation, and the training since the one before."""

    step: int
    held_out: Mapping[str, float]
    """held-out loss by curve; the same curves each time"""
    training: float
    """mean of the training losses logged since the evaluation before, in the terms that the held-out loss has"""


@dataclass(frozen=True)
class Overfitting:
    """What the last evaluation found; each pair is (at the best evaluation, now)."""

    best_step: int
    held_out: Mapping[str, tuple[float, float]]
    training: tuple[float, float]

    def line(self, stage: str) -> str:
        """For the user: what was seen, and what helps."""
        named = {"held_out_loss_ema": "of the average", "held_out_loss": "of the raw weights"}
        rises = " and ".join(f"{best:.4g} -> {now:.4g} ({named[key]})" for key, (best, now) in self.held_out.items())
        before, now = self.training
        return (
            f"overfitting: the held-out loss was at its best at step {self.best_step} and has risen since, {rises}, "
            f"while the training loss fell, {before:.4g} -> {now:.4g}; more pictures, a higher {stage}.dropout, a "
            f"smaller network or {stage}.steps = {self.best_step} help"
        )


def find_overfitting(rows: Sequence[Mapping[str, float]]) -> Overfitting | None:
    """What the last row's evaluation has newly found in a stage's metrics; None otherwise, and when told before.

    It is found where every curve has been more than MARGIN over its best for NUM_EVALUATIONS in a row and the
    training loss's mean over them is below that at the best. It is told once, until a curve is back near its best.
    """
    found: Overfitting | None = None
    best: dict[str, Evaluation] = {}
    risen: list[Evaluation] = []
    told = False
    for evaluation in evaluations(rows):
        found = None
        for key, value in evaluation.held_out.items():
            if key not in best or value < best[key].held_out[key]:
                best[key] = evaluation
        rises = [value - best[key].held_out[key] for key, value in evaluation.held_out.items()]
        limits = [MARGIN * abs(best[key].held_out[key]) for key in evaluation.held_out]
        if any(rise <= limit for rise, limit in zip(rises, limits, strict=True)):
            risen, told = [], False
            continue
        risen.append(evaluation)
        before = best[next(key for key in CURVES if key in best)]
        now = fmean(each.training for each in risen[-NUM_EVALUATIONS:])
        if not told and len(risen) >= NUM_EVALUATIONS and now < before.training:
            held_out = {key: (best[key].held_out[key], value) for key, value in evaluation.held_out.items()}
            found, told = Overfitting(before.step, held_out, (before.training, now)), True
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
