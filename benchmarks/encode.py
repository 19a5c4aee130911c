"""`encode` against the loop of the notebooks this project came from, in turns on the same pictures and weights.

python benchmarks/encode.py [--num 128] [--size 64] [--rounds 3]

Theirs: one picture at a time is opened, squashed and encoded, one draw is taken and saved to a file of its own.
Ours: the stage as it is run, the network's loading, the statistics and the files on disk included.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ldmkit.caches.encode import encode_latents
from ldmkit.components.registry import Registry
from ldmkit.data.toy_cats import make_toy_cats
from ldmkit.models.autoencoder import AutoencoderKL
from ldmkit.models.convert import SEED_VAE
from ldmkit.pipeline import Pipeline
from ldmkit.recipe import Recipe, find_recipe, load_recipe
from ldmkit.report import Reporter
from ldmkit.run.checkpoint import save_weights
from ldmkit.run.workspace import Workspace


def seeds_way(autoencoder: AutoencoderKL, pictures: Path, out: Path, *, size: int, device: torch.device) -> float:
    """Seconds; the network is loaded already."""
    out.mkdir()
    began = time.perf_counter()
    with torch.no_grad():
        for number, path in enumerate(sorted(pictures.glob("*.png"))):
            picture = Image.open(path).convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
            pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 127.5 - 1
            posterior = autoencoder.encode(pixels[None].to(device))
            z = posterior.sample(torch.randn_like(posterior.mean))
            torch.save(z.cpu(), out / f"latent_{number}.pt")
    return time.perf_counter() - began


def recipe_for(pictures: Path, *, size: int, workers: int) -> Recipe:
    """The toy recipe with the seed's autoencoder; one copy of each picture, as theirs makes."""
    network = (f"vae.{key}={list(value) if isinstance(value, tuple) else value}" for key, value in SEED_VAE.items())
    data = (f"data.path='{pictures}'", f"data.size={size}", f"data.num_workers={workers}")
    fixed = ("data.flip=false", "data.held_out=0", "data.crop='squash'", "vae.patch_size=1")
    return load_recipe(find_recipe("toy-cats"), [*network, *data, *fixed])


def ours(pipeline: Pipeline) -> tuple[float, float]:
    """(seconds, share of them spent waiting for pictures) of the stage from nothing."""
    parts = pipeline.parts()
    parts["latents"].begin()
    workspace = Workspace(
        pipeline.recipe, pipeline.registry, pipeline.index, pipeline.run_dir, parts, pipeline.reporter
    )
    began = time.perf_counter()
    facts = encode_latents(workspace)
    seconds = time.perf_counter() - began
    parts["latents"].set_aside()
    return seconds, facts["loader_wait"]


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num", type=int, default=128, help="pictures")
    parser.add_argument("--size", type=int, default=64, help="pixels; 256 is theirs")
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds, after one that warms up")
    parser.add_argument("--workers", type=int, default=0, help="data.num_workers of ours")
    chosen = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    autoencoder = AutoencoderKL(**SEED_VAE).eval()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_toy_cats(folder / "pictures", num_pictures=chosen.num, size=chosen.size)
        recipe = recipe_for(folder / "pictures", size=chosen.size, workers=chosen.workers)
        pipeline = Pipeline(recipe, registry=Registry.load(), reporter=Reporter(quiet=True), runs_dir=folder)
        (pipeline.run_dir / "vae").mkdir(parents=True)
        save_weights(pipeline.run_dir / "vae" / "model.safetensors", autoencoder.state_dict())
        autoencoder.to(device)
        rounds = []
        for number in range(chosen.rounds + 1):
            theirs = seeds_way(
                autoencoder, folder / "pictures", folder / f"theirs-{number}", size=chosen.size, device=device
            )
            rounds.append((theirs, *ours(pipeline)))
    timed = rounds[1:]
    print(f"{chosen.num} pictures of {chosen.size}x{chosen.size} on {device.type}, median of {chosen.rounds} rounds")
    for label, column in (("one by one", 0), ("ldmkit encode", 1)):
        seconds = statistics.median(row[column] for row in timed)
        print(f"  {label:<14} {seconds:8.2f} s  {chosen.num / seconds:8.1f} pictures/s")
    ratios = [row[0] / row[1] for row in timed]
    print(f"  ratio {statistics.median(ratios):.2f} (rounds: {min(ratios):.2f} to {max(ratios):.2f})")
    print(f"  loader wait {statistics.median(row[2] for row in timed):.1%}")


if __name__ == "__main__":
    main()
