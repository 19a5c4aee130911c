"""Arrays written shard by shard against numpy's own files, whatever stopped the writer."""

import io
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ldmkit.caches.quality import LatentMoments
from ldmkit.caches.shards import ShardedArrays, read_progress
from ldmkit.caches.together import Share, gather
from ldmkit.errors import LdmkitError

ROWS = {
    "mean": np.random.default_rng(0).standard_normal((10, 2, 3)).astype(np.float32),
    "std": np.arange(10, dtype=np.float16),
}
SHAPES: Any = {name: (array.dtype, array.shape) for name, array in ROWS.items()}


def write(folder: Path, *, stop: int = 10, saved: int = 10) -> int:
    """Appends up to row `stop`, two at a time, and saves up to row `saved`; the row that it began with."""
    with ShardedArrays(folder, SHAPES) as shards:
        first = shards.done
        assert shards.memory == ({"next": first} if first else {})
        for i in range(first, stop, 2):
            shards.append(**{name: array[i : i + 2].astype(np.float64) for name, array in ROWS.items()})
            if i + 2 <= saved:
                shards.save({"next": i + 2})
    return first


def assert_whole(folder: Path) -> None:
    for name, array in ROWS.items():
        file = io.BytesIO()
        np.save(file, array)
        assert (folder / f"{name}.npy").read_bytes() == file.getvalue()


def test_numpys_own_files(tmp_path: Path) -> None:
    assert write(tmp_path) == 0
    assert_whole(tmp_path)
    assert write(tmp_path) == 10  # nothing is left to do
    assert_whole(tmp_path)


def test_goes_on_behind_what_was_saved(tmp_path: Path) -> None:
    write(tmp_path, stop=8, saved=4)
    for name in ROWS:
        with pytest.raises(ValueError, match="mmap length is greater than file size"):
            np.load(tmp_path / f"{name}.npy", mmap_mode="r")
    assert write(tmp_path, stop=6, saved=6) == 4
    assert write(tmp_path) == 6
    assert_whole(tmp_path)


@pytest.mark.parametrize("damage", ["removed", "cut", "of another kind"])
def test_begins_anew_where_the_files_are_others(damage: str, tmp_path: Path) -> None:
    write(tmp_path, stop=8)
    file = tmp_path / "std.npy"
    if damage == "removed":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:-1])
    else:
        np.save(file, np.arange(10, dtype=np.int16))
    with ShardedArrays(tmp_path, SHAPES):
        assert read_progress(tmp_path) == (0, {})
    assert write(tmp_path) == 0
    assert_whole(tmp_path)


@pytest.mark.parametrize(
    ("stopped", "damaged", "whole"), [(None, None, 5), (4, None, 4), (2, None, 2), (None, 0, 0), (3, 1, 1)]
)
def test_what_several_processes_have_done_counts_up_to_the_first_gap(
    stopped: int | None, damaged: int | None, whole: int, tmp_path: Path
) -> None:
    """Three processes and five batches of two pictures; one is never made, or one process's sums are spoilt."""
    mean, std = np.random.default_rng(0).uniform(0.1, 1, (2, 10, 1, 2, 3, 1)).astype(np.float32)
    shapes: Any = dict.fromkeys(("mean", "std"), (mean.dtype, mean.shape))
    buckets, rows = np.zeros(10, np.int64), np.arange(11)
    with ShardedArrays(tmp_path, shapes):
        pass
    for rank in (2, 0, 1):
        with ShardedArrays(tmp_path, shapes, joins=True) as shards:
            team: Any = SimpleNamespace(process_index=rank, num_processes=3)
            share = Share(shards, team, channels=2, batch=2)
            for number in range(rank, 5, 3):
                if number == stopped:
                    break
                own = slice(2 * number, 2 * number + 2)
                share.append(2 * number, mean[own], std[own], flat=False)
                share.save(0)
    if damaged is not None:
        file = tmp_path / f"share-{damaged}.bin"
        file.write_bytes(b"x" + file.read_bytes()[1:])
    expected = LatentMoments(2)
    for number in range(whole):
        expected.add(mean[2 * number : 2 * number + 2], std[2 * number : 2 * number + 2])
    found = gather(tmp_path, 2, buckets, rows)
    assert (found.sums == expected.sums).all()
    assert (gather(tmp_path, 2, buckets, rows).sums == expected.sums).all()  # once is enough
    assert read_progress(tmp_path)[0] == 2 * whole
    assert not [*tmp_path.glob("share-*")]
    with ShardedArrays(tmp_path, shapes) as shards:  # which cuts off what lies behind it
        assert shards.done == 2 * whole
    if whole == 5:
        assert (np.load(tmp_path / "mean.npy") == mean).all()
        assert (np.load(tmp_path / "std.npy") == std).all()


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, stop=8)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2**20))
    with pytest.raises(LdmkitError, match=r"1 MiB are needed and 1 MiB are free; make room"):
        write(tmp_path)
    monkeypatch.undo()
    assert write(tmp_path) == 8
    assert_whole(tmp_path)
