"""The recipe toy-cats with networks of less than 100,000 parameters on 16x16 pictures, and an adversarial loss on top.

For benchmarks that run it hundreds of times.
"""

from pathlib import Path

from ldmkit.recipe import Recipe, load_recipe

TINY = (
    "data.size=16",
    "text.width=8",
    "text.heads=2",
    "text.layers=1",
    "text.max_tokens=16",
    "text.vocab_size=300",
    "vae.patch_size=1",
    "vae.channels=[4,8]",
    "vae.latent_channels=2",
    "vae.norm_groups=4",
    "vae.dropout=0.1",
    "vae.losses.gan.use='patchgan'",
    "vae.losses.gan.channels=[4,8]",
    "vae.losses.gan.norm_groups=4",
    "vae.losses.gan.start_step=4",
    "unet.channels=[8,8]",
    "unet.attention_levels=[1]",
    "unet.norm_groups=4",
    "unet.time_dim=8",
    "unet.dropout=0.1",
    "unet.precision='bf16'",
    "unet.grad_accumulation=2",
    "t2i.channels=[8,8]",
    "t2i.norm_groups=4",
    "t2i.time_dim=8",
    "t2i.num_heads=2",
    "t2i.dropout=0.1",
    "t2i.caption_dropout=0.5",
    *(f"{stage}.{key}" for stage in ("vae", "unet", "t2i") for key in ("batch_size=8", "warmup_steps=2")),
)


def tiny_recipe(*overrides: str) -> Recipe:
    return load_recipe(Path(__file__).parents[1] / "recipes" / "toy-cats.toml", [*TINY, *overrides])
