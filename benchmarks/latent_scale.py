"""Whether cost grows with the number of cached latents: opening them, memory, and a training step, in turns.

python benchmarks/latent_scale.py [--nums 1000 10000 100000 1000000] [--steps 40] [--size 8] [--channels 4]

The caches are made for the purpose: their files are sparse, so that a million latents take next to no disk.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import open_memmap

from ldmkit.caches.sets import LatentSet
from ldmkit.models.unet import UNet
from ldmkit.recipe.sections import Latents
from ldmkit.run.randomness import SampleOrder

CHANNELS = (32, 32, 64)


@dataclass
class Case:
    """One number of latents, opened."""

    num: int
    open_seconds: float
    open_mib: float
    step: Callable[[], float]
    """takes a training step; seconds of it that went into the batch"""
    seconds: list[float] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)


def make_cache(folder: Path, *, num: int, channels: int, size: int) -> None:
    """A `latents/` of zeros with unit stds, plain and mirrored."""
    folder.mkdir()
    for name in ("mean", "std"):
        open_memmap(folder / f"{name}.npy", mode="w+", dtype=np.float32, shape=(num, 2, channels, size, size))
    statistics_ = {"mean": [0.0] * channels, "std": [1.0] * channels, "num_pictures": num}
    (folder / "statistics.json").write_text(json.dumps(statistics_))
    (folder / "pictures.json").write_text(json.dumps([f"pictures/{i:07d}.png" for i in range(num)]))


def open_case(folder: Path, *, num: int, batch_size: int) -> Case:
    """Opens the cache up to its first batch, and makes the step that trains on it."""
    memory, began = anonymous_mib(), time.perf_counter()
    latents = LatentSet(folder, Latents(), seed=0)
    order = SampleOrder(0, num)
    noise = torch.randn(batch_size, *latents.shape)
    latents.batch(order.batch(0, batch_size), np.zeros(batch_size, dtype=bool), noise)
    opened, used = time.perf_counter() - began, anonymous_mib() - memory
    torch.manual_seed(0)
    network = UNet(in_channels=latents.shape[0], channels=CHANNELS, num_res_blocks=1, attention_levels=(2,))
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    taken = 0

    def step() -> float:
        nonlocal taken
        began = time.perf_counter()
        x0 = latents.batch(order.batch(taken, batch_size), np.arange(batch_size) % 2 == 0, noise)
        waited = time.perf_counter() - began
        taken += 1
        loss = (network(x0 + noise, torch.full((batch_size,), 500.0)) - noise).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return waited

    return Case(num, opened, used, step)


def anonymous_mib() -> float:
    """Memory of this process that no file backs; mapped files are the system's cache, which it drops at need."""
    (line,) = (row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith("RssAnon"))
    return int(line.split()[1]) / 1024


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nums", type=int, nargs="+", default=[1_000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--steps", type=int, default=40, help="timed steps of each")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--size", type=int, default=8, help="height and width of the latents")
    parser.add_argument("--channels", type=int, default=4)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        cases = []
        for num in chosen.nums:
            make_cache(Path(folder) / str(num), num=num, channels=chosen.channels, size=chosen.size)
            cases.append(open_case(Path(folder) / str(num), num=num, batch_size=chosen.batch_size))
        for number in range(chosen.steps + 3):
            for case in cases[:: 1 if number % 2 else -1]:
                began = time.perf_counter()
                waited = case.step()
                if number >= 3:  # those before warm up
                    case.seconds.append(time.perf_counter() - began)
                    case.waits.append(waited / case.seconds[-1])
    print("  latents   open s   MiB opened   step ms   of it waiting   step against the first")
    first = statistics.median(cases[0].seconds)
    for case in cases:
        step = statistics.median(case.seconds)
        print(
            f"{case.num:>9}  {case.open_seconds:7.3f}  {case.open_mib:11.1f}  {1000 * step:8.2f}"
            f"  {statistics.median(case.waits):14.2%}  {step / first:23.3f}"
        )


if __name__ == "__main__":
    main()
