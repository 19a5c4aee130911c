"""What to draw and how, as it was asked for. What needs no bundle to be judged is checked here, and only here."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import index
from typing import TYPE_CHECKING, Any, TypedDict

from ldmkit.errors import LdmkitError

if TYPE_CHECKING:
    from PIL import Image

DEFAULT_STRENGTH = 0.6
DEFAULT_AMOUNT = 0.3
MAX_STEPS = 10_000
MAX_PICTURES = 100_000
"""of one request; what it takes is said at once, and not when memory is full"""
MAX_FRAMES = 1_000


@dataclass(frozen=True)
class PictureRequest:
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


class Settings(TypedDict, total=False):
    """What the pictures of a request share: the keywords of `DrawRequest`, which describes them."""

    steps: int | None
    guidance_scale: float | None
    sampler: str | Mapping[str, Any] | None
    negative_prompt: str
    init_image: "Image.Image | None"
    strength: float
    size: tuple[int, int] | None


@dataclass(frozen=True)
class DrawRequest:
    """Pictures and their settings; None leaves one to the bundle. Raises LdmkitError for a value out of range."""

    pictures: Sequence[PictureRequest]
    steps: int | None = None
    guidance_scale: float | None = None
    """weight of classifier-free guidance; 1: none"""
    sampler: str | Mapping[str, Any] | None = None
    """one of `ldmkit plugins sampler`, or {"use": NAME, OPTION: VALUE}"""
    negative_prompt: str = ""
    """what guidance moves away from, in place of the empty caption"""
    init_image: "Image.Image | None" = None
    """scaled and cropped to the pictures' size, noised to `strength` of the way and drawn anew from there"""
    strength: float = DEFAULT_STRENGTH
    """above 0 to 1, where nothing of `init_image` stays"""
    size: tuple[int, int] | None = None
    """width and height in pixels, where the bundle draws more than one"""

    def __post_init__(self) -> None:
        if not self.pictures:
            raise LdmkitError("there are no prompts: pass at least one, or None to draw without")
        if self.steps is not None:
            whole("steps", self.steps, most=MAX_STEPS)
        if self.guidance_scale is not None:
            check_number("guidance_scale", self.guidance_scale, 0, math.inf, hint=" (1: no guidance)")
        check_number("strength", self.strength, 0, 1)
        if self.strength == 0:
            raise LdmkitError("strength is 0, which leaves the picture as it is; it must be above 0 and at most 1")
        stripped(self.negative_prompt)

    @property
    def prompts(self) -> list[str]:
        """Every prompt once, those that a picture only comes near to as well."""
        texts = (text for each in self.pictures for text in (each.prompt, each.to_prompt) if text is not None)
        return list(dict.fromkeys(texts))


def each_prompt(
    prompts: Sequence[str] | str | None, *, n: int = 1, seed: int = 0, same_seed: bool = False
) -> list[PictureRequest]:
    """`n` pictures of each prompt, prompt by prompt; picture k from seed + k, with `same_seed` counted anew for each
    prompt. Raises LdmkitError for a wrong value."""
    if prompts is None or isinstance(prompts, str):
        prompts = [prompts or ""]
    n, seed = whole("n", n, most=MAX_PICTURES // max(1, len(prompts))), whole("seed", seed, least=0)
    texts = [text for prompt in prompts for text in [stripped(prompt)] * n]
    return [PictureRequest(text, seed + (k % n if same_seed else k)) for k, text in enumerate(texts)]


def variations(
    prompt: str | None, *, n: int = 4, seed: int = 0, amount: float = DEFAULT_AMOUNT
) -> list[PictureRequest]:
    """The picture of `seed`, and `n` more whose noise lies `amount` of the way to that of seeds after it."""
    n, seed = whole("variations", n, most=MAX_PICTURES), whole("seed", seed, least=0)
    check_number("amount", amount, 0, 1)
    text = stripped(prompt or "")
    others = [PictureRequest(text, seed, to_seed=seed + k, noise_fraction=amount) for k in range(1, n + 1)]
    return [PictureRequest(text, seed), *others]


def interpolation(
    prompts: tuple[str | None, str | None], seeds: tuple[int, int], *, frames: int = 8
) -> list[PictureRequest]:
    """`frames` pictures from the first prompt and seed to the second. Raises LdmkitError for a wrong value."""
    frames = whole("frames", frames, least=2, most=MAX_FRAMES)
    seed, to_seed = (whole("seed", each, least=0) for each in seeds)
    first, last = (stripped(prompt or "") for prompt in prompts)
    if first == last and seed == to_seed:
        raise LdmkitError("there is nothing between one prompt and itself at one seed: give a second of either")
    if first != last and not (first and last):
        raise LdmkitError("interpolation between prompts needs two prompts; without any, give two seeds")
    return [
        PictureRequest(
            first,
            seed,
            to_prompt=last if first != last else None,
            to_seed=to_seed if seed != to_seed else None,
            prompt_fraction=k / (frames - 1),
            noise_fraction=k / (frames - 1),
        )
        for k in range(frames)
    ]


def stripped(prompt: str) -> str:
    """The prompt without surrounding space, "" for none. Raises LdmkitError where it is not valid Unicode."""
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise LdmkitError(f"the prompt {prompt!r} is not valid Unicode text") from None
    return prompt.strip()


def whole(name: str, value: int, *, least: int = 1, most: float = math.inf) -> int:
    """The value, numpy's integers as Python's. Raises LdmkitError where it is no whole number in [least, most]."""
    try:
        number = index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool) or not least <= number <= most:
        range_ = f"of {least} or more" if most == math.inf else f"from {least} to {most}"
        raise LdmkitError(f"{name} is {value!r}; it must be a whole number {range_}")
    return number


def check_number(name: str, value: float, least: float, most: float, *, hint: str = "") -> None:
    """Raises LdmkitError for a value that is not finite or outside [least, most]."""
    if not (math.isfinite(value) and least <= value <= most):
        range_ = f"of {least} or more" if most == math.inf else f"from {least} to {most}"
        raise LdmkitError(f"{name} is {value}; it must be a finite number {range_}{hint}")
