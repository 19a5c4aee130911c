"""A trained model as all that draws with it sees it: its networks, and what a bundle's manifest says of them."""

from dataclasses import dataclass

from ldmkit.recipe import Recipe
from ldmkit.run.networks import RunNetworks
from ldmkit.runtime.backend import Description
from ldmkit.runtime.manifest import Defaults, Latent, LatentRgb, Schedule


@dataclass(frozen=True, kw_only=True)
class Model(Description):
    """What drawing needs to know, with the networks in torch."""

    networks: RunNetworks


def model_of(recipe: Recipe, networks: RunNetworks, *, rgb: LatentRgb | None = None) -> Model:
    """The model of a recipe's run; `rgb`: the map of its latents to colours."""
    sampler = recipe.sampler.table()
    options = {key: value for key, value in sampler.items() if key not in ("use", "steps")}
    return Model(
        networks=networks,
        name=recipe.name,
        schedule=Schedule.model_validate(recipe.diffusion.schedule_options()),
        prediction=recipe.diffusion.prediction,
        latent=latent_of(networks, recipe.data.shapes[0], rgb=rgb),
        picture_size=recipe.data.size,
        sizes=networks.sizes,
        defaults=Defaults(
            sampler=sampler["use"],
            sampler_options=options,
            steps=sampler["steps"],
            guidance_scale=recipe.sampler.guidance_scale,
        ),
    )


def latent_of(networks: RunNetworks, shape: tuple[int, int], *, rgb: LatentRgb | None = None) -> Latent:
    """The latents of pictures of this width and height."""
    width, height = (side // networks.autoencoder.downsample for side in shape)
    return Latent(
        channels=networks.autoencoder.latent_channels,
        height=height,
        width=width,
        mean=tuple(networks.latent_mean.tolist()),
        std=tuple(networks.latent_std.tolist()),
        multiple=networks.multiple,
        rgb=rgb,
    )
