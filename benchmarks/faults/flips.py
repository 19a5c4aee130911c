"""Random bit flips and cuts over every file of a checkpoint and of a bundle: how many are noticed before loading.

python -m benchmarks.faults.flips [--damages 1000] [--bundle exports/toy-cats]
"""

import random
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.command import run
from benchmarks.runs import REPOSITORY
from ldmkit.errors import LdmkitError
from ldmkit.run.checkpoint import Keep, load_newest, save_checkpoint
from ldmkit.runtime.bundle import Bundle


def damaged(data: bytes, rng: random.Random) -> bytes:
    """The bytes with one bit flipped, one byte changed, a block of zeros, or the end cut off; never the same ones."""
    while True:
        changed = bytearray(data)
        place = rng.randrange(len(data))
        kind = rng.choice(("bit", "byte", "zeros", "cut"))
        if kind == "bit":
            changed[place] ^= 1 << rng.randrange(8)
        elif kind == "byte":
            changed[place] = rng.randrange(256)
        elif kind == "zeros":
            changed[place : place + 512] = bytes(len(changed[place : place + 512]))
        else:
            del changed[place:]
        if changed != data:
            return bytes(changed)


def noticed(folder: Path, refused: Callable[[], bool], count: int, rng: random.Random) -> int:
    """How many of `count` damages to one of the files in `folder` are."""
    assert not refused()
    whole = {path: path.read_bytes() for path in sorted(folder.iterdir())}
    found = 0
    for _ in range(count):
        path = rng.choice(list(whole))
        path.write_bytes(damaged(whole[path], rng))
        found += refused()
        path.write_bytes(whole[path])
    return found


def checkpoint_flips(folder: Path, count: int, rng: random.Random) -> int:
    """Of a checkpoint of a small network and its AdamW."""
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 64))
    moments = {f"{i}.exp_avg": torch.randn_like(p) for i, p in enumerate(model.parameters())}
    tensors = {"model": dict(model.state_dict()), "ema": dict(model.state_dict()), "optimizer_model": moments}
    checkpoint = save_checkpoint(folder, 1, tensors, {"memory": {}, "seconds": 1.5}, keep=Keep())

    def refused() -> bool:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = load_newest(folder)
        if found is None:
            (folder / f"damaged_{checkpoint.name}").rename(checkpoint)
        return found is None

    return noticed(checkpoint, refused, count, rng)


def bundle_flips(bundle: Path, count: int, rng: random.Random) -> int:
    """Of a copy of a bundle."""

    def refused() -> bool:
        try:
            Bundle.load(bundle).verify()
        except LdmkitError:
            return True
        return False

    return noticed(bundle, refused, count, rng)


def main(*, damages: int = 1000, bundle: Path = REPOSITORY / "exports" / "toy-cats") -> None:
    rng = random.Random(0)
    with tempfile.TemporaryDirectory(prefix="ldmkit-flips-") as name:
        found = {"checkpoint": checkpoint_flips(Path(name) / "checkpoints", damages, rng)}
        shutil.copytree(bundle, Path(name) / "bundle")
        found["bundle"] = bundle_flips(Path(name) / "bundle", damages, rng)
    for what, count in found.items():
        print(f"{what}: {count} of {damages} damages noticed before loading")
    sys.exit(min(found.values()) < damages)


if __name__ == "__main__":
    run(main)
