"""A line of `ldmkit plan`, and its seconds from what was measured."""

from dataclasses import asdict, dataclass
from typing import Any

from ldmkit.plan.footprint import times_due
from ldmkit.plan.probe import LargestBatch, Timed, Watch
from ldmkit.recipe.training import Training


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one stage, or a phase of it, still needs."""

    stage: str
    state: str
    """`to do`, `done` or `cannot run`"""
    reason: str = ""
    """why it cannot run"""
    left: int = 0
    unit: str = "steps"
    """of `left`: `steps`, `pictures`, `captions`"""
    unit_seconds: float | None = None
    """of one step, picture or caption"""
    pictures_per_second: float | None = None
    memory: int | None = None
    """bytes, peak"""
    disk: int = 0
    """bytes still to be written and kept"""
    transient_disk: int = 0
    """bytes of one checkpoint, which is there beside the others until the oldest one is removed"""
    seconds: float | None = 0.0
    """to the end of the stage; None where it was not measured"""
    largest_batch: LargestBatch | None = None

    def table(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def steps_seconds(timed: Timed, section: Training, begin: int, end: int, *, last: bool) -> float:
    """From step `begin` to step `end`, with all that comes between the steps."""

    def due(every: int) -> int:
        return times_due(every, begin, end, last=last)

    return (
        timed.start
        + (end - begin) * timed.step
        + due(section.eval_every) * timed.evaluation
        + due(section.sample_every) * timed.drawing
        + due(section.checkpoint_every) * timed.saving
    )


def unit_seconds(watch: Watch) -> float:
    """Seconds of one unit; the first batch, with which all begins, is left out where there are others."""
    counts = [count for count, _, _ in watch.marks]
    ends = [seconds for _, seconds, _ in watch.marks]
    if len(ends) == 1:
        return ends[0] / counts[0]
    return (ends[-1] - ends[0]) / sum(counts[1:])
