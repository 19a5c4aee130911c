"""A training step of the seed's text U-Net: ldmkit's, the seed's loop, and diffusers' U-Net under ldmkit's trainer.

python benchmarks/train_step.py [--batch 8] [--rounds 7] [--steps 6] [--pictures 512] [--precision fp32] [--device cpu]

ldmkit and diffusers run the stage `train-t2i` itself, its loop, logging, clipping and two averages of the weights
included, on latents and text states that the stage `encode` wrote. On CUDA the seed's loop is fp16 and compiled, as
published, and the precision of the others ldmkit's own choice; on a CPU all are fp32.
"""

import argparse
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stage_steps import (
    PRELOAD,
    RECIPE,
    add_options,
    context_of,
    device,
    note_choices,
    pipeline_of,
    precisions,
    take_turns_with_steps,
    use_device,
)
from turns import Turn, apart, print_ratio, print_table, take_turns

if TYPE_CHECKING:
    import torch

# The autoencoder is there to give latents of 4x32x32; the text U-Net is the seed's, parameter for parameter.
TEMPLATE = """
plugins = ["random_text.py"]

[data]
path = "{pictures}"
size = 256
held_out = 0.0
num_workers = 0

[text]
use = "random-text"

[vae]
channels = [8, 8]
patch_size = 4
norm_groups = 8
steps = 1
batch_size = 2
precision = "fp32"

[unet]
steps = 1

[t2i]
channels = [64, 64, 128, 128, 256]
attention_levels = [3, 4]
mask_padding = false
steps = 1_000_000
batch_size = {batch}
ema_decays = [0.999, 0.9999]
"""


def write_inputs(folder: Path, num_pictures: int, batch: int) -> None:
    """Pictures and captions, the run of a recipe up to its latents and text states, and the seed's files of those."""
    import numpy as np
    import torch
    import torch.nn.functional as F  # noqa: N812 - the name that every torch user knows
    from PIL import Image
    from seed_loop import LatentFiles

    from ldmkit.caches.sets import LatentSet, TextSet

    rng = np.random.default_rng(0)
    pictures = folder / "pictures"
    pictures.mkdir()
    for i in range(num_pictures):
        patches = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(np.kron(patches, np.ones((4, 4, 1), np.uint8))).save(pictures / f"{i:06d}.png")
        # Detailed captions mostly fill CLIP's 77 tokens.
        words = rng.integers(0, 2000, rng.integers(60, 100))
        (pictures / f"{i:06d}.txt").write_text(" ".join(f"word{word}" for word in words))
    shutil.copy(Path(__file__).with_name("random_text.py"), folder)  # a recipe runs what lies beside it alone
    (folder / RECIPE).write_text(TEMPLATE.format(pictures=pictures, batch=batch))
    pipeline = pipeline_of(folder)
    pipeline.run(("caption", "train-vae", "encode"))
    latents = LatentSet(pipeline.run_dir / "latents", pipeline.recipe.latents, seed=0)
    texts = TextSet(pipeline.run_dir / "text")
    everything = np.arange(num_pictures)
    states, _ = texts.batch(texts.index, torch.device("cpu"))
    LatentFiles.write(
        folder / "seed",
        latents.batch(everything, np.zeros(num_pictures, dtype=bool), None),
        F.pad(states, (0, 0, 0, 77 - states.shape[1])),
    )
    note_choices(folder)


def ldmkit_steps(turn: Turn, folder: Path, own: str, precision: str, with_diffusers: bool = False) -> None:
    """The stage `train-t2i`; `turn` is called before each step."""
    from ldmkit.caches.sets import LatentSet, TextSet
    from ldmkit.denoising import train_t2i

    take_turns_with_steps(train_t2i.DenoisingTask, turn)
    sources: tuple[Any, ...] = (LatentSet, TextSet)
    for source in sources:
        source.batch = turn.waiting(source.batch)
    if with_diffusers:
        stage: Any = train_t2i
        stage.build_text_to_image = lambda *_: diffusers_unet()
    train_t2i.train_t2i(context_of(folder, "t2i", own, f"t2i.precision='{precision}'"))


def diffusers_unet() -> "torch.nn.Module":
    """diffusers' text U-Net of the seed's widths, levels and attention places, called as ldmkit's is.

    One layer a block, which with diffusers' additions makes 19.9 million parameters.
    """
    import torch
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    unet = UNet2DConditionModel(
        sample_size=32,
        in_channels=4,
        out_channels=4,
        block_out_channels=(64, 128, 128, 256),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        cross_attention_dim=768,
        attention_head_dim=8,
    )

    class Called(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unet = unet

        def forward(self, x_t: torch.Tensor, t: torch.Tensor, text: torch.Tensor, _mask: torch.Tensor) -> torch.Tensor:
            return self.unet(x_t, t, encoder_hidden_states=text, return_dict=False)[0]  # type: ignore[no-any-return] # a module's call is Any

    return Called()


def seed_steps(turn: Turn, folder: Path, batch: int, workers: int) -> None:
    """The seed's loop; `turn` is called before each step."""
    from seed_loop import LatentFiles, batches, text_unet_loop
    from seed_networks import TextUNet

    loader = turn.waiting_for(batches(LatentFiles(folder / "seed"), batch, workers))
    losses = text_unet_loop(TextUNet(), loader, device=device())
    while True:
        turn()
        next(losses)


def main() -> None:
    """Prints a table and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=6, help="steps of each contender in a round")
    parser.add_argument("--pictures", type=int, default=512)
    parser.add_argument("--seed-workers", type=int, default=0, help="processes of the seed's loader; torch's own: 0")
    add_options(parser)
    chosen = parser.parse_args()
    use_device(chosen.device)
    preload = (*PRELOAD, "diffusers.models.unets.unet_2d_condition")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        apart(write_inputs, folder, chosen.pictures, chosen.batch, preload=preload)
        precision, auto = precisions(folder, chosen.precision)
        contenders: dict[str, Any] = {
            f"ldmkit, {precision}": (ldmkit_steps, (folder, "ldmkit", precision)),
            "the seed's loop": (seed_steps, (folder, chosen.batch, chosen.seed_workers)),
            f"diffusers, {precision}": (ldmkit_steps, (folder, "diffusers", precision, True)),
        }
        if auto != precision:
            contenders[f"ldmkit, {auto}, its own choice"] = (ldmkit_steps, (folder, "auto", auto))
        timings = take_turns(contenders, rounds=chosen.rounds, steps=chosen.steps, preload=preload)
    print_table(timings, batch=chosen.batch)
    ours, seed, diffusers, *automatic = timings.values()
    print_ratio("ldmkit to the seed's loop", ours, seed)
    print_ratio("ldmkit to diffusers", ours, diffusers)
    for timing in automatic:
        print_ratio(f"ldmkit in {auto} to the seed's loop", timing, seed)


if __name__ == "__main__":
    main()
