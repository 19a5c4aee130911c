"""Writes drawn pictures as files that say how they were made."""

import contextlib
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ldmkit.errors import LdmkitError
from ldmkit.runtime.backend import Backend
from ldmkit.runtime.request import PictureRequest
from ldmkit.runtime.settings import DrawSettings

Pictures = Sequence[Image.Image]
Requests = Sequence[PictureRequest]


def metadata_of(backend: Backend, settings: DrawSettings, img2img: Path | None = None) -> dict[str, str]:
    """What every picture of a call has in common, as text; its prompt and seed are its own."""
    table = settings.table
    metadata = {
        "sampler": json.dumps(table) if len(table) > 2 else table["use"],
        "steps": str(settings.steps),
        "guidance": str(settings.guidance_scale),
        **backend.identity,
        "provider": backend.provider,
    }
    if settings.negative_prompt:
        metadata["negative"] = settings.negative_prompt
    if img2img is not None:
        metadata |= {"img2img": img2img.name, "strength": str(settings.strength)}
    return metadata


def write_pictures(
    pictures: Pictures, requests: Requests, out: Path, metadata: Mapping[str, str], *, one_file: bool
) -> dict[str, Any]:
    """A file a picture and, of several, all of them in one; what was written, as `ldmkit generate --json` prints it.

    `out` is a folder, or with `one_file` the file of the only picture.
    """
    written = []
    for picture, each in zip(pictures, requests, strict=True):
        text = {**metadata, "prompt": each.prompt, "seed": str(each.seed)}
        name = f"{slug(each.prompt)}-{each.seed}"
        if each.to_seed is not None:
            text |= {"to_seed": str(each.to_seed), "amount": str(each.noise_fraction)}
            name += f"-to-{each.to_seed}"
        path = write_png(picture, out if one_file else out / f"{name}.png", text, exact=one_file)
        written.append({"path": str(path), "prompt": each.prompt, "seed": each.seed})
    first, last = requests[0], requests[-1]
    prompts = list(dict.fromkeys(each.prompt for each in requests))
    prompt = "\n".join(prompts)
    if len(pictures) == 1:
        return {"pictures": written, "prompt": prompt, "grid": None}
    seeds = f"{first.seed}-variations" if last.to_seed is not None else f"{first.seed}-to-{last.seed}"
    text = {**metadata, "prompt": prompt, "seed": f"{first.seed} to {last.seed}"}
    others = f"-and-{len(prompts) - 1}-more" if len(prompts) > 1 else ""
    sheet = write_png(grid(pictures), out / f"{slug(first.prompt)}{others}-{seeds}-grid.png", text)
    return {"pictures": written, "prompt": prompt, "grid": str(sheet)}


def write_interpolation(
    frames: Pictures, requests: Requests, out: Path, metadata: Mapping[str, str], *, one_file: bool
) -> dict[str, Any]:
    """All frames in a row and as an animation, or the one of them that `out` names; returns as `write_pictures`."""
    first = requests[0]
    text = {**metadata, "prompt": first.prompt, "seed": str(first.seed), "frames": str(len(frames))}
    name = f"{slug(first.prompt)}-{first.seed}"
    if first.to_prompt is not None:
        text["to_prompt"] = first.to_prompt
        name += f"-to-{slug(first.to_prompt)}"
    if first.to_seed is not None:
        text["to_seed"] = str(first.to_seed)
        name += f"-to-{first.to_seed}"
    written: dict[str, Any] = {"pictures": [], "prompt": first.prompt, "grid": None}
    if not one_file or out.suffix.lower() == ".png":
        strip = grid(frames, columns=len(frames))
        written["strip"] = str(write_png(strip, out if one_file else out / f"{name}-strip.png", text, exact=one_file))
    if not one_file or out.suffix.lower() == ".gif":
        written["gif"] = str(write_gif(frames, out if one_file else out / f"{name}.gif", text, exact=one_file))
    return written


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


def write_gif(images: Pictures, path: Path, metadata: Mapping[str, str], *, exact: bool = False) -> Path:
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
        raise LdmkitError(f"the folder {path.parent} cannot be made: {error.strerror}") from error
    target, number = path, 1
    while True:
        try:
            with target.open("xb") as file:  # fails where it exists, so that two processes cannot share a name
                file.write(content.getbuffer())
        except FileExistsError:
            if exact:
                raise LdmkitError(f"{path} exists and is not overwritten: choose another name for --out") from None
            number += 1
            target = path.with_name(f"{path.stem}-{number}{path.suffix}")
        except OSError as error:  # not FileExistsError, so that what is there is ours
            with contextlib.suppress(OSError):
                target.unlink()
            raise LdmkitError(f"{target} cannot be written: {error.strerror}") from error
        else:
            return target


def grid(images: Pictures, *, columns: int | None = None, gap: int = 2) -> Image.Image:
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
