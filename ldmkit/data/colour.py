"""What a picture says of its colours, brought to sRGB: an ICC profile, or a PNG's own chunks."""

import io
import struct
from collections.abc import Callable, Mapping
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

Floats = NDArray[np.float32]
Conversion = Callable[[Image.Image, Image.Image | None], Image.Image]
"""(picture, the low bytes of 16-bit samples or None) -> RGB picture, each pixel for itself"""

_ICC_SPACES = {"RGB": "RGB ", "L": "GRAY", "CMYK": "CMYK"}
_AS_SRGB = 2
"""levels by which a profile may differ from sRGB and still be it: as many as its makers' rounding"""
_SRGB_PRIMARIES = (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)
"""x and y of white, red, green and blue, as cHRM has them"""
_PRIMARIES = {
    1: _SRGB_PRIMARIES,
    9: (0.3127, 0.329, 0.708, 0.292, 0.17, 0.797, 0.131, 0.046),
    12: (0.3127, 0.329, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06),
}
"""ITU-T H.273, table 2, by number: BT.709, BT.2020 and Display P3"""
_GAMMAS = {4: 2.2, 5: 2.8, 8: 1.0}
"""H.273, table 3: transfer functions that are plain powers; 13 is sRGB's"""


def conversion(profile: bytes | None, chunks: Mapping[bytes, bytes], mode: str, notes: set[str]) -> Conversion | None:
    """To sRGB from what a picture in `mode` (RGB, L or CMYK) is said to be in; None where it is sRGB already.

    In the order of the PNG standard (third edition, clause 4.3): cICP, profile, sRGB, gAMA with cHRM. What is said and
    cannot be followed is added to `notes`; the values are taken as sRGB then, as every viewer does.
    """
    cicp = chunks.get(b"cICP", b"")
    if len(cicp) == 4:
        primaries, gamma = _PRIMARIES.get(cicp[0]), _GAMMAS.get(cicp[1])
        if primaries is None or (gamma is None and cicp[1] != 13) or cicp[2] != 0 or cicp[3] != 1:
            notes.add(f"its colour space (cICP {'/'.join(map(str, cicp))}) is not followed; it is taken as sRGB")
            return None
        return _by_curve(primaries, gamma)
    if profile is not None:
        usable, transform = _icc_transform(profile, mode)
        if not usable:
            notes.add("its colour profile cannot be used")
        return transform
    if b"sRGB" in chunks or len(chunks.get(b"gAMA", b"")) != 4:
        return None
    (inverse,) = struct.unpack(">I", chunks[b"gAMA"])
    if not 1_000 <= inverse <= 1_000_000:
        notes.add(f"its gamma (gAMA {inverse}) is not followed; it is taken as sRGB")
        return None
    # 1 / 2.2 is how a gAMA says sRGB, clause 11.3.2.4, and software has rounded it in several ways.
    gamma = None if 44_000 <= inverse <= 47_000 else 100_000 / inverse
    primaries = _SRGB_PRIMARIES
    if len(chunks.get(b"cHRM", b"")) == 32:
        told = np.array(struct.unpack(">8I", chunks[b"cHRM"])) / 100_000
        differs = np.abs(told - _SRGB_PRIMARIES) > 0.005
        if differs.any():
            # By far most have D65 as their white: another one would ask for adaptation to it.
            if differs[:2].any() or (told[3::2] <= 0).any() or np.linalg.cond(_to_xyz(tuple(told))) > 100:
                notes.add("its primaries (cHRM) are not followed; they are taken as sRGB's")
            else:
                primaries = tuple(told)
    return _by_curve(primaries, gamma)


def _by_curve(primaries: tuple[float, ...], gamma: float | None) -> Conversion | None:
    """From RGB with these primaries and a power law, or sRGB's curve where `gamma` is None."""
    if primaries == _SRGB_PRIMARIES and gamma is None:
        return None
    matrix = np.linalg.solve(_to_xyz(_SRGB_PRIMARIES), _to_xyz(primaries)).astype(np.float32)

    def convert(image: Image.Image, low: Image.Image | None) -> Image.Image:
        values = _values(image, low) / 255
        linear = (
            values**gamma if gamma else np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
        )
        if image.mode == "RGB" and primaries != _SRGB_PRIMARIES:
            linear = np.clip(linear @ matrix.T, 0, 1)
        encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)  # IEC 61966-2-1
        return _picture(encoded * 255)

    return convert


