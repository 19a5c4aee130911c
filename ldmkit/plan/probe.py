"""Runs the first steps of a real stage under a stopwatch: what `ldmkit plan` is made of."""

import ctypes
import gc
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Any

import psutil  # type: ignore[import-untyped,unused-ignore]
import torch

from ldmkit.errors import LdmkitError
from ldmkit.recipe.training import Training
from ldmkit.report import Bar, Reporter
from ldmkit.run.workspace import Workspace
from ldmkit.training.device import processes

Stage = Callable[[Workspace], Any]

_POLL_SECONDS = 0.005
_NEVER = 2**62


class Enough(Exception):
    """Ends a stage all of whose steps have been measured."""


@dataclass(frozen=True)
class Timed:
    """What the first steps of a training stage cost."""

    step: float
    """seconds of one optimizer step, the median after the warm-up"""
    start: float
    """seconds that come once: first batches, compilation"""
    evaluation: float
    """seconds of one held-out evaluation"""
    drawing: float
    """seconds of one sample grid"""
    saving: float
    """seconds of one checkpoint"""
    memory: int
    """bytes, the most that was held at a time"""
    step_memory: int
    """bytes, the most that was held while nothing but steps had been made"""


class Watch(Reporter):
    """Prints nothing; notes when each unit of work ended, and ends the stage after `limit` of them."""

    def __init__(self, limit: int | None = None, memory: "PeakMemory | None" = None) -> None:
        super().__init__(quiet=True)
        self.limit = limit
        self.memory = memory
        self.begun = time.perf_counter()
        self.marks: list[tuple[int, float, int]] = []
        """(units done since the mark before, seconds since the watch began, peak memory so far)"""

    @contextmanager
    def bar(self, title: str, total: int, done: int = 0) -> Iterator[Bar]:
        yield _WatchedBar(self, title, total, done)

    def seconds(self) -> float:
        """Since the watch began, all work on the device done."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - self.begun

    def note(self, count: int) -> None:
        """One more unit of work is done, on the device too."""
        self.marks.append((count, self.seconds(), self.memory.peak() if self.memory else 0))
        if len(self.marks) == self.limit:
            raise Enough


class _WatchedBar(Bar):
    def __init__(self, watch: Watch, title: str, total: int, done: int) -> None:
        super().__init__(title, total, done)
        self.watch = watch

    def advance(self, count: int = 1, metrics: Any = None) -> None:
        super().advance(count)
        self.watch.note(count)


class PeakMemory:
    """The most memory, in bytes, held within the block: of the GPU where there is one, else by this process."""

    def __init__(self) -> None:
        self.on_gpu = processes().device.type == "cuda"
        self._process = psutil.Process()
        self._peak = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._poll, daemon=True)

    def __enter__(self) -> "PeakMemory":
        release()
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()
        else:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.peak()
        self._ended.set()
        if not self.on_gpu:
            self._thread.join()

    def peak(self) -> int:
        """Bytes, up to now."""
        now = torch.cuda.max_memory_allocated() if self.on_gpu else int(self._process.memory_info().rss)
        self._peak = max(self._peak, now)
        return self._peak

    def _poll(self) -> None:
        # Neither Windows nor macOS has a peak that can be reset between two stages.
        while not self._ended.wait(_POLL_SECONDS):
            self.peak()


def release() -> None:
    """Gives back what is no longer used, so that one stage's memory is not counted as the next one's."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # musl has no such function
            ctypes.CDLL(None).malloc_trim(0)


def available_memory() -> int:
    """Bytes that this process can come to hold: free memory and what it holds now."""
    if processes().device.type == "cuda":
        return int(torch.cuda.mem_get_info()[0]) + torch.cuda.memory_reserved()
    return int(psutil.virtual_memory().available) + int(psutil.Process().memory_info().rss)


def with_section(workspace: Workspace, name: str, **changes: Any) -> Workspace:
    """The same workspace with keys of one recipe section changed."""
    section: Training = getattr(workspace.recipe, name)
    recipe = workspace.recipe.model_copy(update={name: section.model_copy(update=changes)})
    return replace(workspace, recipe=recipe)


