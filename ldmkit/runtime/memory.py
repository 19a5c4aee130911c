"""What pictures of a size take of a machine's memory at the very least: told before a graph runs for minutes."""

import ctypes
import json
import os
import sys
from collections.abc import Iterator
from typing import Any

from ldmkit.errors import LdmkitError
from ldmkit.runtime.manifest import Manifest

_BYTES = 4
"""of a float32"""


def check_memory(manifest: Manifest, latent_size: tuple[int, int], *, text: bool) -> None:
    """Before pictures of another size than the bundle's own are drawn; `text`: whether from prompts.

    Raises LdmkitError where this machine's memory cannot hold what one picture takes, with what it could.
    """
    from pydantic import ValidationError

    from ldmkit.recipe import Recipe  # what a stranger's manifest says is checked as any recipe is

    try:  # another version may have had keys that this one does not know
        recipe = Recipe.model_validate_json(json.dumps(manifest.recipe), extra="ignore")
    except ValidationError:
        return
    have, latent = total_memory(), manifest.latent
    if have is None or (need := least_memory(recipe, latent_size, text=text)) <= have:
        return
    factor, step = manifest.factor, latent.multiple or 1
    side = max(latent_size)
    while side > step and least_memory(recipe, (side, side), text=text) > have:
        side -= step
    height, width = (factor * length for length in latent_size)
    raise LdmkitError(
        f"size is {width}x{height}; one picture of it takes more than {need / 2**30:.0f} GiB of memory, of which this "
        f"machine has {have / 2**30:.0f}; squares of up to {side // step * step * factor} pixels may fit"
    )


def least_memory(recipe: Any, latent_size: tuple[int, int], *, text: bool) -> int:
    """Bytes of the largest tensors that one picture of these latents (height, width) goes through."""
    positions = latent_size[0] * latent_size[1]
    network = (recipe.t2i if text else recipe.unet) or recipe.t2i or recipe.unet
    return max(*_scores(network, positions), *_decoder(recipe.vae, positions))


def _scores(network: Any, positions: int) -> Iterator[int]:
    """Of the finest attention (heads, N, N), before and after the softmax: onnxruntime on a CPU holds both."""
    if network.use == "dit":
        tokens = positions // network.patch_size**2
    else:
        finest = min([*network.attention_levels, len(network.channels)])  # the middle, behind all levels, attends
        tokens = positions // 4 ** (finest - 1)
    yield 2 * _BYTES * getattr(network, "num_heads", 1) * tokens**2


def _decoder(vae: Any, positions: int) -> Iterator[int]:
    """Of its middle, which attends to all positions, and a convolution's input and output at its finest level."""
    if not vae.pretrained:  # whose network the recipe does not know
        yield 2 * _BYTES * positions**2
        yield 2 * _BYTES * vae.channels[0] * positions * 4 ** (len(vae.channels) - 1)
    yield 0


def total_memory() -> int | None:
    """Bytes of main memory; None where the system does not say."""
    if sys.platform == "win32":
        status = (ctypes.c_ulonglong * 8)()  # MEMORYSTATUSEX: its size and load, then bytes, all of them first
        ctypes.cast(status, ctypes.POINTER(ctypes.c_ulong))[0] = ctypes.sizeof(status)
        return int(status[1]) if ctypes.windll.kernel32.GlobalMemoryStatusEx(status) else None
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None
