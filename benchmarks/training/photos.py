"""A step of `train-vae` from photos of 12 megapixels against the same pictures prepared at 64x64.

python -m benchmarks.training.photos [--photos 8] [--rounds 5] [--steps 4] [--cache-gb 10]

After the first pass, in which photos are decoded and kept at the working size; `--cache-gb 0` decodes them anew at
each draw. Both sides train on equal pixels.
"""

import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.command import run
from benchmarks.training.stage import vae_steps
from benchmarks.turns import Contender, print_ratio, print_timings, take_turns
from ldmkit.data.decode import load_picture, prepare

RECIPE = """
data = {{ path = "{path}", size = 64, held_out = 0.0, num_workers = 0, cache_gb = {cache_gb} }}
vae = {{ channels = [16, 32], norm_groups = 8, steps = 1_000_000, batch_size = {batch}, precision = "fp32" }}
unet = {{ steps = 1 }}
t2i = {{ steps = 1 }}
"""
PRELOAD = ("ldmkit.pipeline", "ldmkit.vae.train", "torch.utils.tensorboard.writer")


def main(*, photos: int = 8, rounds: int = 5, steps: int = 4, batch: int = 8, cache_gb: float = 10.0) -> None:
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        contenders: dict[str, Contender] = {}
        for side in ("photos", "prepared"):
            folder = Path(name, side)
            (folder / "pictures").mkdir(parents=True)
            recipe = folder / "recipe.toml"
            recipe.write_text(RECIPE.format(path=folder / "pictures", batch=batch, cache_gb=cache_gb))
            contenders[side] = (vae_steps, (recipe, "fp32"))
        for i in range(photos):
            photo = Path(name, "photos", "pictures", f"{i:06d}.jpg")
            patches = rng.integers(0, 256, (300, 400, 3), dtype=np.uint8)
            Image.fromarray(patches).resize((4000, 3000), Image.Resampling.BICUBIC).save(photo, quality=90)
            small = prepare(load_picture(photo), (64, 64))
            Image.fromarray(small).save(Path(name, "prepared", "pictures", f"{i:06d}.png"))
        timings = take_turns(contenders, rounds=rounds, steps=steps, preload=PRELOAD)
    print_timings(timings, batch=batch)
    seconds = {side: [second for second, _ in timing.rounds] for side, timing in timings.items()}
    print(f"median time, photos to prepared: {np.median(np.divide(seconds['photos'], seconds['prepared'])):.2f}")
    print_ratio(timings, "photos", "prepared")


if __name__ == "__main__":
    run(main)
