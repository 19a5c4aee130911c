"""`cats-seed` is the original system, number by number."""

from pathlib import Path
from typing import Any

import pytest
import torch

from ldmkit.components.registry import Registry
from ldmkit.diffusion.process import make_schedule
from ldmkit.models.build import build_text_to_image, build_unet
from ldmkit.models.discriminator import PatchDiscriminator
from ldmkit.models.pretrained import build
from ldmkit.recipe import Recipe, load_recipe

RECIPES = Path(__file__).parents[2] / "recipes"

# What the published notebooks' description says -> the recipe's keys and the values that say the same.
SAID: dict[str, dict[str, Any]] = {
    "All norms are GroupNorm(32)": {"vae.norm_groups": 32, "unet.norm_groups": 32, "t2i.norm_groups": 32},
    "SiLU, dropout 0, conv": {"vae.dropout": 0.0, "unet.dropout": 0.0, "t2i.dropout": 0.0},
    "f=8, 4 latent channels, 256x256 -> 4x32x32": {
        "vae.latent_channels": 4,
        "data.size": 256,
        "vae.patch_size": 1,
    },
    "conv 3->64; down blocks 64->128, 128->256,\n  256->512": {"vae.channels": (64, 128, 256, 512)},
    "two residual blocks each, attention in the third only": {"vae.num_res_blocks": 2, "vae.attention_levels": (3,)},
    "convs 3->64->128->256->512 stride 2": {"gan.channels": (64, 128, 256, 512), "gan.norm_groups": 32},
    "conv 4->64; down 64->64, 64->128, 128->128 (attention), 128->256 (attention)": {
        "unet.channels": (64, 64, 128, 128, 256),
        "t2i.channels": (64, 64, 128, 128, 256),
        "unet.attention_levels": (3, 4),
        "t2i.attention_levels": (3, 4),
    },
    "each two\n  residual blocks": {"unet.num_res_blocks": 2, "t2i.num_res_blocks": 2},
    "then Linear, SiLU, Linear at 256": {"unet.time_dim": 256, "t2i.time_dim": 256},
    "8-head cross-attention over 77x768 states": {"t2i.num_heads": 8, "t2i.mask_padding": False},
    "squashed to 256x256, no flips": {"data.crop": "squash", "data.flip": False},
    "cached latents, one fixed draw each": {"latents.draw": "once"},
    "CLIP ViT-L/14 last hidden state": {
        "text.use": "clip",
        "text.model": "openai/clip-vit-large-patch14",
        "text.layer": "last",
    },
    "| batch, epochs | 16, 200 | 32, 500 | 64, 800 |": {
        "vae.batch_size": 16,
        "vae.epochs": 200,
        "unet.batch_size": 32,
        "unet.epochs": 500,
        "t2i.batch_size": 64,
        "t2i.epochs": 800,
    },
    "Adam 2e-4; discriminator Adam 1e-4 | AdamW 1e-4 | AdamW 1e-4, fp16 autocast, compiled": {
        "vae.optimizer": "adam",
        "vae.learning_rate": 2e-4,
        "vae.weight_decay": 0.0,
        "vae.betas": (0.9, 0.999),
        "vae.discriminator_learning_rate": 1e-4,
        "unet.optimizer": "adamw",
        "unet.learning_rate": 1e-4,
        "unet.weight_decay": 0.01,  # torch's default, here and below
        "unet.betas": (0.9, 0.999),
        "unet.precision": "fp32",
        "unet.compile": "off",
        "t2i.optimizer": "adamw",
        "t2i.learning_rate": 1e-4,
        "t2i.weight_decay": 0.01,
        "t2i.betas": (0.9, 0.999),
        "t2i.precision": "fp16",
        "t2i.compile": "on",
        "vae.precision": "fp32",
        **{f"{stage}.lr_schedule": "constant" for stage in ("vae", "unet", "t2i")},
        **{f"{stage}.warmup_steps": 0 for stage in ("vae", "unet", "t2i")},
        **{f"{stage}.grad_accumulation": 1 for stage in ("vae", "unet", "t2i")},
    },
    "mean L1 + 1.0 LPIPS (vgg) + 1e-6 KL (summed over C, H, W; mean over batch)": {
        "vae.losses.l1.weight": 1.0,
        "vae.losses.lpips.weight": 1.0,
        "lpips.backbone": "vgg",
        "vae.losses.kl.weight": 1e-6,
        "kl.reduction": "sum",
    },
    "adaptive BCE GAN from epoch 10, weight clamped to [0, 1]": {
        "gan.form": "seed",
        "vae.losses.gan.weight": 1.0,
        "vae.losses.gan.start_epoch": 10,
        "vae.losses.gan.start_step": 0,
        "vae.max_adaptive_weight": 1.0,
    },
    "mse on eps": {"diffusion.prediction": "eps", "diffusion.weighting": "none", "diffusion.timesteps": "uniform"},
    "linear betas 1e-4 to 0.02, T = 1000": {
        "diffusion.schedule": "linear",
        "diffusion.beta_start": 1e-4,
        "diffusion.beta_end": 0.02,
        "diffusion.num_timesteps": 1000,
        "diffusion.zero_terminal_snr": False,
    },
    "1000 DDPM steps, variance beta_t | same, no guidance": {
        "sampler.use": "ddpm",
        "sampler.steps": 1000,
        "sampler_options.variance": "beta",
        "sampler.guidance_scale": 1.0,
    },
    "Florence-2-large, `<MORE_DETAILED_CAPTION>`, 3 beams, 1024 new tokens, one picture at a time": {
        "caption.use": "florence2",
        "florence2.model": "florence-community/Florence-2-large",
        "florence2.task": "<MORE_DETAILED_CAPTION>",
        "florence2.num_beams": 3,
        "florence2.max_new_tokens": 1024,
        "florence2.batch_size": 1,
        "florence2.strip_boilerplate": False,
    },
    "Data set repository `ziyang06315/cats_images_dataset`: `cat.zip`": {
        "data.source": "hub:ziyang06315/cats_images_dataset/cat.zip"
    },
    "Latents are neither scaled nor normalised": {"latents.normalize": False},
    "no EMA, no guidance dropout, no gradient clipping, no held-out loss": {
        **{f"{stage}.ema_decays": () for stage in ("vae", "unet", "t2i")},
        **{f"{stage}.grad_clip": 0.0 for stage in ("vae", "unet", "t2i")},
        "t2i.caption_dropout": 0.0,
        "data.held_out": 0.0,
    },
}


