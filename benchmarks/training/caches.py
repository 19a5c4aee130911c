"""Writing and reading caches of latents: `encode` against the seed's way, and whether cost grows with their number.

python -m benchmarks.training.caches encode [--num 128] [--size 64] [--rounds 3]
python -m benchmarks.training.caches scale [--nums 1000 --nums 1000000] [--steps 40]

encode: the loop of the notebooks this project came from opens, squashes and encodes one picture at a time, takes one
draw and saves it to a file of its own. Ours is the stage as it is run, the network's loading, the statistics and the
files on disk included. Both take turns on the same pictures and weights.
scale: opening so many latents, memory, and a training step, in turns. The caches are made for the purpose: their files
are sparse, so that a million latents take next to no disk.
"""

import json
import shutil
import tempfile
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.lib.format import open_memmap

from benchmarks.command import run
from benchmarks.original.loop import PictureFiles
from benchmarks.training.stage import device_and_precision, pipeline_of, workspace_of
from benchmarks.turns import Timing, in_turns, print_ratio, print_timings
from ldmkit.caches.encode import encode_latents
from ldmkit.caches.sets import LatentSet
from ldmkit.data.toy_cats import make_toy_cats
from ldmkit.models.autoencoder import AutoencoderKL
from ldmkit.models.convert import SEED_VAE
from ldmkit.models.unet import UNet
from ldmkit.recipe import find_recipe
from ldmkit.recipe.sections import Latents
from ldmkit.run.checkpoint import save_weights
from ldmkit.run.randomness import SampleOrder

BATCH = 16


def encode(folder: Path, num: int, size: int, rounds: int) -> dict[str, Timing]:
    """Times both ways of encoding the same pictures by the seed's VAE of random weights."""
    torch.manual_seed(0)
    device, _ = device_and_precision()
    autoencoder = AutoencoderKL(**SEED_VAE).eval()
    make_toy_cats(folder / "pictures", num_pictures=num, size=size)
    # The toy recipe with the seed's autoencoder; one copy of each picture, as theirs makes.
    network = (f"vae.{key}={list(value) if isinstance(value, tuple) else value}" for key, value in SEED_VAE.items())
    data = (f"data.path='{folder / 'pictures'}'", f"data.size={size}", "data.num_workers=0", "data.flip=false")
    fixed = ("data.held_out=0", "data.crop='squash'", "vae.patch_size=1")
    pipeline = pipeline_of(find_recipe("toy-cats"), *network, *data, *fixed, runs_dir=folder)
    (pipeline.run_dir / "vae").mkdir(parents=True)
    save_weights(pipeline.run_dir / "vae" / "model.safetensors", autoencoder.state_dict())
    autoencoder.to(device)

    def ours() -> tuple[float, float]:
        workspace = workspace_of(pipeline, "latents", "latents")
        began = time.perf_counter()
        facts = encode_latents(workspace)
        took = time.perf_counter() - began
        shutil.rmtree(workspace.folder("latents"))
        return took, took * facts["loader_wait"]

    @torch.no_grad()
    def theirs() -> tuple[float, float]:
        (folder / "theirs").mkdir(exist_ok=True)
        files, began = PictureFiles(folder / "pictures", size), time.perf_counter()
        for number in range(len(files)):
            posterior = autoencoder.encode(files[number][None].to(device))
            z = posterior.sample(torch.randn_like(posterior.mean))
            torch.save(z.cpu(), folder / "theirs" / f"latent_{number}.pt")
        return time.perf_counter() - began, 0.0

    found = in_turns({"ldmkit encode": ours, "one by one": theirs}, rounds)
    return {side: Timing(results) for side, results in found.items()}


def make_cache(folder: Path, num: int) -> None:
    """A `latents/` of zeros (N, 2, 4, 8, 8) with unit stds, plain and mirrored."""
    folder.mkdir()
    for name in ("mean", "std"):
        open_memmap(folder / f"{name}.npy", mode="w+", dtype=np.float32, shape=(num, 2, 4, 8, 8))
    statistics = {"mean": [0.0] * 4, "std": [1.0] * 4, "num_pictures": num}
    (folder / "statistics.json").write_text(json.dumps(statistics))
    (folder / "pictures.json").write_text(json.dumps([f"pictures/{i:07d}.png" for i in range(num)]))


def anonymous_mib() -> float:
    """Memory of this process that no file backs; mapped files are the system's cache, which it drops at need."""
    (line,) = (row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith("RssAnon"))
    return int(line.split()[1]) / 1024


def stepper(folder: Path, num: int, batch: int = BATCH) -> Callable[[], tuple[float, float]]:
    """Opens the cache up to its first batch, and prints what it took; a training step, which returns both its times."""
    memory, began = anonymous_mib(), time.perf_counter()
    latents = LatentSet(folder, Latents(), seed=0)
    order, noise = SampleOrder(0, num), torch.randn(batch, *latents.shape)
    latents.batch(order.batch(0, batch), np.zeros(batch, dtype=bool), noise)
    print(f"{num} latents: opened in {time.perf_counter() - began:.3f} s and {anonymous_mib() - memory:.1f} MiB")
    torch.manual_seed(0)
    network = UNet(in_channels=latents.shape[0], channels=(32, 32, 64), num_res_blocks=1, attention_levels=(2,))
    optimizer, steps = torch.optim.AdamW(network.parameters(), fused=True), count()

    def step() -> tuple[float, float]:
        began = time.perf_counter()
        x0 = latents.batch(order.batch(next(steps), batch), np.arange(batch) % 2 == 0, noise)
        waited = time.perf_counter() - began
        loss = (network(x0 + noise, torch.full((batch,), 500.0)) - noise).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return time.perf_counter() - began, waited

    return step


def main(
    what: Literal["encode", "scale"],
    *,
    num: int = 128,
    size: int = 64,
    rounds: int = 3,
    nums: list[int] = [1_000, 10_000, 100_000, 1_000_000],  # noqa: B006 - read only
    steps: int = 40,
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if what == "encode":
            timings = encode(folder, num, size, rounds)
        else:
            sides = {}
            for each in nums:
                make_cache(folder / str(each), each)
                sides[f"a step of {each}"] = stepper(folder / str(each), each)
            timings = {side: Timing(found) for side, found in in_turns(sides, steps, warm=3).items()}
    print_timings(timings, batch=num if what == "encode" else BATCH)
    first, *others = timings
    for other in others:
        print_ratio(timings, first, other)


if __name__ == "__main__":
    run(main)
