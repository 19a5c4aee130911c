"""What no key of a recipe can tell alone: whether the networks, the schedule and the losses fit together."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ldmkit.recipe.sections import Recipe


def misfits(recipe: "Recipe") -> list[str]:
    """One line for each pair of keys that do not fit, with both and what would; found here and not hours later."""
    return [*_sizes(recipe), *_widths(recipe), *_batches(recipe), *_losses(recipe), *_noise(recipe)]


def _sizes(recipe: "Recipe") -> Iterator[str]:
    down = recipe.vae.patch_size * 2 ** (len(recipe.vae.channels) - 1)
    if recipe.data.size % down:
        yield (
            f"[data] size = {recipe.data.size} must be a multiple of {down}, by which vae.channels and "
            "vae.patch_size shrink it"
        )
        return
    latent_size = recipe.data.size // down
    for name, section in (("unet", recipe.unet), ("t2i", recipe.t2i)):
        shrink = 2 ** (len(section.channels) - 1)
        if latent_size % shrink:
            yield (
                f"[{name}] channels = {list(section.channels)} shrink by {shrink}, but the latents are "
                f"{latent_size} wide: use fewer levels"
            )


def _widths(recipe: "Recipe") -> Iterator[str]:
    for name, section in (("vae", recipe.vae), ("unet", recipe.unet), ("t2i", recipe.t2i)):
        widths, levels = list(section.channels), list(section.attention_levels)
        if any(width % section.norm_groups for width in widths):
            yield f"[{name}] channels = {widths} must be multiples of norm_groups = {section.norm_groups}"
        if any(level >= len(widths) for level in levels):
            yield (
                f"[{name}] attention_levels = {levels} must lie between 1 and {len(widths) - 1}, "
                "the number of levels that channels gives"
            )
    for name, unet in (("unet", recipe.unet), ("t2i", recipe.t2i)):
        if unet.time_dim % 2:
            yield f"[{name}] time_dim = {unet.time_dim} must be even, half for sines and half for cosines"
    widths, heads = list(recipe.t2i.channels), recipe.t2i.num_heads
    # The middle always attends; a level does on its way down and, as wide as the level above it, on its way up.
    levels = [level for level in recipe.t2i.attention_levels if level < len(widths)]
    attending = {widths[-1], *(widths[i] for level in levels for i in (level - 1, level))}
    if wrong := sorted(width for width in attending if width % heads):
        yield f"[t2i] num_heads = {heads} must divide the width of every level with attention, and {wrong[0]} is one"


def _batches(recipe: "Recipe") -> Iterator[str]:
    for name, section in (("vae", recipe.vae), ("unet", recipe.unet), ("t2i", recipe.t2i)):
        if section.batch_size % section.grad_accumulation:
            yield (
                f"[{name}] batch_size = {section.batch_size} must be a multiple of "
                f"grad_accumulation = {section.grad_accumulation}"
            )


def _losses(recipe: "Recipe") -> Iterator[str]:
    first = [
        loss
        for loss in recipe.vae.losses.values()
        if loss.weight > 0 and not (loss.start_step or loss.start_epoch or loss.start_on_plateau or loss.ramp_steps)
    ]
    if not first:
        yield (
            "[vae.losses] needs a loss that counts from the first step: weight above 0, start_step, start_epoch and "
            "ramp_steps 0, start_on_plateau false"
        )
    for name, loss in recipe.vae.losses.items():
        if loss.start_on_plateau and not recipe.data.held_out:
            yield (
                f"[vae.losses.{name}] start_on_plateau = true judges by pictures held out: "
                "[data] held_out = 0.0 must be above 0, or give a start_step"
            )


def _noise(recipe: "Recipe") -> Iterator[str]:
    diffusion = recipe.diffusion
    if diffusion.schedule in ("linear", "scaled_linear") and diffusion.beta_start > diffusion.beta_end:
        yield f"[diffusion] beta_start = {diffusion.beta_start} must not be above beta_end = {diffusion.beta_end}"
    # Flow is continuous; the others would repeat timesteps.
    if diffusion.schedule != "flow" and recipe.sampler.steps > diffusion.num_timesteps:
        yield (
            f"[sampler] steps = {recipe.sampler.steps} must not be above "
            f"diffusion.num_timesteps = {diffusion.num_timesteps}"
        )
