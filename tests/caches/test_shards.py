"""Arrays written shard by shard against numpy's own files, whatever stopped the writer."""

import io
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ldmkit.caches.shards import ShardedArrays
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
    assert write(tmp_path) == 0
    assert_whole(tmp_path)


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, stop=8)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2**20))
    with pytest.raises(LdmkitError, match=r"1 MiB are needed and 1 MiB are free; make room"):
        write(tmp_path)
    monkeypatch.undo()
    assert write(tmp_path) == 8
    assert_whole(tmp_path)
