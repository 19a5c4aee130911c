"""What to draw, checked before a graph is opened."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageOps

from ldmkit.components.protocols import Sampler
from ldmkit.components.registry import Registry
from ldmkit.diffusion.process import NoiseSchedule, make_schedule, noised_to
from ldmkit.errors import LdmkitError
from ldmkit.runtime.manifest import UNET_T2I

if TYPE_CHECKING:
    from ldmkit.runtime.generate import Backend

DEFAULT_STRENGTH = 0.6
MAX_LATENT_SIZE = 512
"""height or width; attention over more positions outgrows a machine's memory without a word"""


@dataclass(frozen=True)
class Wanted:
    """One picture: its prompt and seed, or a point between two of each."""

    prompt: str
    """without surrounding space; "" for none"""
    seed: int
    to_prompt: str | None = None
    to_seed: int | None = None
    prompt_fraction: float = 0.0
    """of the way from `prompt` to `to_prompt`"""
    noise_fraction: float = 0.0
    """of the way from the noise of `seed` to that of `to_seed`"""


@dataclass(frozen=True)
class Plan:
    """What `draw` will do, checked."""

    wanted: tuple[Wanted, ...]
    negative_prompt: str
    steps: int
    guidance_scale: float
    sampler: dict[str, Any]
    """`use` and the sampler's options"""
    walk: Sampler
    schedule: NoiseSchedule
    """the whole way from noise, or the part of it that is left where a picture is given"""
    pixels: np.ndarray | None
    """(1, 3, H, W) float32 in [-1, 1], the picture to start from"""
    latent_size: tuple[int, int]
    """height and width"""
    strength: float
    """share of the way from noise that is walked; 1 without a picture"""

    @property
    def prompts(self) -> list[str]:
        """One a picture."""
        return [each.prompt for each in self.wanted]


def make_plan(
    bundle: "Backend",
    wanted: Sequence[Wanted],
    *,
    steps: int | None = None,
    guidance_scale: float | None = None,
    sampler: str | Mapping[str, Any] | None = None,
    negative_prompt: str = "",
    init_image: Image.Image | None = None,
    strength: float = DEFAULT_STRENGTH,
    size: tuple[int, int] | None = None,
) -> Plan:
    """Fills in the bundle's defaults and checks every value; opens no graph. Raises LdmkitError for a wrong one.

    `sampler`: its name, or a table of its name (`use`) and options.
    """
    defaults = bundle.manifest.defaults
    steps = defaults.steps if steps is None else steps
    scale = defaults.guidance_scale if guidance_scale is None else guidance_scale
    check_whole(steps=steps)
    check_number("guidance_scale", scale, 0, math.inf, hint=" (1: no guidance)")
    check_number("strength", strength, 0, 1)
    if strength == 0:
        raise LdmkitError("strength is 0, which leaves the picture as it is; it must be above 0 and at most 1.")
    if not wanted:
        raise LdmkitError("there are no prompts: pass at least one, or None to draw without.")
    negative = check_prompt(bundle, negative_prompt)
    if negative and scale == 1:
        raise LdmkitError(
            "negative_prompt has no effect at guidance_scale 1: guidance moves away from it. Take another scale."
        )
    width, height, latent_size = check_size(bundle, size)
    pixels = None
    schedule: NoiseSchedule = make_schedule(**bundle.manifest.schedule.model_dump())
    schedule.grid(steps)  # raises where it has fewer timesteps
    chosen = {"use": sampler} if isinstance(sampler, str) else dict(sampler or {})
    table: dict[str, Any] = {"use": defaults.sampler, **chosen, "steps": steps}
    if init_image is not None:
        bundle.check_encodes()
        pixels = to_pixels(init_image, width, height)
        schedule = noised_to(schedule, strength)
        # Every step is as long as one of a whole way, as in SDEdit, Meng et al. 2022.
        table["steps"] = max(1, round(steps * strength))
    else:
        strength = 1.0
    if table["use"] == defaults.sampler:
        table = {**defaults.sampler_options, **table}
    # Reading the options of the other kinds takes longer than opening a small graph.
    walk = Registry.load(kinds=("sampler",)).build("sampler", table, where="sampler")
    return Plan(tuple(wanted), negative, steps, scale, table, walk, schedule, pixels, latent_size, strength)


