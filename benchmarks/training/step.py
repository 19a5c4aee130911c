"""A training step of the seed's networks: ldmkit's, the seed's loop, and diffusers' U-Net under ldmkit's trainer.

python -m benchmarks.training.step text [--batch 8] [--rounds 7] [--steps 6] [--precision fp32] [--device cpu]
python -m benchmarks.training.step vae --batch 2 --rounds 4 --steps 1 [--size 128] [--phases after]

ldmkit and diffusers run the stage itself, its loop, logging, clipping and averages of the weights included.
text: the text U-Net, on latents and text states that the stage `encode` wrote. On CUDA the seed's loop is fp16 and
compiled, as published, and the precision of the others ldmkit's own choice; on a CPU all are fp32.
vae: LPIPS and the discriminator included, before the GAN starts and after. Both sides read the same JPEGs of 512x512
pixels. LPIPS's VGG has random weights, which cost the same and need no download. 256 pixels, as the seed trains, take
four times as long as 128.
"""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from benchmarks.command import run
from benchmarks.training.stage import device_and_precision, text_steps, vae_steps
from benchmarks.turns import Contender, Turn, print_ratio, print_timings, take_turns

PRELOAD = (
    "ldmkit.pipeline",
    "ldmkit.denoising.train_t2i",
    "ldmkit.vae.train",
    "torch.utils.tensorboard.writer",
    "benchmarks.training.inputs",
    "benchmarks.original.networks",
    "diffusers.models.unets.unet_2d_condition",
    "lpips",
)
"""imported once for all contenders"""
SEED = "the seed's loop"


def seed_text_steps(turn: Turn, folder: Path, batch: int) -> None:
    """The seed's loop over the text U-Net."""
    from benchmarks.original.loop import LatentFiles, batches, text_unet_loop
    from benchmarks.original.networks import TextUNet

    loader = turn.waiting_for(batches(LatentFiles(folder / "seed"), batch))
    _endlessly(turn, text_unet_loop(TextUNet(), loader, device=device_and_precision()[0]))


def seed_vae_steps(turn: Turn, folder: Path, phase: str, size: int, batch: int, workers: int) -> None:
    """The seed's loop over the VAE."""
    from ldmkit_lpips import LPIPS

    from benchmarks.original.loop import PictureFiles, batches, vae_loop
    from benchmarks.original.networks import VAE, PatchGAN

    device, _ = device_and_precision()
    lpips = LPIPS(backbone_weights=str(folder / "vgg16.safetensors")).network.to(device)
    loader = turn.waiting_for(batches(PictureFiles(folder / "pictures", size), batch, workers))
    _endlessly(turn, vae_loop(VAE(), PatchGAN() if phase == "after" else None, lpips, loader, device=device))


def _endlessly(turn: Turn, losses: Iterator[float]) -> None:
    while True:
        turn()
        next(losses)


def main(
    network: Literal["text", "vae"],
    *,
    batch: int = 8,
    rounds: int = 7,
    steps: int = 6,
    pictures: int = 512,
    size: int = 128,
    workers: int = 1,
    phases: list[str] = ["before", "after"],  # noqa: B006 - read only
    precision: str = "auto",
    device: Literal["auto", "cpu"] = "auto",
) -> None:
    if device == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"
    from benchmarks.training.inputs import write_text_inputs, write_vae_inputs

    chosen, auto = device_and_precision()
    auto = auto if precision == "auto" else precision
    fair = auto if precision != "auto" or chosen.type == "cuda" else "fp32"
    contenders: dict[str, Contender] = {}
    pairs: list[tuple[str, str]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if network == "text":
            recipe = write_text_inputs(folder, pictures, batch)
            contenders[f"ldmkit in {fair}"] = (text_steps, (recipe, "ldmkit", fair))
            contenders[SEED] = (seed_text_steps, (folder, batch))
            contenders[f"diffusers in {fair}"] = (text_steps, (recipe, "diffusers", fair))
            pairs = [(f"ldmkit in {fair}", SEED), (f"ldmkit in {fair}", f"diffusers in {fair}")]
            if auto != fair:
                contenders[f"ldmkit in {auto}"] = (text_steps, (recipe, "auto", auto))
                pairs.append((f"ldmkit in {auto}", SEED))
        else:
            recipes = write_vae_inputs(folder, pictures, size, batch, workers)
            for phase in phases:
                pairs.append((f"ldmkit in {fair}, {phase} the GAN", f"{SEED}, {phase} the GAN"))
                contenders[pairs[-1][0]] = (vae_steps, (recipes[phase], fair))
                contenders[pairs[-1][1]] = (seed_vae_steps, (folder, phase, size, batch, workers))
        timings = take_turns(contenders, rounds=rounds, steps=steps, preload=PRELOAD)
        print_timings(timings, batch=batch)
    for pair in pairs:
        print_ratio(timings, *pair)


if __name__ == "__main__":
    run(main)
