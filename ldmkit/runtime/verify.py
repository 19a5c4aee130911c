"""Whether a bundle is whole, and draws here what it drew where it was exported. No torch."""

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from ldmkit.errors import LdmkitError
from ldmkit.runtime.bundle import Bundle
from ldmkit.runtime.manifest import (
    FILES,
    GOLDEN,
    GRAPHS,
    MANIFEST,
    TEXT_ENCODER,
    UNET_T2I,
    VAE_DECODER,
    VAE_ENCODER,
    Manifest,
)

SAME = 100.0
"""dB, said of two pictures without any difference"""
State = Literal["ok", "failed", "skipped"]


@dataclass(frozen=True)
class Check:
    """One thing that was looked at, and what was found."""

    name: str
    state: State
    words: str


def verify(folder: Path | str, *, provider: str = "auto") -> Iterator[Check]:
    """Each check of the bundle in `folder` as it is done: hashes, ONNX's own checker, shapes, the golden pictures.

    Raises LdmkitError where `folder` is no bundle at all.
    """
    bundle = Bundle.load(folder, provider=provider)
    graphs = [name for name in GRAPHS if name in bundle.manifest.files]
    checks: list[tuple[str, Callable[[], tuple[State, str]]]] = [
        ("files", partial(_files, bundle)),
        *((f"{name}: ONNX", partial(_onnx, bundle.folder / name)) for name in graphs),
        *((f"{name}: shapes", partial(_shapes, bundle, name)) for name in graphs),
        ("golden pictures", partial(_golden, bundle)),
    ]
    for name, check in checks:
        try:
            yield Check(name, *check())
        except LdmkitError as error:
            yield Check(name, "failed", str(error))


def psnr(picture: Image.Image, other: Image.Image) -> float:
    """Peak signal-to-noise ratio of two 8-bit pictures of one size, in dB; `SAME` where they are the same."""
    error = np.square(np.asarray(picture, dtype=np.float64) - np.asarray(other, dtype=np.float64)).mean()
    return min(SAME, 10 * math.log10(255**2 / error)) if error else SAME


def split_golden(sheet: Image.Image, width: int) -> list[Image.Image]:
    """The pictures that lie side by side in `golden.png`."""
    return [sheet.crop((x, 0, x + width, sheet.height)) for x in range(0, sheet.width, width)]


def _files(bundle: Bundle) -> tuple[State, str]:
    bundle.verify()
    known = {*FILES, MANIFEST}
    strange = sorted(path.name for path in bundle.folder.iterdir() if path.name not in known)
    unlisted = sorted(name for name in FILES if name not in bundle.manifest.files and (bundle.folder / name).exists())
    more = f"; not part of it: {', '.join([*unlisted, *strange])}" if unlisted or strange else ""
    own = f"; {MANIFEST} has none of its own" if bundle.manifest.sha256 is None else ""
    return "ok", f"{len(bundle.manifest.files) + (not own)} files match their SHA-256{own}{more}"


def _onnx(path: Path) -> tuple[State, str]:
    if find_spec("onnx") is None:
        return "skipped", "the package onnx is not installed"
    import onnx

    try:
        onnx.checker.check_model(str(path), full_check=True)  # by its path: weights may lie beside it
    except Exception as error:  # the checker's and protobuf's exceptions share no base class below Exception
        raise LdmkitError(f"{path}: onnx {onnx.__version__} refuses it: {error}") from error
    return "ok", f"checked by onnx {onnx.__version__}"


def _shapes(bundle: Bundle, name: str) -> tuple[State, str]:
    """Runs a graph at two batches, and at two sizes where it takes more than one."""
    latent = bundle.manifest.latent
    sizes = [(latent.height, latent.width)]
    if latent.multiple is not None and name != TEXT_ENCODER:
        sizes.append((latent.height + latent.multiple, latent.width + 2 * latent.multiple))
    told = []
    for batch in (1, 3):
        for height, width in sizes:
            inputs, wanted = _inputs(bundle.manifest, name, batch, height, width)
            output = bundle.run(name, **inputs)
            given = " ".join("x".join(map(str, array.shape)) for array in inputs.values() if array.ndim > 1)
            if output.shape != wanted:
                raise LdmkitError(f"{bundle.folder / name}: of {given} it makes {output.shape}, and not {wanted}")
            if not np.isfinite(output).all():
                raise LdmkitError(f"{bundle.folder / name}: of {given} it makes values that are not finite")
            told.append("x".join(map(str, wanted)))
    return "ok", ", ".join(told)


def _inputs(
    manifest: Manifest, name: str, batch: int, height: int, width: int
) -> tuple[dict[str, np.ndarray], tuple[int, ...]]:
    """Inputs of a graph for latents of this size, and the shape that must come out."""
    rng = np.random.Generator(np.random.PCG64(0))
    latents = (batch, manifest.latent.channels, height, width)
    pixels = (batch, 3, height * manifest.factor, width * manifest.factor)
    if name == VAE_DECODER:
        return {"latents": rng.standard_normal(latents, dtype=np.float32)}, pixels
    if name == VAE_ENCODER:
        return {"pixels": rng.uniform(-1, 1, pixels).astype(np.float32)}, latents
    text = manifest.text
    context = (batch, text.max_tokens, text.context_dim) if text else ()
    ones = np.ones(context[:2], dtype=np.int64)
    if name == TEXT_ENCODER:
        return {"ids": ones, "mask": ones}, context
    inputs = {"x_t": rng.standard_normal(latents, dtype=np.float32)}
    inputs["t"] = np.full(batch, manifest.schedule.num_timesteps // 2, dtype=np.float32)
    if name == UNET_T2I:
        inputs |= {"context": rng.standard_normal(context, dtype=np.float32), "context_mask": ones}
    return inputs, latents


def _golden(bundle: Bundle) -> tuple[State, str]:
    golden, (width, height) = bundle.manifest.golden, bundle.manifest.size
    if golden is None:
        return "skipped", "the bundle holds none"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a prompt that was cut at export as well
        drawn = bundle.generate(
            list(golden.prompts),
            seed=golden.seed,
            steps=golden.steps,
            guidance_scale=golden.guidance_scale,
            sampler=golden.sampler,
        )
    with Image.open(bundle.folder / GOLDEN) as sheet:
        if sheet.size != (width * len(golden.prompts), height):
            raise LdmkitError(
                f"{bundle.folder / GOLDEN} is {sheet.width}x{sheet.height}: not the pictures it should be"
            )
        found = [psnr(picture, wanted) for picture, wanted in zip(drawn, split_golden(sheet, width), strict=True)]
    words = f"{', '.join(f'{value:.1f}' for value in found)} dB of at least {golden.min_psnr:g}, on {bundle.provider}"
    if min(found) < golden.min_psnr:
        raise LdmkitError(f"{bundle.folder}: pictures come out otherwise than where it was exported: {words}")
    return "ok", words