def each_prompt(bundle: "Backend", prompts: Sequence[str] | str | None, *, n: int, seed: int) -> list[Wanted]:
    """`n` pictures of each prompt, prompt by prompt; picture k from seed + k. Raises LdmkitError for a wrong value."""
    check_whole(n=n)
    check_whole(0, seed=seed)
    if prompts is None or isinstance(prompts, str):
        prompts = [prompts or ""]
    texts = [check_prompt(bundle, prompt) for prompt in prompts for _ in range(n)]
    return [Wanted(text, seed + k) for k, text in enumerate(texts)]


def variations(bundle: "Backend", prompt: str | None, *, n: int, seed: int, amount: float) -> list[Wanted]:
    """The picture of `seed`, and `n` more whose noise lies `amount` of the way to that of seeds after it."""
    check_whole(variations=n)
    check_whole(0, seed=seed)
    check_number("amount", amount, 0, 1)
    text = check_prompt(bundle, prompt or "")
    others = [Wanted(text, seed, to_seed=seed + k, noise_fraction=amount) for k in range(1, n + 1)]
    return [Wanted(text, seed), *others]


def between(
    bundle: "Backend", prompts: tuple[str | None, str | None], seeds: tuple[int, int], *, frames: int
) -> list[Wanted]:
    """`frames` pictures from the first prompt and seed to the second. Raises LdmkitError for a wrong value."""
    check_whole(2, frames=frames)
    check_whole(0, seed=min(seeds))
    first, last = (check_prompt(bundle, prompt or "") for prompt in prompts)
    if first == last and seeds[0] == seeds[1]:
        raise LdmkitError("there is nothing between one prompt and itself at one seed: give a second of either.")
    if first != last and not (first and last):
        raise LdmkitError("a way between prompts needs two prompts; without any, give two seeds.")
    return [
        Wanted(
            first,
            seeds[0],
            to_prompt=last if first != last else None,
            to_seed=seeds[1] if seeds[0] != seeds[1] else None,
            prompt_fraction=k / (frames - 1),
            noise_fraction=k / (frames - 1),
        )
        for k in range(frames)
    ]


def check_prompt(bundle: "Backend", prompt: str) -> str:
    """The prompt without surrounding space, "" for none. Raises LdmkitError where the bundle cannot draw it."""
    prompt = prompt.strip()
    if prompt and not bundle.draws_text:
        raise LdmkitError(f"bundle {bundle.folder} has no {UNET_T2I}: it draws without a prompt only. Leave it out.")
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise LdmkitError(f"the prompt {prompt!r} is not valid Unicode text.") from None
    return prompt


def check_size(bundle: "Backend", size: tuple[int, int] | None) -> tuple[int, int, tuple[int, int]]:
    """Pixels' width and height, and the latents' (height, width). Raises LdmkitError where no graph takes them."""
    latent, usual = bundle.manifest.latent, bundle.manifest.picture_size
    if size is None or size == (usual, usual):
        return usual, usual, (latent.height, latent.width)
    if latent.multiple is None:
        raise LdmkitError(f"size is {size[0]}x{size[1]}; bundle {bundle.folder} draws {usual}x{usual} only.")
    factor = usual // latent.height  # pixels a latent position
    step, most = factor * latent.multiple, factor * MAX_LATENT_SIZE
    if any(isinstance(side, bool) or side % step or not step <= side <= most for side in size):
        raise LdmkitError(
            f"size is {size[0]}x{size[1]}; bundle {bundle.folder} draws multiples of {step} pixels, {most} at most."
        )
    return *size, (size[1] // factor, size[0] // factor)


def check_whole(least: int = 1, **values: int) -> None:
    """Raises LdmkitError for a value that is no whole number of `least` or more."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise LdmkitError(f"{name} is {value!r}; it must be a whole number of {least} or more.")


def check_number(name: str, value: float, least: float, most: float, *, hint: str = "") -> None:
    """Raises LdmkitError for a value that is not finite or outside [least, most]."""
    if not (math.isfinite(value) and least <= value <= most):
        range_ = f"of {least} or more" if most == math.inf else f"from {least} to {most}"
        raise LdmkitError(f"{name} is {value}; it must be a finite number {range_}{hint}.")


def to_pixels(image: Image.Image, width: int, height: int) -> np.ndarray:
    """(1, 3, height, width) float32 in [-1, 1]: on white where transparent, scaled to cover, the rest cut off."""
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    fitted = ImageOps.fit(image.convert("RGB"), (width, height), Image.Resampling.LANCZOS)
    levels = np.asarray(fitted, dtype=np.float32) / 127.5 - 1  # (H, W, 3)
    return np.ascontiguousarray(levels.transpose(2, 0, 1)[None])
