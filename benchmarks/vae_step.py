"""A training step of the seed's VAE, LPIPS and the discriminator included: ldmkit's and the seed's loop.

python benchmarks/vae_step.py [--batch 2] [--size 128] [--rounds 4] [--steps 1] [--workers 1] [--phase both]

Before the GAN starts and after. ldmkit runs the stage `train-vae` itself, its loop, logging, clipping and average of
the weights included. Both read the same JPEGs of 512x512 pixels. LPIPS's VGG has random weights, which cost the same
and need no download. 256 pixels, as the seed trains, take four times as long. fp32; on CUDA ldmkit's own choice.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from stage_steps import (
    PRELOAD,
    RECIPE,
    add_options,
    context_of,
    device,
    note_choices,
    precisions,
    take_turns_with_steps,
    use_device,
)
from turns import Turn, apart, print_ratio, print_table, take_turns

TEMPLATE = """
[data]
path = "{pictures}"
size = {size}
crop = "squash"
held_out = 0.0
num_workers = {workers}

[vae]
channels = [64, 128, 256, 512]
attention_levels = [3]
steps = 1_000_000
batch_size = {batch}
learning_rate = 2e-4
optimizer = "adam"

[vae.losses.l1]
use = "l1"

[vae.losses.lpips]
use = "lpips"
backbone = "vgg"
backbone_weights = "{backbone}"

[vae.losses.kl]
use = "kl"
weight = 1e-6

{gan}

[unet]
steps = 1

[t2i]
steps = 1
"""
GAN = """
[vae.losses.gan]
use = "patchgan"
"""


def write_inputs(folder: Path, num_pictures: int, size: int, batch: int, workers: int) -> None:
    """Pictures, random weights of LPIPS's backbone, and a recipe for each phase."""
    import numpy as np
    import torch
    from PIL import Image
    from safetensors.torch import save_file
    from torchvision.models import vgg16

    rng = np.random.default_rng(0)
    pictures = folder / "pictures"
    pictures.mkdir()
    for i in range(num_pictures):
        patches = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(patches).resize((512, 512)).save(pictures / f"{i:06d}.jpg", quality=90)
    backbone = folder / "vgg16.safetensors"
    with torch.device("meta"):
        shapes = {f"features.{key}": value.shape for key, value in vgg16().features.state_dict().items()}
    # He et al. 2015: what passes through keeps its scale.
    state = {
        key: torch.randn(shape) * (2 / shape[1:].numel()) ** 0.5 if len(shape) > 1 else torch.zeros(shape)
        for key, shape in shapes.items()
    }
    save_file(state, backbone)
    for phase, gan in (("before", ""), ("after", GAN)):
        (folder / phase).mkdir()
        recipe = TEMPLATE.format(pictures=pictures, size=size, batch=batch, workers=workers, backbone=backbone, gan=gan)
        (folder / phase / RECIPE).write_text(recipe)
    note_choices(folder)


def ldmkit_steps(turn: Turn, folder: Path, phase: str, precision: str) -> None:
    """The stage `train-vae`; `turn` is called before each step."""
    from ldmkit.vae import train as train_vae

    take_turns_with_steps(train_vae.VaeTask, turn)
    stage: Any = train_vae
    batches = stage.picture_batches
    stage.picture_batches = lambda *args, **kwargs: iter(turn.waiting_for(batches(*args, **kwargs)))
    train_vae.train_vae(context_of(folder / phase, "vae", "vae", f"vae.precision='{precision}'"))


def seed_steps(turn: Turn, folder: Path, phase: str, size: int, batch: int, workers: int) -> None:
    """The seed's loop; `turn` is called before each step."""
    from ldmkit_lpips import LPIPS
    from seed_loop import PictureFiles, batches, vae_loop
    from seed_networks import VAE, PatchGAN

    vae = VAE()
    losses = vae_loop(
        vae,
        PatchGAN(),
        LPIPS(backbone_weights=str(folder / "vgg16.safetensors")).network.to(device()),
        turn.waiting_for(batches(PictureFiles(folder / "pictures", size), batch, workers)),
        last_layer=vae.last_layer,
        adversarial=phase == "after",
        device=device(),
    )
    while True:
        turn()
        next(losses)


def main() -> None:
    """Prints a table and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--size", type=int, default=128, help="pixels; the seed: 256")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=1, help="steps of each contender in a round")
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--workers", type=int, default=1, help="processes that decode pictures, of both")
    parser.add_argument("--phase", choices=("before", "after", "both"), default="both", help="of the GAN's start")
    add_options(parser)
    chosen = parser.parse_args()
    use_device(chosen.device)
    preload = (*PRELOAD, "lpips", "torchvision.models")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sizes = chosen.size, chosen.batch, chosen.workers
        apart(write_inputs, folder, chosen.pictures, *sizes, preload=preload)
        precision, _ = precisions(folder, chosen.precision)
        phases = ("before", "after") if chosen.phase == "both" else (chosen.phase,)
        contenders: dict[str, Any] = {}
        for phase in phases:
            contenders[f"ldmkit, {precision}, {phase} the GAN"] = (ldmkit_steps, (folder, phase, precision))
            contenders[f"the seed's loop, {phase} the GAN"] = (seed_steps, (folder, phase, *sizes))
        timings = take_turns(contenders, rounds=chosen.rounds, steps=chosen.steps, preload=preload)
    print_table(timings, batch=chosen.batch)
    pairs = iter(timings.values())
    for phase, ours, seed in zip(phases, pairs, pairs, strict=True):
        print_ratio(f"ldmkit to the seed's loop, {phase} the GAN", ours, seed)


if __name__ == "__main__":
    main()
