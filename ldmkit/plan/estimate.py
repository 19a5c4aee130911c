"""From what the first steps of a part cost to the whole of it: seconds, bytes on the disk, the largest batch."""

from dataclasses import dataclass
from pathlib import Path

from ldmkit.recipe.training import Training
from ldmkit.run.files import CONTENTS

_GROWING = {"pictures.json", "captions.json", "buckets.json", CONTENTS}
"""files of `latents/` and `text/` that grow with what they hold, beside the arrays"""


@dataclass(frozen=True)
class LargestBatch:
    """The largest batch that fits into the memory."""

    size: int
    """0: not even the smallest one does"""
    kind: str
    """`estimate` from the memory of two sizes; `at least` where these do not show where it ends"""


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one part of a run, or a phase of it, still needs: a line of `ldmkit plan`."""

    stage: str
    state: str
    """`to do`, `done` or `cannot run`"""
    reason: str = ""
    """why it cannot run"""
    left: int = 0
    unit: str = "steps"
    """of `left`: `steps`, `pictures`, `captions`, `bundle`"""
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
    """to the end of the part; None where it was not measured"""
    largest_batch: LargestBatch | None = None


@dataclass(frozen=True)
class StepCosts:
    """What the first steps of a training stage cost."""

    step: float
    """seconds of one optimizer step, the median after the warm-up"""
    start: float
    """seconds that come once: first batches, compilation"""
    between: dict[str, float]
    """seconds of an evaluation, a sample grid, a checkpoint, by the key that says how many steps lie between two"""
    memory: int
    """bytes, the most that was held at a time"""

    def seconds(self, section: Training, begin: int, end: int, *, last: bool) -> float:
        """From step `begin` to step `end`, the `last` one or not."""
        due = {key: times_due(getattr(section, key), begin, end, last=last) for key in self.between}
        return self.start + (end - begin) * self.step + sum(due[key] * self.between[key] for key in due)


def times_due(every: int, start: int, stop: int, *, last: bool) -> int:
    """How often something that comes `every` so many steps, and after the last one, comes in steps start+1 to stop."""
    return stop // every - start // every + (last and stop > start and stop % every > 0)


def extrapolate_batch(memory: int, twice: int, section: Training, *, available: int, num_samples: int) -> LargestBatch:
    """From the peak bytes at the section's batch size and at twice that, so that a tenth of the memory stays free.

    2^k or 1.5 * 2^k times `grad_accumulation`; a batch of more than all `num_samples` is of no use.
    """
    size, unit = section.batch_size, section.grad_accumulation
    growth = (twice - memory) / size  # bytes a picture
    if growth <= 0:
        return LargestBatch(2 * size, "at least")
    fits = max(0, int((size + (0.9 * available - memory) / growth) / unit))
    units = min(fits, max(size, num_samples) // unit)
    power = 1 << units.bit_length() >> 1
    rounded = power + power // 2 if units >= power + power // 2 else power
    return LargestBatch(rounded * unit, "at least" if units < fits else "estimate")


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below the folder; 0 where it is not there."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def trained_bytes(folder: Path, section: Training, num_steps: int) -> tuple[int, int]:
    """(a finished training stage, one checkpoint) in bytes, from a folder with one of everything but the weights."""
    (checkpoint,) = (folder / "checkpoints").glob("step_*")
    one = folder_bytes(checkpoint)
    kept = section.keep_checkpoints + section.keep_best + (num_steps // section.keep_every if section.keep_every else 0)
    checkpoints = min(kept, times_due(section.checkpoint_every, 0, num_steps, last=True) + section.keep_best)
    weights = [f.stat().st_size for f in checkpoint.glob("*.safetensors") if not f.name.startswith("optimizer_")]
    drawn = folder_bytes(folder / "samples") + folder_bytes(folder / "tensorboard")
    draws = times_due(section.sample_every, 0, num_steps, last=True)
    row = max(len(line) for line in (folder / "metrics.jsonl").read_bytes().splitlines())
    rows = times_due(section.log_every, 0, num_steps, last=True)
    plot = (folder / "loss.png").stat().st_size
    # TensorBoard keeps each number as well, in about twice the bytes.
    return one * checkpoints + sum(weights) + drawn * draws + 3 * row * rows + plot, one


def grown_bytes(folder: Path, factor: float) -> int:
    """Bytes of `latents/` or `text/` once they hold `factor` times as much."""
    grow = {file for file in folder.iterdir() if file.suffix == ".npy" or file.name in _GROWING}
    return round(sum(file.stat().st_size * (factor if file in grow else 1) for file in folder.iterdir()))
