"""A bundle against its run in torch: the same pictures, and how many more of them a second than the seed's sampler.

python -m benchmarks.drawing.against_torch RUN BUNDLE_DIR [--num 100] [--steps 20] [--least 45]
python -m benchmarks.drawing.against_torch RUN BUNDLE_DIR --ddpm 1000 [--num 8] [--batch 4] [--steps N]
    [--reference DIR --kid-script SCRIPT --out DIR]

The first prints the PSNR between the two for many seeds: the same noise, sampler, steps and guidance on both sides;
half of the seeds draw a caption of toy-cats, half draw without one. Exit code 1 where a seed's is below --least.

The second draws the same captions from the same seeds, batch after batch in turns: the bundle in its own few steps,
torch in inference mode by so many steps of DDPM without guidance, as the seed does, text encoder and decoder included.
With --reference and --kid-script (see `benchmarks.quality.ablation`) all pictures are kept in DIR for KID.
"""

import statistics
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchmetrics.functional.image import peak_signal_noise_ratio

from benchmarks.command import run
from benchmarks.quality.results import check_kid, kid
from benchmarks.quality.toy_prompts import prompts
from benchmarks.turns import Timing, in_turns, print_ratio, print_timings
from ldmkit.cli.export import torch_backend
from ldmkit.runtime.backend import Backend
from ldmkit.runtime.bundle import Bundle
from ldmkit.runtime.generate import draw
from ldmkit.runtime.request import DrawRequest, PictureRequest
from ldmkit.runtime.settings import resolve

Pictures = list[Image.Image]


def drawn(backend: Backend, texts: Sequence[str], *, seed: int = 0, batch: int, **settings: Any) -> Pictures:
    """A picture of each text by `backend`, picture k from seed + k."""
    wanted = [PictureRequest(text, seed + k) for k, text in enumerate(texts)]
    return draw(backend, resolve(backend, DrawRequest(wanted, **settings)), batch_size=batch)


def main(
    run_dir: Path,
    bundle_dir: Path,
    *,
    num: int = 100,
    steps: int | None = None,
    least: float = 45.0,
    ddpm: int | None = None,
    batch: int = 4,
    reference: Path | None = None,
    kid_script: Path | None = None,
    out: Path = Path("outputs"),
) -> None:
    check_kid(reference, kid_script)
    texts = [prompt.text for prompt in prompts(num, 1)]
    bundle, torch_run = Bundle.load(bundle_dir), torch_backend(run_dir)
    if ddpm is None:
        mixed = [text if seed % 2 else "" for seed, text in enumerate(texts)]
        both = [drawn(backend, mixed, batch=10, steps=steps or 20) for backend in (torch_run, bundle)]
        tensors = [[torch.from_numpy(np.array(picture)).float() for picture in pictures] for pictures in both]
        found = [float(peak_signal_noise_ratio(*pair, data_range=255.0)) for pair in zip(*tensors, strict=True)]
        passed = sum(each >= least for each in found)
        print(f"{passed} of {num} seeds at {least:g} dB or more: worst {min(found):.1f} dB, median ", end="")
        print(f"{statistics.median(found):.1f} dB ({torch_run.provider} against {bundle.provider})")
        sys.exit(passed < num)

    pictures: dict[str, Pictures] = {"bundle": [], "ddpm in torch": []}
    draws = {
        "bundle": partial(drawn, bundle, batch=batch, steps=steps),
        "ddpm in torch": partial(drawn, torch_run, batch=batch, steps=ddpm, sampler="ddpm", guidance_scale=1.0),
    }
    draws["bundle"](texts[:1])  # opens its graphs

    def next_batch(name: str) -> tuple[float, float]:
        first, began = len(pictures[name]), time.perf_counter()
        pictures[name] += draws[name](texts[first : first + batch], seed=first)
        return time.perf_counter() - began, 0.0

    sides = {name: partial(next_batch, name) for name in draws}
    timings = {name: Timing(found) for name, found in in_turns(sides, num // batch, warm=0).items()}
    print_timings(timings, batch=batch)
    print_ratio(timings, "bundle", "ddpm in torch")
    for name in pictures if kid_script and reference else ():
        folder = out / name.replace(" ", "-")
        folder.mkdir(parents=True, exist_ok=True)
        for number, picture in enumerate(pictures[name]):
            picture.save(folder / f"{number:05d}.png")
        found = kid(kid_script, reference, folder)
        print(f"{name}: KID x 1000: {found['kid_x1000']:.2f} ± {found['kid_std']:.2f}")


if __name__ == "__main__":
    run(main)
