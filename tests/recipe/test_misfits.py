"""What no key of a recipe can tell alone."""

import random
from pathlib import Path

import pytest
import torch

from ldmkit.errors import LdmkitError
from ldmkit.models.autoencoder import AutoencoderKL
from ldmkit.models.unet import UNet
from ldmkit.recipe import load_recipe
from ldmkit.recipe.sections import misfits


def test_what_fits_is_what_the_networks_can_be_built_from(full_recipe: Path) -> None:
    """The networks themselves decide, on random recipes: built and run on shapes alone, without numbers."""
    rng = random.Random(0)
    base = load_recipe(full_recipe)
    verdicts = []
    for _ in range(100):
        unet = {
            "channels": tuple(rng.choice([8, 12, 16]) for _ in range(rng.choice([2, 3]))),
            "attention_levels": tuple(rng.sample([1, 2, 3], rng.choice([0, 1]))),
            "norm_groups": rng.choice([4, 4, 8]),
            "time_dim": rng.choice([8, 8, 8, 7]),
            "num_res_blocks": 1,
        }
        vae = {
            "channels": tuple(rng.choice([8, 8, 12]) for _ in range(rng.choice([2, 3]))),
            "attention_levels": tuple(rng.sample([1, 2], rng.choice([0, 1]))),
            "norm_groups": rng.choice([4, 4, 8]),
            "patch_size": rng.choice([1, 2]),
            "num_res_blocks": 1,
        }
        heads = rng.choice([1, 2, 4, 8])
        recipe = base.model_copy(
            update={
                "data": base.data.model_copy(update={"size": rng.choice([16, 24, 32, 36])}),
                "vae": base.vae.model_copy(update=vae),
                "unet": base.unet.model_copy(update=unet),
                "t2i": base.t2i.model_copy(update={**unet, "num_heads": heads}),
            }
        )
        try:
            with torch.device("meta"):
                autoencoder = AutoencoderKL(**recipe.vae.network())
                z = autoencoder.encode(torch.zeros(2, 3, recipe.data.size, recipe.data.size)).mean
                UNet(recipe.vae.latent_channels, **recipe.unet.network())(z, torch.zeros(2))
                conditional = UNet(recipe.vae.latent_channels, context_dim=8, **recipe.t2i.network())
                conditional(z, torch.zeros(2), torch.zeros(2, 2, 8))
            builds = True
        except LdmkitError:
            builds = False
        assert (misfits(recipe) == []) == builds, (recipe.data.size, vae, unet, heads, misfits(recipe))
        verdicts.append(builds)
    assert 15 < sum(verdicts) < 85


def test_the_way_up_attends_at_the_width_of_the_level_above(full_recipe: Path) -> None:
    with pytest.raises(LdmkitError, match=r"\[t2i\] num_heads = 64 must divide .*, and 96 is one"):
        load_recipe(full_recipe, ["t2i.channels=[64, 64, 96, 128, 256]", "t2i.num_heads=64"])
    fits = load_recipe(full_recipe, ["t2i.channels=[64, 96, 64, 128, 256]", "t2i.num_heads=64"]).t2i.network()
    with torch.device("meta"):
        UNet(4, context_dim=8, **fits)
        with pytest.raises(LdmkitError, match="96"):
            UNet(4, context_dim=8, **{**fits, "channels": (64, 64, 96, 128, 256)})


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            ["vae.losses.l1.start_step=5", "vae.losses.lpips.start_epoch=1", "vae.losses.kl.weight=0"],
            "[vae.losses] needs a loss that counts",
        ),
        (["unet.use=dit", "unet.patch_size=3"], "[unet] patch_size = 3 must divide the latents, 32 wide"),
        (["t2i.use=dit", "t2i.num_heads=6"], "[t2i] width = 256 must be a multiple of num_heads = 6"),
        (["unet.use=dit", "unet.grad_accumulation=3"], "[unet] batch_size = 32 must be a multiple of grad_accumul"),
        (["unet.grad_accumulation=3"], "[unet] batch_size = 32 must be a multiple of grad_accumulation = 3"),
        (["diffusion.schedule=linear", "diffusion.beta_start=0.03"], "beta_start = 0.03 must not be above"),
        (["diffusion.schedule=cosine", "sampler.steps=1001"], "[sampler] steps = 1001 must not be above"),
    ],
)
def test_keys_that_do_not_fit(overrides: list[str], expected: str, full_recipe: Path) -> None:
    with pytest.raises(LdmkitError) as error:
        load_recipe(full_recipe, overrides)
    assert expected in str(error.value)
