"""Writes drawn pictures as files that say how they were made."""

import contextlib
import io
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from ldmkit.errors import LdmkitError
from ldmkit.runtime.backend import Backend
from ldmkit.runtime.request import PictureRequest
from ldmkit.runtime.settings import DrawSettings

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".gif": "GIF"}
"""what is written, by the ending of the file"""
MAX_SHEET_PIXELS = 100_000_000
"""of several pictures in one; beyond it there is none"""
Pictures = Sequence[Image.Image]
Requests = Sequence[PictureRequest]
Drawn = Iterable[tuple[int, Image.Image]]


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


@dataclass(frozen=True, kw_only=True)
class Output:
    """Where the pictures of a call go; both methods take requests' numbers with their pictures, as they are drawn, and
    return what was written, as `ldmkit generate --json` prints it.
    """

    out: Path
    """a folder, or with `one_file` the file of the only picture"""
    one_file: bool
    metadata: Mapping[str, str]
    on_file: Callable[[Path], None]
    """called with each file"""

    def pictures(self, drawn: Drawn, requests: Requests) -> dict[str, Any]:
        """A file a picture, each as soon as it is drawn, and of several all of them in one."""
        written: dict[int, dict[str, Any]] = {}
        pictures: dict[int, Image.Image] = {}
        for number, picture in drawn:
            each = requests[number]
            text = {"prompt": each.prompt, "seed": str(each.seed)}
            name = f"{slug(each.prompt)}-{each.seed}"
            if each.to_seed is not None:
                text |= {"to_seed": str(each.to_seed), "amount": str(each.noise_fraction)}
                name += f"-to-{each.to_seed}"
            path = self._write(picture, f"{name}.png", text)
            written[number] = {"path": path, "prompt": each.prompt, "seed": each.seed}
            if 1 < len(requests) <= MAX_SHEET_PIXELS // (picture.width * picture.height):
                pictures[number] = picture
        first, last = requests[0], requests[-1]
        prompts = list(dict.fromkeys(each.prompt for each in requests))
        result = {"pictures": [row for _, row in sorted(written.items())], "prompt": "\n".join(prompts), "grid": None}
        if pictures:
            seeds = [each.seed for each in requests]
            name = slug(first.prompt) if len(prompts) == 1 else f"{len(prompts)}-prompts"
            name += f"-{first.seed}-variations" if last.to_seed is not None else f"-{min(seeds)}-to-{max(seeds)}"
            text = {"prompt": str(result["prompt"]), "seed": f"{min(seeds)} to {max(seeds)}"}
            result["grid"] = self._write(grid([pictures[k] for k in sorted(pictures)]), f"{name}-grid.png", text)
        return result

    def interpolation(self, drawn: Drawn, requests: Requests) -> dict[str, Any]:
        """All frames in a row and as an animation, or the one of them that `out` names."""
        pictures = dict(drawn)
        frames = [pictures[k] for k in range(len(requests))]
        first = requests[0]
        text = {"prompt": first.prompt, "seed": str(first.seed), "frames": str(len(frames))}
        name = f"{slug(first.prompt)}-{first.seed}"
        if first.to_prompt is not None:
            text["to_prompt"] = first.to_prompt
            name += f"-to-{slug(first.to_prompt)}"
        if first.to_seed is not None:
            text["to_seed"] = str(first.to_seed)
            name += f"-to-{first.to_seed}"
        written: dict[str, Any] = {"pictures": [], "prompt": first.prompt, "grid": None}
        animated = self.out.suffix.lower() == ".gif"
        if not self.one_file or not animated:
            written["strip"] = self._write(grid(frames, columns=len(frames)), f"{name}-strip.png", text)
        if not self.one_file or animated:
            written["gif"] = self._write(frames[0], f"{name}.gif", text, frames[1:])
        return written

    def _write(self, image: Image.Image, name: str, text: Mapping[str, str], more: Pictures = ()) -> str:
        out = self.out if self.one_file else self.out / name
        path = write_picture(image, out, {**self.metadata, **text}, exact=self.one_file, more=more)
        self.on_file(path)
        return str(path)


def write_picture(
    image: Image.Image, path: Path, metadata: Mapping[str, str], *, exact: bool = False, more: Pictures = ()
) -> Path:
    """Writes a picture in the format of the path's ending, one of FORMATS, and returns where: `path`, or `path` with
    -2, -3 … before its ending. With `more` a GIF is an endless animation, 8 a second.

    Metadata become a PNG's texts, a GIF's comment or, in JSON, the description in EXIF.
    No file is ever overwritten: with `exact` a taken `path` is an LdmkitError instead.
    """
    buffer, kind = io.BytesIO(), FORMATS[path.suffix.lower()]
    told = json.dumps(metadata).encode("ascii")
    options: dict[str, Any] = {}
    if kind == "PNG":
        options["pnginfo"] = info = PngInfo()
        for key, value in metadata.items():
            info.add_text(key, value)  # beyond Latin-1 it becomes iTXt by itself
    elif kind == "GIF":
        options = {"save_all": True, "append_images": more, "duration": 125, "loop": 0, "comment": told}
    else:
        exif = Image.Exif()
        exif[ExifTags.Base.ImageDescription] = told.decode()
        options = {"exif": exif} | ({"quality": 95, "subsampling": 0} if kind == "JPEG" else {"lossless": True})
    try:
        image.save(buffer, format=kind, **options)
    except (OSError, ValueError) as error:  # beyond what the format can hold, or Pillow was built without it
        raise LdmkitError(f"{path} cannot be written: {error}") from error
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
        except BaseException as error:  # not FileExistsError, so that what is there is ours
            with contextlib.suppress(OSError):
                target.unlink()
            if isinstance(error, OSError):
                raise LdmkitError(f"{target} cannot be written: {error.strerror}") from error
            raise
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
