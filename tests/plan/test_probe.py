"""The largest batch that fits, how often something comes, and how latents grow on the disk."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ldmkit.plan.footprint import grown_bytes, times_due
from ldmkit.plan.probe import LargestBatch, PeakMemory, extrapolate_largest, search_largest
from ldmkit.plan.sample import _spread


@pytest.mark.parametrize("unit", [1, 3, 4])
def test_the_search_finds_what_trying_every_size_would(unit: int) -> None:
    for factor in (1, 2, 5, 16):
        batch_size = unit * factor
        ladder = {
            size
            for power in range(-5, 12)
            for size in (batch_size * 2.0**power, batch_size * 1.5 * 2.0**power)
            if size % unit == 0
        }
        for largest in range(unit, 30 * unit + 90, 7):
            tried: list[int] = []

            def fits(size: int, largest: int = largest, tried: list[int] = tried) -> bool:
                tried.append(size)
                return size <= largest

            found = search_largest(fits, batch_size=batch_size, unit=unit, limit=10_000)
            expected = max((size for size in ladder if size <= largest), default=0)
            assert found.kind == "found"
            assert len(tried) == len(set(tried)), "a size is tried once"
            assert all(size % unit == 0 for size in tried)
            # Halving an odd number of units ends the ladder early: what is found fits, and is no less than half.
            assert found.size <= max(expected, largest)
            assert found.size >= expected / 2 or found.size == 0
            if factor in (1, 2, 16):
                assert found.size == expected
    assert search_largest(lambda _: True, batch_size=4, unit=2, limit=40) == LargestBatch(32, "at least")


def test_extrapolation_is_that_of_a_straight_line() -> None:
    base, each = 700, 13
    for unit in (1, 3):
        for available in (1000, 2000, 50_000, 10**7):
            found = extrapolate_largest(base + each * 6, base + each * 12, batch_size=6, unit=unit, available=available)
            exact = (0.9 * available - base) / each
            assert found.size % unit == 0
            assert found.size <= exact
            assert found.size > exact / 2 - unit, "one of the two sizes of each octave is at least half"
    assert extrapolate_largest(800, 800, batch_size=4, unit=1, available=10**6) == LargestBatch(8, "at least")
    assert extrapolate_largest(10**6, 2 * 10**6, batch_size=1, unit=1, available=10) == LargestBatch(0, "estimate")


def test_times_due_is_what_a_loop_counts() -> None:
    for every in (1, 3, 4, 50):
        for stop in range(0, 14):
            for start in range(0, stop + 1):
                for last in (False, True):
                    counted = sum(step % every == 0 or (last and step == stop) for step in range(start + 1, stop + 1))
                    assert times_due(every, start, stop, last=last) == counted


def test_growth_is_that_of_the_files(tmp_path: Path) -> None:
    def write(folder: Path, count: int) -> int:
        folder.mkdir()
        np.save(folder / "mean.npy", np.zeros((count, 2, 4, 3, 3), np.float16))
        np.save(folder / "index.npy", np.zeros(count * 2, np.int32))
        (folder / "pictures.json").write_text(json.dumps(["a.png"] * count))
        (folder / "statistics.json").write_text("[1, 2]")
        return sum(file.stat().st_size for file in folder.iterdir())

    write(tmp_path / "few", 16)
    assert grown_bytes(tmp_path / "few", 4.0) == write(tmp_path / "many", 64)


def test_peak_memory_holds_what_was_freed_again() -> None:
    def hold(size: int) -> Iterator[bytearray]:
        yield bytearray(b"x") * size

    size = 200 * 2**20
    with PeakMemory() as memory:
        before = memory.peak()
        for held in hold(size):
            assert len(held) == size
            memory.peak()
        del held
    if not memory.on_gpu:
        assert memory.peak() - before == pytest.approx(size, rel=0.2)


def test_the_sample_is_spread_evenly() -> None:
    for length in (0, 1, 5, 1000):
        for count in (1, 4, 64):
            chosen = _spread(np.arange(length) * 10, count)
            assert len(set(chosen)) == len(chosen) == min(length, count)
            if len(chosen) > 1:
                assert (chosen[0], chosen[-1]) == (0, (length - 1) * 10)
                assert np.ptp(np.diff(chosen)) <= 10