class Attributes(dict[str, Any]):
    """A component's options, read as attributes."""

    __getattr__ = dict.__getitem__


def options(recipe: Recipe, registry: Registry) -> dict[str, Any]:
    """Names that the keys of `SAID` may start with: the sections, and the checked options of the components."""
    losses = {name: Attributes(dict(loss)) for name, loss in recipe.vae.losses.items()}
    components = {
        name: Attributes(registry.check("loss", loss.table(), where=name)) for name, loss in recipe.vae.losses.items()
    }
    return {
        **dict(recipe),
        **components,
        "vae": Attributes({**dict(recipe.vae), "losses": Attributes(losses)}),
        "text": Attributes(
            {"use": recipe.text.use, **registry.check("text_encoder", recipe.text.table(), where="text")}
        ),
        "florence2": Attributes(registry.check("captioner", recipe.caption.table(), where="caption")),
        "sampler_options": Attributes(registry.check("sampler", recipe.sampler.table(), where="sampler")),
    }


@pytest.fixture(scope="module")
def seed() -> Recipe:
    return load_recipe(RECIPES / "cats-seed.toml")


def test_hyperparameters(seed: Recipe, registry: Registry) -> None:
    sections = options(seed, registry)
    for said, keys in SAID.items():
        for key, value in keys.items():
            section, *names = key.split(".")
            found = sections[section]
            for name in names:
                found = getattr(found, name)
            assert found == value, (key, said)
            assert isinstance(found, bool) == isinstance(value, bool), key


def test_the_loss_has_no_other_terms(seed: Recipe) -> None:
    assert {name: loss.use for name, loss in seed.vae.losses.items()} == {
        "l1": "l1",
        "lpips": "lpips",
        "kl": "kl",
        "gan": "patchgan",
    }


def test_length_of_training(seed: Recipe) -> None:
    """5,558 pictures in batches of 16, 32 and 64: a last, smaller batch counts as its share of a step."""
    for section, steps, batches in (
        (seed.vae, 200 * 5558 / 16, 348),
        (seed.unet, 500 * 5558 / 32, 174),
        (seed.t2i, 800 * 5558 / 64, 87),
    ):
        assert steps <= section.num_steps(5558) < steps + 1
        # An epoch of the original's loader is as many whole batches and one begun.
        assert -(-5558 // section.batch_size) == batches


class ClipSize:
    """CLIP ViT-L/14 as far as the U-Net's size depends on it."""

    context_dim = 768


def test_networks_have_the_originals_parameters(seed: Recipe, registry: Registry) -> None:
    gan = registry.check("loss", seed.vae.losses["gan"].table(), where="gan")
    clip: Any = ClipSize()
    with torch.device("meta"):
        networks: dict[str, Any] = {
            "vae": build(seed.vae.network()),
            "discriminator": PatchDiscriminator(channels=gan["channels"], norm_groups=gan["norm_groups"]),
            "unet": build_unet(seed, seed.vae.latent_channels),
            "t2i": build_text_to_image(seed, seed.vae.latent_channels, clip, None),
        }
        assert networks["vae"].encode(torch.zeros(1, 3, 256, 256)).mean.shape == (1, 4, 32, 32)
    counts = {key: sum(p.numel() for p in network.parameters()) for key, network in networks.items()}
    assert counts == {"vae": 41_275_339, "discriminator": 1_557_377, "unet": 11_401_284, "t2i": 14_586_052}


def test_noise_schedule(seed: Recipe) -> None:
    """torch draws the same line."""
    schedule = make_schedule(**seed.diffusion.schedule_options())
    torch.testing.assert_close(
        torch.tensor(schedule.alpha(torch.arange(1000).numpy())) ** 2,
        torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0),
        rtol=1e-12,
        atol=0,
    )
