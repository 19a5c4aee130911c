"""Runs the first steps of a real stage and notes their time and memory: what `ldmkit plan` is made of."""

import ctypes
import gc
import math
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import psutil  # type: ignore[import-untyped,unused-ignore]
import torch

from ldmkit.errors import LdmkitError
from ldmkit.plan.estimate import LargestBatch, Row, StepCosts, extrapolate_batch
from ldmkit.recipe.training import Training
from ldmkit.report import Bar, Reporter
from ldmkit.run.workspace import Workspace
from ldmkit.training.device import processes

Stage = Callable[[Workspace], Any]

_POLL_SECONDS = 0.005
_NEVER = 2**62


class ProbeEnd(Exception):
    """Ends a stage of which enough was measured."""


class Probe(Reporter):
    """The reporter of a stage that runs in its `measuring` block: prints nothing, notes time and memory.

    Memory is the GPU's where there is one, else this process's.
    """

    def __init__(self, *, limit: int = sys.maxsize, patience: float = math.inf) -> None:
        """Ends the stage after `limit` units of work, or once those behind the first one took `patience` seconds."""
        super().__init__(quiet=True)
        self.limit = limit
        self.patience = patience
        self.notes: list[tuple[int, float]] = []
        """(pictures, captions or steps since the note before, seconds since the block began)"""
        self._process = psutil.Process()
        self._on_gpu = processes().device.type == "cuda"
        self._peak = 0
        self._ended = threading.Event()

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Goes around the stage."""
        release()
        if self._on_gpu:
            torch.cuda.reset_peak_memory_stats()
        poll = threading.Thread(target=self._poll, daemon=True)
        poll.start()
        self._begun = time.perf_counter()
        try:
            with suppress(ProbeEnd):
                yield
        finally:
            self.peak()
            self._ended.set()
            poll.join()

    @contextmanager
    def bar(self, title: str, total: int, done: int = 0) -> Iterator[Bar]:
        bar = _ProbeBar(title, total, done)
        bar.probe = self
        yield bar

    def note(self, count: int) -> None:
        """Some more work is done, on the device too."""
        self.notes.append((count, self.seconds()))
        if len(self.notes) >= self.limit or self.notes[-1][1] - self.notes[0][1] > self.patience:
            raise ProbeEnd

    def seconds(self) -> float:
        """Since the block began, all work on the device done."""
        if self._on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter() - self._begun

    def row(self, stage: str, *, left: int, unit: str, disk: float, after: float = 0.0) -> Row:
        """What is left of a stage whose beginning was measured; `after`: seconds that come once, at its end."""
        each, start = None, 0.0
        if self.notes:
            counts, ends = zip(*self.notes, strict=True)
            # The first batch, with which all begins, is left out where there are others.
            each = ends[-1] / counts[0] if len(ends) == 1 else (ends[-1] - ends[0]) / sum(counts[1:])
            start = max(0.0, ends[0] - counts[0] * each)
        return Row(
            stage=stage,
            state="to do",
            left=left,
            unit=unit,
            unit_seconds=each,
            pictures_per_second=1 / each if each and unit == "pictures" else None,
            memory=self.peak(),
            disk=max(0, round(disk)),
            seconds=start + left * (each or 0.0) + after,
        )

    def peak(self) -> int:
        """The most bytes that were held at a time, up to now."""
        now = torch.cuda.max_memory_allocated() if self._on_gpu else int(self._process.memory_info().rss)
        self._peak = max(self._peak, now)
        return self._peak

    def _poll(self) -> None:
        # Neither Windows nor macOS has a peak that can be reset between two stages.
        while not self._on_gpu and not self._ended.wait(_POLL_SECONDS):
            self.peak()


class _ProbeBar(Bar):
    probe: Probe

    def advance(self, count: int = 1, metrics: Any = None) -> None:
        self.probe.note(count)


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


def measure_steps(stage: Stage, workspace: Workspace, name: str, *, num_steps: int, steps: int) -> StepCosts:
    """The first `steps` optimizer steps of a training stage of `num_steps`, as it really runs.

    The last three are followed by an evaluation, a sample grid and a checkpoint, one each, which are timed by what
    they take longer than the others. The part's folder keeps what the stage wrote.
    """
    every = {"eval_every": steps - 2, "sample_every": steps - 1, "checkpoint_every": steps}
    # Neither the last step, which would do all three at once, nor a save at the evaluation.
    changes = {**every, "steps": max(num_steps, steps + 1), "keep_best": False}
    probe = _first_steps(stage, workspace, name, steps, changes)
    took = [after - before for before, after in pairwise([0.0, *(seconds for _, seconds in probe.notes)])]
    warm_up = steps // 4
    step = median(took[warm_up : steps - 3])
    between = {key: max(0.0, seconds - step) for key, seconds in zip(every, took[-3:], strict=True)}
    return StepCosts(step, max(0.0, sum(took[:warm_up]) - warm_up * step), between, probe.peak())


def measure_largest_batch(
    stage: Stage, workspace: Workspace, name: str, num_samples: int, available: int
) -> LargestBatch:
    """From the memory of two steps with the recipe's batch size and of two with twice that."""
    section: Training = getattr(workspace.recipe, name)
    changes = dict.fromkeys(("eval_every", "sample_every", "checkpoint_every", "log_every"), _NEVER)
    # Compiling takes minutes, and what is compiled seldom takes more memory.
    changes |= {"compile": "off", "steps": 3}
    try:
        both = [{**changes, "batch_size": batch} for batch in (section.batch_size, 2 * section.batch_size)]
        memory, twice = (_first_steps(stage, workspace, name, 2, each).peak() for each in both)
    except (torch.OutOfMemoryError, LdmkitError) as error:  # as a GPU says it; a CPU has no such limit
        if "out of memory" not in str(error):
            raise
        return LargestBatch(section.batch_size, "at least")
    return extrapolate_batch(memory, twice, section, available=available, num_samples=num_samples)


def _first_steps(stage: Stage, workspace: Workspace, name: str, steps: int, changes: dict[str, Any]) -> Probe:
    """So many steps of a stage, some keys of its recipe section changed, `steps` among them."""
    section: Training = getattr(workspace.recipe, name)
    changed = section.model_copy(update={"epochs": None, **changes})
    recipe = workspace.recipe.model_copy(update={name: changed})
    empty(workspace.folder(name))
    probe = Probe(limit=steps)
    with probe.measuring():
        stage(replace(workspace, recipe=recipe, reporter=probe))
    assert len(probe.notes) == steps
    return probe


def empty(folder: Path) -> None:
    """Makes the folder anew: a stage goes on from what it finds."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
