"""The files that `ldmkit generate` writes, and what they say of themselves."""

from pathlib import Path
from typing import Any

from PIL import Image

from ldmkit.runtime.pictures import grid, slug, write_gif, write_png
from ldmkit.runtime.request import Wanted


def write_pictures(
    images: list[Image.Image],
    wanted: list[Wanted],
    out: Path,
    metadata: dict[str, str],
    *,
    one_file: bool,
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """A file a picture and, of several, all of them in one; ([path and seed of each], {"grid": path})."""
    written = []
    for image, each in zip(images, wanted, strict=True):
        text = {**metadata, "prompt": each.prompt, "seed": str(each.seed)}
        name = f"{slug(each.prompt)}-{each.seed}"
        if each.to_seed is not None:
            text |= {"to_seed": str(each.to_seed), "amount": str(each.noise_fraction)}
            name += f"-to-{each.to_seed}"
        path = write_png(image, out if one_file else out / f"{name}.png", text, exact=one_file)
        written.append({"path": str(path), "prompt": each.prompt, "seed": each.seed})
    if len(images) == 1:
        return written, {}
    first, last = wanted[0], wanted[-1]
    seeds = f"{first.seed}-variations" if last.to_seed is not None else f"{first.seed}-to-{last.seed}"
    text = {**metadata, "prompt": first.prompt, "seed": f"{first.seed} to {last.seed}"}
    sheet = write_png(grid(images), out / f"{slug(first.prompt)}-{seeds}-grid.png", text)
    return written, {"grid": str(sheet)}


def write_way(
    images: list[Image.Image], wanted: list[Wanted], out: Path, metadata: dict[str, str], *, one_file: bool
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """All frames in a row and as an animation, or the one of them that `out` names; ([], {"strip" and "gif": path})."""
    first = wanted[0]
    text = {**metadata, "prompt": first.prompt, "seed": str(first.seed), "frames": str(len(images))}
    name = f"{slug(first.prompt)}-{first.seed}"
    if first.to_prompt is not None:
        text["to_prompt"] = first.to_prompt
        name += f"-to-{slug(first.to_prompt)}"
    if first.to_seed is not None:
        text["to_seed"] = str(first.to_seed)
        name += f"-to-{first.to_seed}"
    written = {}
    if not one_file or out.suffix.lower() == ".png":
        strip = grid(images, columns=len(images))
        written["strip"] = str(write_png(strip, out if one_file else out / f"{name}-strip.png", text, exact=one_file))
    if not one_file or out.suffix.lower() == ".gif":
        written["gif"] = str(write_gif(images, out if one_file else out / f"{name}.gif", text, exact=one_file))
    return [], written
