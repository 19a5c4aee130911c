"""What a page may ask for: every value is checked here, since a request need not come from our page."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ldmkit.errors import LdmkitError
from ldmkit.runtime.manifest import Manifest

MAX_PICTURES = 16
MAX_STEPS = 200
MAX_GUIDANCE = 30.0
MAX_PROMPT = 1000
"""characters; the text encoder reads far fewer"""
MAX_SEED = 2**32 - 1


@dataclass(frozen=True)
class Asked:
    """Settings of one draw, within the limits above. The bundle may still refuse them."""

    prompt: str
    negative_prompt: str
    seed: int
    steps: int
    guidance_scale: float
    sampler: str
    width: int
    height: int
    count: int


def sides_of(manifest: Manifest) -> range:
    """Widths, and heights, in pixels: those that the graphs take, from half to twice what they were trained at.

    Farther from that a U-Net draws poorly, and at several times the cost.
    """
    usual, latent = manifest.picture_size, manifest.latent
    if latent.multiple is None:
        return range(usual, usual + 1)
    step = usual // latent.height * latent.multiple
    return range(-(-usual // (2 * step)) * step, 2 * usual + 1, step)


def check_asked(values: Mapping[str, Any], samplers: Sequence[str], sides: range) -> Asked:
    """The settings in `values`, raw JSON by the names of `Asked`. Raises LdmkitError for one that is not allowed.

    `sides`: what `width` and `height` may be.
    """
    sampler = values["sampler"]
    if not isinstance(sampler, str) or sampler not in samplers:
        raise LdmkitError(f"The sampler must be one of {', '.join(samplers)}.")
    return Asked(
        prompt=_text(values, "prompt", "prompt"),
        negative_prompt=_text(values, "negative_prompt", "negative prompt"),
        seed=_whole(values, "seed", "seed", 0, MAX_SEED),
        steps=_whole(values, "steps", "number of steps", 1, MAX_STEPS),
        guidance_scale=_number(values, "guidance_scale", "guidance", 0.0, MAX_GUIDANCE),
        sampler=sampler,
        width=_side(values, "width", sides),
        height=_side(values, "height", sides),
        count=_whole(values, "count", "number of pictures", 1, MAX_PICTURES),
    )


def _text(values: Mapping[str, Any], key: str, what: str) -> str:
    text = values[key]
    if text is None:
        return ""
    if not isinstance(text, str):
        raise LdmkitError(f"The {what} must be text.")
    if len(text) > MAX_PROMPT:
        raise LdmkitError(f"The {what} has {len(text)} characters; {MAX_PROMPT} are the most.")
    return text


def _number(values: Mapping[str, Any], key: str, what: str, least: float, most: float) -> float:
    number = values[key]
    if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
        raise LdmkitError(f"The {what} must be a number from {least:g} to {most:g}.")
    if not least <= number <= most:
        raise LdmkitError(f"The {what} is {number:g}; it must be from {least:g} to {most:g}.")
    return float(number)


def _side(values: Mapping[str, Any], key: str, sides: range) -> int:
    side = _whole(values, key, key, sides[0], sides[-1])
    if side not in sides:
        raise LdmkitError(f"The {key} is {side}; it must be a multiple of {sides.step}.")
    return side


def _whole(values: Mapping[str, Any], key: str, what: str, least: int, most: int) -> int:
    number = values[key]
    # A browser has one kind of number, so 20.0 is 20.
    if isinstance(number, bool) or not isinstance(number, int | float) or number != number // 1:
        raise LdmkitError(f"The {what} must be a whole number from {least} to {most}.")
    if not least <= number <= most:
        raise LdmkitError(f"The {what} is {number:.0f}; it must be from {least} to {most}.")
    return int(number)
