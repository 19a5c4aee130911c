"""Writes drawn pictures as files that say how they were made."""

import contextlib
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ldmkit.errors import LdmkitError

if TYPE_CHECKING:
    from ldmkit.runtime.generate import Backend
    from ldmkit.runtime.request import Plan


def metadata_of(opened: "Backend", plan: "Plan", img2img: Path | None = None) -> dict[str, str]:
    """What every picture of a call has in common, as text; its prompt and seed are its own."""
    metadata = {
        "sampler": json.dumps(plan.sampler) if len(plan.sampler) > 2 else plan.sampler["use"],
        "steps": str(plan.steps),
        "guidance": str(plan.guidance_scale),
        **opened.identity,
        "provider": opened.provider,
    }
    if plan.negative_prompt:
        metadata["negative"] = plan.negative_prompt
    if img2img is not None:
        metadata |= {"img2img": img2img.name, "strength": str(plan.strength)}
    return metadata


def write_png(image: Image.Image, path: Path, metadata: Mapping[str, str], *, exact: bool = False) -> Path:
    """Writes a picture with text metadata and returns where: `path`, or `path` with -2, -3 … before its ending.

    No file is ever overwritten: with `exact` a taken `path` is an LdmkitError instead.
    """
    info = PngInfo()
    for key, value in metadata.items():
        info.add_text(key, value)  # beyond Latin-1 it becomes iTXt by itself
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", pnginfo=info)
    return _write_new(path, buffer, exact=exact)


def write_gif(
    images: Sequence[Image.Image],
    path: Path,
    metadata: Mapping[str, str],
    *,
    exact: bool = False,
    seconds: float = 0.12,
) -> Path:
    """Writes pictures as an endless animation, 8 a second, with its metadata as a comment in JSON.

    Where it is written is as of `write_png`.
    """
    buffer = io.BytesIO()
    images[0].save(
        buffer,
        format="GIF",
        save_all=True,
        append_images=images[1:],
        duration=125,
        loop=0,
        comment=json.dumps(metadata).encode("ascii"),
    )
    return _write_new(path, buffer, exact=exact)


def _write_new(path: Path, content: io.BytesIO, *, exact: bool) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LdmkitError(f"the folder {path.parent} cannot be made: {error.strerror}.") from error
    target, number = path, 1
    while True:
        try:
            with target.open("xb") as file:  # fails where it exists, so that two processes cannot share a name
                file.write(content.getbuffer())
        except FileExistsError:
            if exact:
                raise LdmkitError(f"{path} exists and is not overwritten: choose another name for --out.") from None
            number += 1
            target = path.with_name(f"{path.stem}-{number}{path.suffix}")
        except OSError as error:  # not FileExistsError, so that what is there is ours
            with contextlib.suppress(OSError):
                target.unlink()
            raise LdmkitError(f"{target} cannot be written: {error.strerror}.") from error
        else:
            return target


def grid(images: Sequence[Image.Image], *, columns: int | None = None, gap: int = 2) -> Image.Image:
    """The pictures row by row on white, `gap` pixels apart: near to a square, in full rows where that is possible."""
    square = math.isqrt(len(images) - 1) + 1
    columns = columns or next((k for k in (square, square + 1) if len(images) % k == 0), square)
    rows = -(-len(images) // columns)
    width, height = images[0].size
    sheet = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), "white")
    for k, image in enumerate(images):
        sheet.paste(image, (k % columns * (width + gap), k // columns * (height + gap)))
    return sheet


def slug(prompt: str) -> str:
    """A file name's stem for a prompt: its words in lower case, 60 bytes at most; "unconditional" for none."""
    words = re.sub(r"[\W_]+", "-", prompt.lower()).strip("-")
    return words.encode()[:60].decode(errors="ignore").rstrip("-") or "unconditional"