def time_steps(stage: Stage, workspace: Workspace, name: str, *, num_steps: int, steps: int) -> Timed:
    """The first `steps` optimizer steps of a training stage of `num_steps`, as it really runs.

    The last three are followed by an evaluation, a sample grid and a checkpoint, one each, which are timed by what
    they take longer than the others. The part's folder keeps what the stage wrote.
    """
    workspace = with_section(
        workspace,
        name,
        steps=max(num_steps, steps + 1),  # the last step would do all three at once
        epochs=None,
        eval_every=steps - 2,
        sample_every=steps - 1,
        checkpoint_every=steps,
        keep_best=False,  # which would save at the evaluation too
    )
    with PeakMemory() as memory:
        watch = _run(stage, workspace, name, steps, memory)
    ends = [seconds for _, seconds, _ in watch.marks]
    took = [ends[0], *(after - before for before, after in pairwise(ends))]
    warm_up = steps // 4
    step = median(took[warm_up : steps - 3])
    return Timed(
        step=step,
        start=max(0.0, sum(took[:warm_up]) - warm_up * step),
        evaluation=max(0.0, took[steps - 3] - step),
        drawing=max(0.0, took[steps - 2] - step),
        saving=max(0.0, took[steps - 1] - step),
        memory=memory.peak(),
        step_memory=watch.marks[steps - 4][2],
    )


def memory_at(stage: Stage, workspace: Workspace, name: str, batch_size: int) -> int | None:
    """Peak bytes of two steps with another batch size; None where the GPU has not got that much."""
    workspace = with_section(
        workspace,
        name,
        batch_size=batch_size,
        compile="off",  # takes minutes, and seldom more memory
        steps=max(3, getattr(workspace.recipe, name).num_steps(len(workspace.split()[0]))),
        epochs=None,
        **dict.fromkeys(("eval_every", "sample_every", "checkpoint_every", "log_every"), _NEVER),
    )
    try:
        with PeakMemory() as memory:
            _run(stage, workspace, name, 2, memory)
        return memory.peak()
    except torch.OutOfMemoryError:
        return None
    except LdmkitError as error:
        if "out of memory" not in str(error):
            raise
        return None
    finally:
        release()


def _run(stage: Stage, workspace: Workspace, name: str, steps: int, memory: PeakMemory) -> Watch:
    empty(workspace.folder(name))
    watch = Watch(steps, memory)
    with suppress(Enough):
        stage(replace(workspace, reporter=watch))
    assert len(watch.marks) == steps
    return watch


def empty(folder: Path) -> None:
    """Makes the folder anew: a stage goes on from what it finds."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


@dataclass(frozen=True)
class LargestBatch:
    """The largest batch that fits into the memory."""

    size: int
    """0: not even the smallest one does"""
    kind: str
    """`found` by trying, `estimate` from the memory of two sizes, `at least` where the search ended before memory"""


def search_largest(fits: Callable[[int], bool], *, batch_size: int, unit: int, limit: int) -> LargestBatch:
    """Doubles from `batch_size` while it fits, else halves until it does, then tries half as much again.

    Sizes are multiples of `unit`; the search ends at `limit`.
    """
    size = batch_size
    if fits(size):
        while size * 2 <= limit:
            if not fits(size * 2):
                break
            size *= 2
        else:
            return LargestBatch(size, "at least")
    else:
        size //= 2
        while size >= unit and (size % unit or not fits(size)):
            size //= 2
        if size < unit:
            return LargestBatch(0, "found")
    half_more = size + size // 2
    if half_more % unit == 0 and half_more > size and half_more != batch_size and fits(half_more):
        size = half_more
    return LargestBatch(size, "found")


def extrapolate_largest(memory: int, twice: int, *, batch_size: int, unit: int, available: int) -> LargestBatch:
    """From the peak bytes at `batch_size` and at twice that; 2^k or 1.5 * 2^k units, so that a tenth stays free."""
    growth = (twice - memory) / batch_size  # bytes a picture
    if growth <= 0:
        return LargestBatch(2 * batch_size, "at least")
    units = max(0, int((batch_size + (0.9 * available - memory) / growth) / unit))
    if not units:
        return LargestBatch(0, "estimate")
    power = 1 << (units.bit_length() - 1)
    rounded = power + power // 2 if units >= power + power // 2 else power
    return LargestBatch(rounded * unit, "estimate")
