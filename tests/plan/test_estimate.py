"""From measured steps to a whole run: the largest batch, how often something comes, how latents grow on the disk."""

import json
from pathlib import Path

import numpy as np
import pytest

from ldmkit.plan.estimate import LargestBatch, StepCosts, extrapolate_batch, grown_bytes, times_due
from ldmkit.plan.probe import Probe
from ldmkit.recipe.training import Training


def test_the_largest_batch_is_on_a_straight_line_through_two() -> None:
    base, each = 700, 13

    def largest(unit: int, available: int, num_samples: int) -> LargestBatch:
        section = Training(steps=1, batch_size=6, grad_accumulation=unit)
        memory, twice = base + each * 6, base + each * 12
        return extrapolate_batch(memory, twice, section, available=available, num_samples=num_samples)

    for unit in (1, 3):
        for available in (1000, 2000, 50_000, 10**7):
            found = largest(unit, available, 10**9)
            exact = (0.9 * available - base) / each
            assert found.kind == "estimate"
            assert found.size % unit == 0
            assert found.size <= exact
            assert found.size > exact / 2 - unit, "one of the two sizes of each octave is at least half"
            few = largest(unit, available, 24)
            assert few == (found if exact < 24 else LargestBatch(24, "at least")), "no more than all pictures"
    assert largest(1, 10, 10**9) == LargestBatch(0, "estimate")
    flat = extrapolate_batch(800, 800, Training(steps=1, batch_size=4), available=10**6, num_samples=10**9)
    assert flat == LargestBatch(8, "at least")


def test_what_comes_between_steps_is_counted_as_a_loop_does() -> None:
    for every in (1, 3, 4, 50):
        for stop in range(0, 14):
            for start in range(0, stop + 1):
                for last in (False, True):
                    counted = sum(step % every == 0 or (last and step == stop) for step in range(start + 1, stop + 1))
                    assert times_due(every, start, stop, last=last) == counted
    between = {"eval_every": 100.0, "sample_every": 1000.0, "checkpoint_every": 10_000.0}
    costs = StepCosts(step=1.0, start=0.5, between=between, memory=0)
    section = Training(steps=10, eval_every=4, sample_every=6, checkpoint_every=20)
    assert costs.seconds(section, 2, 10, last=True) == 0.5 + 8 + 3 * 100 + 2 * 1000 + 10_000
    assert costs.seconds(section, 2, 9, last=False) == 0.5 + 7 + 2 * 100 + 1000


def test_growth_is_that_of_the_files(tmp_path: Path) -> None:
    def write(folder: Path, count: int) -> int:
        folder.mkdir()
        np.save(folder / "mean.npy", np.zeros((count, 2, 4, 3, 3), np.float16))
        (folder / "pictures.json").write_text(json.dumps(["a.png"] * count))
        (folder / "statistics.json").write_text("[1, 2]" * 1000)
        return sum(file.stat().st_size for file in folder.iterdir())

    write(tmp_path / "few", 160)
    assert grown_bytes(tmp_path / "few", 4.0) == pytest.approx(write(tmp_path / "many", 640), abs=3 * 128)  # a header


def test_a_probe_counts_from_behind_the_first_batch_and_ends_in_time() -> None:
    probe = Probe(patience=3.0)
    clock = iter([10.0, 12.0, 14.0, 99.0])
    probe.seconds = lambda: next(clock)  # type: ignore[method-assign]
    with probe.measuring(), probe.bar("captions", 100) as bar:
        for _ in range(100):
            bar.advance(4)
    assert probe.notes == [(4, 10.0), (4, 12.0), (4, 14.0)]
    row = probe.row("caption", left=100, unit="pictures", disk=7.4, after=1.0)
    assert (row.unit_seconds, row.pictures_per_second, row.disk) == (0.5, 2.0, 7)
    assert row.seconds == 8 + 50 + 1  # what the first batch took beside its own 2 s comes once


def test_peak_memory_holds_what_was_freed_again() -> None:
    size = 200 * 2**20
    probe = Probe()
    with probe.measuring():
        before = probe.peak()
        held = bytearray(b"x") * size
        assert len(held) == size
        probe.peak()
        del held
    assert probe.peak() - before == pytest.approx(size, rel=0.2)
