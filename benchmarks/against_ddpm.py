"""Pictures a second at equal quality: a bundle's few steps against the seed's 1000-step DDPM in torch, on one run.

python benchmarks/against_ddpm.py RUN BUNDLE_DIR [--num 8] [--batch 4] [--steps N] [--sampler NAME] [--guidance G]
    [--ddpm-steps 1000] [--reference DIR --kid SCRIPT --out DIR]

Both draw the same captions from the same seeds, batch after batch in turns; torch in inference mode without guidance,
as the seed does, text encoder and decoder included. The ratio is the median over the batches. With --reference and
--kid (a program called as in ablation.py) all pictures are kept in DIR, and KID of either is printed with its error.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mistakes import told
from PIL import Image

from ldmkit.cli.export import torch_backend
from ldmkit.data.toy_cats import prompts
from ldmkit.runtime.backend import Backend
from ldmkit.runtime.bundle import Bundle
from ldmkit.runtime.generate import draw
from ldmkit.runtime.request import DrawRequest, PictureRequest
from ldmkit.runtime.settings import resolve


def drawer(backend: Backend, batch: int, **settings: Any) -> Callable[[Sequence[PictureRequest]], list[Image.Image]]:
    """Draws a batch by `backend`."""
    return lambda wanted: draw(backend, resolve(backend, DrawRequest(wanted, **settings)), batch_size=batch)


def in_turns(
    sides: dict[str, Callable[[Sequence[PictureRequest]], list[Image.Image]]],
    wanted: Sequence[PictureRequest],
    batch: int,
) -> tuple[dict[str, list[float]], dict[str, list[Image.Image]]]:
    """Seconds of every batch and the pictures of either side."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    pictures: dict[str, list[Image.Image]] = {name: [] for name in sides}
    for number, start in enumerate(range(0, len(wanted), batch)):
        for name in list(sides)[:: 1 if number % 2 else -1]:
            began = time.perf_counter()
            pictures[name] += sides[name](wanted[start : start + batch])
            seconds[name].append(time.perf_counter() - began)
    return seconds, pictures


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="runs/NAME")
    parser.add_argument("bundle", type=Path, help="folder of the bundle that was exported from it")
    parser.add_argument("--num", type=int, default=8, help="pictures of either side (8); hundreds for KID")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, help="the bundle's steps (its default)")
    parser.add_argument("--sampler", help="the bundle's sampler (its default)")
    parser.add_argument("--guidance", type=float, help="the bundle's guidance scale (its default)")
    parser.add_argument("--ddpm-steps", type=int, default=1000)
    parser.add_argument("--prompt", action="append", help="default: toy-cats' captions, a new one each")
    parser.add_argument("--reference", type=Path, help="folder of pictures that KID compares with")
    parser.add_argument("--kid", type=Path, metavar="SCRIPT", help="program that measures KID")
    parser.add_argument("--out", type=Path, default=Path("outputs"), help="where pictures for KID are kept (outputs)")
    chosen = parser.parse_args(argv)
    if (chosen.reference is None) != (chosen.kid is None):
        parser.error("--reference and --kid go together")
    if chosen.batch < 1 or chosen.num < chosen.batch:
        parser.error("--num must be at least --batch, and that at least 1")
    return chosen


@told
def main(argv: Sequence[str] | None = None) -> int:
    chosen = parse(argv)
    texts = chosen.prompt or [prompt.text for prompt in prompts(chosen.num, 1)]
    wanted = [PictureRequest(texts[seed % len(texts)], seed) for seed in range(chosen.num)]
    own = {"steps": chosen.steps, "sampler": chosen.sampler, "guidance_scale": chosen.guidance}
    sides = {
        "bundle": drawer(Bundle.load(chosen.bundle), chosen.batch, **own),
        "ddpm in torch": drawer(
            torch_backend(chosen.run), chosen.batch, steps=chosen.ddpm_steps, sampler="ddpm", guidance_scale=1.0
        ),
    }
    sides["bundle"](wanted[:1])  # opens its graphs
    seconds, pictures = in_turns(sides, wanted, chosen.batch)
    for name, times in seconds.items():
        print(f"{name:14} {chosen.batch / statistics.median(times):8.3f} pictures/s in batches of {chosen.batch}")
    ratios = [theirs / ours for ours, theirs in zip(seconds["bundle"], seconds["ddpm in torch"], strict=True)]
    print(f"the bundle draws {statistics.median(ratios):.0f} times as many ({min(ratios):.0f} to {max(ratios):.0f})")
    if chosen.kid is not None:
        from variants import kid

        for name, drawn in pictures.items():
            folder = chosen.out / name.replace(" ", "-")
            folder.mkdir(parents=True, exist_ok=True)
            for number, picture in enumerate(drawn):
                picture.save(folder / f"{number:05d}.png")
            found = kid(chosen.kid, chosen.reference, folder)
            print(f"{name:14} KID x 1000: {found['kid_x1000']:.2f} ± {found['kid_std']:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
