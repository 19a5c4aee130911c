"""A request made ready for drawing: the bundle's defaults filled in, what the bundle cannot do refused."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from ldmkit.components.protocols import Sampler
from ldmkit.components.registry import Registry
from ldmkit.diffusion.process import NoiseSchedule, make_schedule, noised_to
from ldmkit.errors import LdmkitError
from ldmkit.runtime.backend import Backend
from ldmkit.runtime.manifest import UNET_T2I, Manifest
from ldmkit.runtime.memory import check_memory
from ldmkit.runtime.request import DrawRequest, PictureRequest, stripped

MAX_LATENT_SIZE = 512
"""height or width; attention over more positions outgrows a machine's memory without a word"""


@dataclass(frozen=True)
class DrawSettings:
    """What `draw` will do, checked."""

    pictures: Sequence[PictureRequest]
    negative_prompt: str
    steps: int
    guidance_scale: float
    table: dict[str, Any]
    """the sampler's name as `use`, and its options"""
    sampler: Sampler
    schedule: NoiseSchedule
    """the whole way from noise, or the part of it that is left where a picture is given"""
    pixels: np.ndarray | None
    """(1, 3, H, W) float32 in [-1, 1], the picture to start from"""
    latent_size: tuple[int, int]
    """height and width"""
    strength: float
    """share of the way from noise that is walked; 1 without a picture"""


def resolve(backend: Backend, request: DrawRequest) -> DrawSettings:
    """Opens no graph. Raises LdmkitError for what the bundle cannot do, and for a sampler or an option of it that
    does not exist."""
    defaults = backend.manifest.defaults
    steps = defaults.steps if request.steps is None else int(request.steps)
    scale = defaults.guidance_scale if request.guidance_scale is None else request.guidance_scale
    negative = stripped(request.negative_prompt)
    if not backend.draws_text and any([negative, *request.prompts]):
        raise LdmkitError(f"bundle {backend.folder} has no {UNET_T2I}: it draws without a prompt only; leave it out")
    if negative and scale == 1:
        raise LdmkitError(
            "negative_prompt has no effect at guidance_scale 1, since guidance is what moves away from it: choose "
            "another scale"
        )
    width, height, latent_size = check_size(backend, request.size)
    if isinstance(backend.manifest, Manifest) and request.size not in (None, (backend.manifest.picture_size,) * 2):
        check_memory(backend.manifest, latent_size, text=any([negative, *request.prompts]))
    schedule: NoiseSchedule = make_schedule(**backend.manifest.schedule.model_dump())
    schedule.grid(steps)  # raises where it has fewer timesteps
    chosen = {"use": request.sampler} if isinstance(request.sampler, str) else dict(request.sampler or {})
    table: dict[str, Any] = {"use": defaults.sampler, **chosen, "steps": steps}
    pixels, strength = None, 1.0
    if request.init_image is not None:
        backend.check_encodes()
        strength = request.strength
        pixels = to_pixels(request.init_image, width, height)
        schedule = noised_to(schedule, strength)
        # Every step is as long as one of a whole way, as in SDEdit, Meng et al. 2022.
        table["steps"] = max(1, round(steps * strength))
    if table["use"] == defaults.sampler:
        table = {**defaults.sampler_options, **table}
    # Reading the options of the other kinds takes longer than opening a small graph.
    sampler = Registry.load(kinds=("sampler",)).build("sampler", table, where="sampler")
    return DrawSettings(
        request.pictures, negative, steps, scale, table, sampler, schedule, pixels, latent_size, strength
    )


def check_size(backend: Backend, size: tuple[int, int] | None) -> tuple[int, int, tuple[int, int]]:
    """Pixels' width and height, and the latents' (height, width). Raises LdmkitError where no graph takes them."""
    latent, usual, factor = backend.manifest.latent, backend.manifest.size, backend.manifest.factor
    if size is None or size == usual:
        return *usual, (latent.height, latent.width)
    if latent.multiple is None:
        raise LdmkitError(f"size is {size[0]}x{size[1]}; bundle {backend.folder} draws {usual[0]}x{usual[1]} only")
    step, most = factor * latent.multiple, factor * MAX_LATENT_SIZE
    if any(isinstance(side, bool) or side % step or not step <= side <= most for side in size):
        raise LdmkitError(
            f"size is {size[0]}x{size[1]}; bundle {backend.folder} draws multiples of {step} pixels, {most} at most"
        )
    return *size, (size[1] // factor, size[0] // factor)


def to_pixels(image: Image.Image, width: int, height: int) -> np.ndarray:
    """(1, 3, height, width) float32 in [-1, 1]: on white where transparent, scaled to cover, the rest cut off."""
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    fitted = ImageOps.fit(image.convert("RGB"), (width, height), Image.Resampling.LANCZOS)
    levels = np.asarray(fitted, dtype=np.float32) / 127.5 - 1  # (H, W, 3)
    return np.ascontiguousarray(levels.transpose(2, 0, 1)[None])
