"""What a page may ask for: every value is checked here, since a request need not come from our page."""

from collections.abc import Mapping, Sequence
from typing import Any

from ldmkit.errors import LdmkitError
from ldmkit.runtime.manifest import Manifest
from ldmkit.runtime.request import DrawRequest, each_prompt

MAX_PICTURES = 16
MAX_STEPS = 200
MAX_GUIDANCE = 30.0
MAX_PROMPT = 1000
"""characters; the text encoder reads far fewer"""
MAX_SEED = 2**32 - 1
SIDES = ("width", "height")


def sides_of(manifest: Manifest) -> tuple[range, range]:
    """Widths and heights in pixels: those that the graphs take, from half to twice what they were trained at.

    Farther from that a U-Net draws poorly, and at several times the cost.
    """
    if manifest.latent.multiple is None:
        widths, heights = (range(usual, usual + 1) for usual in manifest.size)
    else:
        step = manifest.factor * manifest.latent.multiple
        widths, heights = (range(-(-usual // (2 * step)) * step, 2 * usual + 1, step) for usual in manifest.size)
    return widths, heights


def request_of(values: Mapping[str, Any], samplers: Sequence[str], sides: tuple[range, range]) -> DrawRequest:
    """What raw JSON asks for. Raises LdmkitError for a value beyond the limits; the bundle may still refuse one.

    `values` has the names of the settings' fields on the page; `sides` are what width and height may be.
    """
    if values["sampler"] not in samplers:
        raise LdmkitError(f"the sampler must be one of {', '.join(samplers)}")
    width, height = (int(_number(*each)) for each in zip(SIDES, map(values.get, SIDES), sides, strict=True))
    seed = int(_number("seed", values["seed"], range(MAX_SEED + 1)))
    count = int(_number("number of pictures", values["count"], range(1, MAX_PICTURES + 1)))
    return DrawRequest(
        each_prompt(_text("prompt", values["prompt"]), n=count, seed=seed),
        steps=int(_number("number of steps", values["steps"], range(1, MAX_STEPS + 1))),
        guidance_scale=_number("guidance", values["guidance"]),
        sampler=values["sampler"],
        negative_prompt=_text("negative prompt", values["negative"]),
        size=(width, height),
    )


def _text(what: str, text: Any) -> str:
    if text is None:
        return ""
    if not isinstance(text, str):
        raise LdmkitError(f"the {what} must be text")
    if len(text) > MAX_PROMPT:
        raise LdmkitError(f"the {what} has {len(text)} characters; {MAX_PROMPT} are the most")
    return text


def _number(what: str, number: Any, allowed: range | None = None) -> float:
    """A whole number of `allowed`; without that, a guidance. A browser has one kind of number, so 20.0 is 20."""
    least, most = (0.0, MAX_GUIDANCE) if allowed is None else (allowed[0], allowed[-1])
    is_number = isinstance(number, int | float) and not isinstance(number, bool) and abs(number) < 2**53
    if not is_number or (allowed is not None and number != number // 1):
        kind = "a number" if allowed is None else "a whole number"
        raise LdmkitError(f"the {what} must be {kind} from {least:g} to {most:.0f}")
    if not least <= number <= most:
        shown = f"{number:g}" if allowed is None else f"{number:.0f}"
        raise LdmkitError(f"the {what} is {shown}; it must be from {least:.0f} to {most:.0f}")
    if allowed is not None and number not in allowed:
        raise LdmkitError(f"the {what} is {number:.0f}; it must be a multiple of {allowed.step}")
    return float(number)
