"""Reads a toy cat's attributes off its picture by colour and place alone: no network, nothing learned.

A picture may be of any size; it is read at 64x64. Colours are compared in CIELAB (CIE 15:2004, D65 white).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import binary_erosion, binary_propagation, map_coordinates

from ldmkit.data.toy_drawing import BACKGROUND, FUR, STRIPES, Color

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

ATTRIBUTES = ("fur", "eyes", "coat", "background")

# Hue angles (degrees in the a*b* plane) of irises, with the least chroma that counts: cream fur has yellow's hue.
_EYE_HUES = {
    "yellow": (84.0, 110.0, 45.0),
    "green": (115.0, 165.0, 25.0),
    "turquoise": (170.0, 230.0, 20.0),
    "blue": (250.0, 318.0, 28.0),
}
_LEAST_EYE_PIXELS = 6
_LEAST_FUR_PIXELS = 60
# Of the difference of L* between a fur and its stripes. Halfway but for blur: one pixel of it takes a third of that
# difference, and plain fur of autoencoders of 29 dB has up to 0.35 of it.
_STRIPE_SHARE = 0.4
_EYE_DISTANCE = 18.4  # between the centres of the eyes of an average face, in face units


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a picture shows; None where nothing could be read."""

    fur: str | None
    eyes: str | None
    coat: str
    background: str
    stripe_contrast: float
    """largest difference of L* along the forehead: what `coat` is decided by"""


def read_attributes(image: Image.Image) -> Reading:
    """The attributes of one picture, knowing nothing of what was asked for."""
    rgb = np.asarray(image.convert("RGB").resize((64, 64), Image.Resampling.BOX))
    lab = rgb_to_lab(rgb)  # (64, 64, 3)
    background, ground = _read_background(lab)
    face = ~ground
    fur = _read_fur(lab, face)
    eyes, eye_pixels = _read_eyes(lab, binary_erosion(face, border_value=1))
    contrast = _stripe_contrast(lab, eye_pixels)
    coat = "tabby" if contrast > _STRIPE_SHARE * _drawn_contrast(fur) else "plain"
    return Reading(fur=fur, eyes=eyes, coat=coat, background=background, stripe_contrast=contrast)


def rgb_to_lab(rgb: NDArray[np.uint8]) -> Floats:
    """sRGB (..., 3) uint8 to CIELAB (..., 3): L* in [0, 100], a* and b* in about [-110, 110]."""
    value = rgb.astype(np.float64) / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array(
        [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    )
    xyz = linear @ to_xyz.T / np.array([0.95047, 1.0, 1.08883])
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], axis=-1)


def _distances(lab: Floats, palette: Mapping[str, Color]) -> Floats:
    colors = rgb_to_lab(np.array(list(palette.values()), dtype=np.uint8))  # (N, 3)
    return np.asarray(np.linalg.norm(lab[..., None, :] - colors, axis=-1), dtype=np.float64)  # (..., N)


def _read_background(lab: Floats) -> tuple[str, Mask]:
    """The colour along the border above the shoulders, and every pixel that it reaches from there."""
    border = np.zeros(lab.shape[:2], dtype=bool)
    border[:3] = border[:40, :3] = border[:40, -3:] = True
    nearest = _distances(lab[border], BACKGROUND).argmin(axis=-1)
    index = int(np.bincount(nearest, minlength=len(BACKGROUND)).argmax())
    color = np.median(lab[border][nearest == index], axis=0)
    alike = np.linalg.norm((lab - color) * (0.6, 1, 1), axis=-1) < 20  # L* counts less: the wall is shaded
    return list(BACKGROUND)[index], binary_propagation(border & alike, mask=alike)


def _read_fur(lab: Floats, face: Mask) -> str | None:
    """The commonest fur among the pixels of forehead and cheeks; stripes count for the fur that bears them."""
    window = np.zeros_like(face)
    window[16:52, 10:54] = True
    pixels = lab[window & face]  # (P, 3)
    distance = np.concatenate([_distances(pixels, FUR), _distances(pixels, STRIPES)], axis=-1)  # (P, 2N)
    near = distance.min(axis=-1) < 18  # leaves out eyes, nose and blends
    if near.sum() < _LEAST_FUR_PIXELS:
        return None
    votes = np.bincount(distance[near].argmin(axis=-1), minlength=2 * len(FUR)).astype(np.float64)
    # A stripe alone names no fur: brown's are nearly black, black's are grey.
    total = votes[: len(FUR)] + 0.25 * votes[len(FUR) :]
    return list(FUR)[int(total.argmax())]


def _read_eyes(lab: Floats, face: Mask) -> tuple[str | None, Mask]:
    """The commonest iris hue among the saturated pixels of the face's middle, and those pixels."""
    window = np.zeros_like(face)
    window[20:52, 8:56] = True
    chroma = np.hypot(lab[..., 1], lab[..., 2])
    hue = np.degrees(np.arctan2(lab[..., 2], lab[..., 1])) % 360
    masks = {
        name: window & face & (hue > low) & (hue < high) & (chroma > least)
        for name, (low, high, least) in _EYE_HUES.items()
    }
    name = max(masks, key=lambda name: int(masks[name].sum()))
    return (name if masks[name].sum() >= _LEAST_EYE_PIXELS else None), masks[name]


def _drawn_contrast(fur: str | None) -> float:
    """Difference of L* between a fur and its stripes; the least of all where no fur was read."""
    colors = [(FUR[name], STRIPES[name]) for name in ([fur] if fur else FUR)]
    lab = rgb_to_lab(np.array(colors, dtype=np.uint8))  # (N, 2, 3)
    return float(np.abs(lab[:, 0, 0] - lab[:, 1, 0]).min())


def _stripe_contrast(lab: Floats, eye_pixels: Mask) -> float:
    """Largest difference of L* across the forehead, in the face's own frame as its eyes give it."""
    y, x = np.nonzero(eye_pixels)
    middle, across = np.array([32.0, 36.5]), np.array([1.0, 0.0])  # the average face, where no eyes were found
    left = x < x.mean() if len(x) else np.zeros(0, dtype=bool)
    if left.any() and not left.all():
        a = np.array([x[left].mean(), y[left].mean()])
        b = np.array([x[~left].mean(), y[~left].mean()])
        if 12 < np.linalg.norm(b - a) < 28:
            middle, across = (a + b) / 2, (b - a) / _EYE_DISTANCE
    up = np.array([across[1], -across[0]])
    offsets, heights = np.linspace(-6, 6, 25), np.linspace(8, 10.5, 6)
    points = middle + offsets[None, :, None] * across + heights[:, None, None] * up  # (6, 25, 2)
    brightness = map_coordinates(lab[..., 0], [points[..., 1], points[..., 0]], order=1, mode="nearest")  # bilinear
    profile = brightness.mean(axis=0)  # (25,)
    return float(profile.max() - profile.min())
