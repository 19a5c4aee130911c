"""What a stopped and resumed part is compared by: every number of its log, every bit of its weights."""

import hashlib
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest


def before(trained: Any, part: str, folder: Path) -> Path:
    """A copy of the trained workshop as it was before this part was made; returns the part's folder."""
    if not (folder / "runs").exists():
        shutil.copytree(trained.folder, folder, dirs_exist_ok=True)
    shutil.rmtree(folder / "runs" / "tiny" / part)
    return folder / "runs" / "tiny" / part


def poison(latents: Path, pictures: slice | int, value: float) -> None:
    """Writes over cached latents, in a record of the version that did not know their hashes."""
    cache = np.load(latents / "mean.npy", mmap_mode="r+")
    cache[pictures] = value
    cache.flush()
    record = json.loads((latents / "record.json").read_text())
    (latents / "record.json").write_text(json.dumps({k: v for k, v in record.items() if k not in ("files", "seal")}))


def curve(part: Path) -> list[dict[str, str]]:
    """Every logged number of every step to the last bit, but for the time."""
    rows = [json.loads(line) for line in (part / "metrics.jsonl").read_text().splitlines()]
    return [
        {key: float(value).hex() for key, value in row.items() if key not in ("seconds", "loader_wait")} for row in rows
    ]


def weights(part: Path) -> dict[str, str]:
    """SHA-256 of each weight file, of the last checkpoint's too: optimizers and averages are in it."""
    files = [*part.glob("*.safetensors"), *part.glob("checkpoints/step_00000008/*.safetensors")]
    return {str(f.relative_to(part)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def assert_same(part: Path, oracle: Path) -> None:
    assert [row["step"] for row in curve(part)] == [float(n).hex() for n in range(1, 9)]
    assert curve(part) == curve(oracle)
    assert weights(part) == weights(oracle)
    assert any("optimizer" in name for name in weights(part))
    kept, expected = (sorted(path.name for path in (each / "checkpoints").iterdir()) for each in (part, oracle))
    assert kept == expected


@pytest.fixture(scope="session")
def exact() -> Any:
    """The functions above."""
    return SimpleNamespace(before=before, poison=poison, curve=curve, weights=weights, assert_same=assert_same)