def _to_xyz(primaries: tuple[float, ...]) -> NDArray[np.float64]:
    """(3, 3) linear RGB to XYZ, white as bright as 1 (SMPTE RP 177)."""
    xy = np.array(primaries).reshape(4, 2)
    white, *colours = np.column_stack([xy[:, 0] / xy[:, 1], np.ones(4), (1 - xy.sum(1)) / xy[:, 1]])
    columns = np.array(colours).T
    matrix: NDArray[np.float64] = columns * (np.linalg.pinv(columns) @ white)
    return matrix


@lru_cache(maxsize=16)
def _icc_transform(profile: bytes, mode: str) -> tuple[bool, Conversion | None]:
    """Whether the profile that a picture carries can be used, and the way to sRGB; none where it is sRGB already.

    Judged by what it does and not by its name: there are linear ones that are called sRGB.
    """
    try:
        source, target = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
        if source.profile.xcolor_space != _ICC_SPACES[mode]:
            return False, None
        # Little CMS makes a table of a few greys of a grey profile, which is 9 levels off where it is dark.
        flags = ImageCms.Flags.NOOPTIMIZE if mode == "L" else ImageCms.Flags.NONE
        transform = ImageCms.buildTransform(source, target, mode, "RGB", flags=flags)
        if mode != "CMYK":
            # By the colorimetric intent: the perceptual one of sRGB's own v4 profile changes what is sRGB already.
            exact = ImageCms.buildTransform(source, target, mode, "RGB", ImageCms.Intent.RELATIVE_COLORIMETRIC)
            levels = np.arange(0, 256, 15, dtype=np.uint8)
            lattice = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(-1, 18, 3)
            probe = Image.fromarray(lattice if mode == "RGB" else np.arange(256, dtype=np.uint8)[None])
            change = np.asarray(exact.apply(probe), dtype=int) - np.asarray(probe.convert("RGB"), dtype=int)
            if np.abs(change).max() <= _AS_SRGB:
                return True, None
    except (OSError, ImageCms.PyCMSError):
        return False, None

    def applied(values: Floats) -> Floats:
        """Whole numbers (H, W, C) to sRGB (H, W, 3)."""
        levels = values.astype(np.uint8)
        found = transform.apply(Image.fromarray(levels[..., 0] if mode == "L" else levels))
        return np.asarray(found, dtype=np.float32)

    def convert(image: Image.Image, low: Image.Image | None) -> Image.Image:
        if low is None:
            return transform.apply(image)
        # Pillow's profiles take 8 bits: between them each channel's own change is added in its share.
        values = _values(image, low)
        below = np.floor(values)
        base = applied(below)
        found = base
        for channel in range(values.shape[2]):
            above = below.copy()
            above[..., channel] = np.minimum(above[..., channel] + 1, 255)
            share: Floats = (values - below)[..., channel, None]
            found = (found + share * (applied(above) - base)).astype(np.float32)
        return _picture(found)

    return True, convert


def _values(image: Image.Image, low: Image.Image | None) -> Floats:
    """(H, W, C) in [0, 255], with fractions where there are 16 bits."""
    values = np.asarray(image, dtype=np.float32)
    if low is not None:
        values = ((values * 256 + np.asarray(low, dtype=np.float32)) / 257).astype(np.float32)
    return values.reshape(image.height, image.width, -1)


def _picture(values: Floats) -> Image.Image:
    """RGB of (H, W, 3), or of greys (H, W, 1), in [0, 255]."""
    whole = np.clip(values + 0.5, 0, 255).astype(np.uint8)
    return Image.fromarray(np.broadcast_to(whole, (*whole.shape[:2], 3)).copy())
