"""Pictures, recipes and weights for the benchmark of training steps."""

import shutil
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the name that every torch user knows
from PIL import Image
from safetensors.torch import save_file
from torchvision.models import vgg16

from benchmarks.original.loop import LatentFiles
from benchmarks.training.stage import pipeline_of
from ldmkit.caches.sets import LatentSet, TextSet

# The autoencoder is there to give latents of 4x32x32; the text U-Net is the seed's, parameter for parameter.
TEXT = """
plugins = ["random_text.py"]
data = {{ path = "{folder}/pictures", size = 256, held_out = 0.0, num_workers = 0 }}
text = {{ use = "random-text" }}
vae = {{ channels = [8, 8], patch_size = 4, norm_groups = 8, steps = 1, batch_size = 2, precision = "fp32" }}
unet = {{ steps = 1 }}

[t2i]
channels = [64, 64, 128, 128, 256]
attention_levels = [3, 4]
mask_padding = false
steps = 1_000_000
batch_size = {batch}
ema_decays = [0.999, 0.9999]
"""
VAE = """
unet = {{ steps = 1 }}
t2i = {{ steps = 1 }}

[data]
path = "{folder}/pictures"
size = {size}
crop = "squash"
held_out = 0.0
num_workers = {workers}
cache_gb = 0.0  # the seed decodes at each draw

[vae]
channels = [64, 128, 256, 512]
attention_levels = [3]
steps = 1_000_000
batch_size = {batch}
learning_rate = 2e-4
optimizer = "adam"

[vae.losses]
l1 = {{ use = "l1" }}
lpips = {{ use = "lpips", backbone = "vgg", backbone_weights = "{folder}/vgg16.safetensors" }}
kl = {{ use = "kl", weight = 1e-6 }}
{gan}
"""


def write_text_inputs(folder: Path, num_pictures: int, batch: int) -> Path:
    """Pictures and captions, the run of a recipe up to its latents and text states, and the seed's files of those.

    Returns the recipe's file.
    """
    rng = np.random.default_rng(0)
    (folder / "pictures").mkdir()
    for i in range(num_pictures):
        patches = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(np.kron(patches, np.ones((4, 4, 1), np.uint8))).save(folder / "pictures" / f"{i:06d}.png")
        # Detailed captions mostly fill CLIP's 77 tokens.
        words = rng.integers(0, 2000, rng.integers(60, 100))
        (folder / "pictures" / f"{i:06d}.txt").write_text(" ".join(f"word{word}" for word in words))
    shutil.copy(Path(__file__).with_name("random_text.py"), folder)  # a recipe runs what lies beside it alone
    recipe = folder / "text.toml"
    recipe.write_text(TEXT.format(folder=folder, batch=batch))
    pipeline = pipeline_of(recipe)
    pipeline.run(("caption", "train-vae", "encode"))
    latents = LatentSet(pipeline.run_dir / "latents", pipeline.recipe.latents, seed=0)
    texts = TextSet(pipeline.run_dir / "text")
    states, _ = texts.batch(texts.index, torch.device("cpu"))
    x0 = latents.batch(np.arange(num_pictures), np.zeros(num_pictures, dtype=bool), None)
    LatentFiles.write(folder / "seed", x0, F.pad(states, (0, 0, 0, 77 - states.shape[1])))
    return recipe


def write_vae_inputs(folder: Path, num_pictures: int, size: int, batch: int, workers: int) -> dict[str, Path]:
    """Pictures, and random weights of LPIPS's backbone; the recipe's file for either phase, `before` and `after`."""
    rng = np.random.default_rng(0)
    (folder / "pictures").mkdir()
    for i in range(num_pictures):
        patches = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(patches).resize((512, 512)).save(folder / "pictures" / f"{i:06d}.jpg", quality=90)
    with torch.device("meta"):
        shapes = {f"features.{key}": value.shape for key, value in vgg16().features.state_dict().items()}
    # He et al. 2015: what passes through keeps its scale.
    state = {
        key: torch.randn(shape) * (2 / shape[1:].numel()) ** 0.5 if len(shape) > 1 else torch.zeros(shape)
        for key, shape in shapes.items()
    }
    save_file(state, folder / "vgg16.safetensors")
    recipes = {}
    for phase, gan in (("before", ""), ("after", 'gan = { use = "patchgan" }')):
        recipes[phase] = folder / f"{phase}.toml"
        recipes[phase].write_text(VAE.format(folder=folder, size=size, batch=batch, workers=workers, gan=gan))
    return recipes
