"""Decodes one picture to sRGB, whatever it comes as, and makes it square.

What a plain `convert("RGB")` gets wrong is done here first: 16-bit greys, alpha, colour profiles, EXIF rotation.
"""

import io
import struct
import threading
import warnings
import zlib
from collections.abc import Callable
from contextlib import nullcontext
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError, features

from ldmkit.errors import LdmkitError

T = TypeVar("T")
FORMATS: tuple[str, ...] = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jfif", ".jpe", ".mpo", ".png", ".apng", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
)
if features.check("avif"):  # Pillow 11.3 or newer, in its own wheels
    FORMATS, SUFFIXES = (*FORMATS, "AVIF"), SUFFIXES | {".avif"}
if find_spec("pillow_heif"):
    import_module("pillow_heif").register_heif_opener()
    FORMATS, SUFFIXES = (*FORMATS, "HEIF"), SUFFIXES | {".heic", ".heif"}
MAX_BYTES = 256 * 2**20
# Below the size at which Pillow itself warns of a decompression bomb, a warning that is silenced here.
MAX_PIXELS = 80_000_000
# Pillow takes 4 bytes a pixel, so that the largest picture and its copy are 640 MB: pictures above this wait for one
# another, and colours are converted a band at a time.
_LARGE = 8_000_000
_BAND = 2_000_000
# Blocks that the C library maps and gives back one by one: smaller ones it would keep, for each thread of a scan.
Image.core.set_block_size(64 * 2**20)  # type: ignore[attr-defined] # of Pillow's manual, "Block allocator"
LARGE_BYTES = 32 * 2**20
one_large = threading.RLock()
"""held by whoever reads a file above LARGE_BYTES or decodes a picture above _LARGE"""

# Adam7, ISO/IEC 15948, clause 8.2: first column, first row, steps to the right and down of each pass.
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_PNG_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""colour type -> samples a pixel"""
_ALPHA_MODES = ("LA", "PA", "RGBA", "La", "RGBa")
_ICC_SPACES = {"RGB": "RGB ", "L": "GRAY", "CMYK": "CMYK"}


class DecodeError(Exception):
    """A file that is no usable picture; the message is the reason, without the file's name."""


def load_picture(path: Path) -> Image.Image:
    """The whole picture as 8-bit sRGB (mode RGB), upright, on white where it is transparent.

    Of several frames the first. Raises LdmkitError where it is not a picture of an allowed format, is cut off, or is
    larger than MAX_BYTES or MAX_PIXELS.
    """
    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise LdmkitError(f"{path}: cannot be read: {error.strerror or error}") from error
    try:
        return decode(data)[0]
    except DecodeError as error:
        raise LdmkitError(f"{path}: {error}") from error


def decode(data: bytes) -> tuple[Image.Image, str | None]:
    """A file's bytes to (RGB picture, note); the note says what of the file is lost or taken on trust.

    May be called by several threads at once. Raises DecodeError.
    """
    return _decoded(data, lambda image: image)


def measure(data: bytes) -> tuple[tuple[int, int], str | None]:
    """((width, height), note) of a file's bytes, decoded as `decode` does and let go of. Raises DecodeError."""
    return _decoded(data, lambda image: image.size)


def _decoded(data: bytes, result: Callable[[Image.Image], T]) -> tuple[T, str | None]:
    # Pillow's remarks on odd metadata. Never taken back: where threads end a catch_warnings in another order than they
    # began it, what one of them set stays for all.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    if not data:
        raise DecodeError("an empty file")
    if len(data) > MAX_BYTES:
        raise DecodeError(f"larger than {MAX_BYTES // 2**20} MiB")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as header:
            width, height = header.size
        if width * height > MAX_PIXELS:
            raise DecodeError(f"{width}x{height} pixels, more than {MAX_PIXELS:,} in all")
        with one_large if width * height > _LARGE else nullcontext():
            return _decode_whole(data, result)  # whose pictures are gone before the lock is
    except DecodeError:
        raise
    except Image.DecompressionBombError as error:
        raise DecodeError(f"more than {MAX_PIXELS:,} pixels") from error
    except UnidentifiedImageError as error:
        raise DecodeError(f"not a {', '.join(FORMATS[:-1])} or {FORMATS[-1]} picture") from error
    except Exception as error:  # a broken file leads Pillow's decoders to almost any exception
        raise DecodeError(f"damaged ({str(error) or type(error).__name__})") from error


def _decode_whole(data: bytes, result: Callable[[Image.Image], T]) -> tuple[T, str | None]:
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        # MPO is a phone's JPEG: what follows its picture is a thumbnail or a depth map.
        animated = getattr(image, "is_animated", False) and image.format != "MPO"
        image.seek(0)
        image.load()
        notes = {"has several frames; the first is used"} if animated else set()
        if image.format == "PNG" and _ends_in_nothing(image) and _lacks_pixels(data):
            raise DecodeError("damaged (its last rows are missing)")
        if image.format in ("JPEG", "MPO") and _ends_in_grey(image):
            notes.add("ends in plain grey, as a damaged JPEG does")
        file_format = image.format
        ImageOps.exif_transpose(image, in_place=True)
        whole = Image.new("RGB", image.size)
        rows = max(1, _BAND // image.width)
        for top in range(0, image.height, rows):
            band = image.crop((0, top, image.width, min(top + rows, image.height)))
            whole.paste(_to_srgb(band, file_format, notes), (0, top))
        return result(whole), "; ".join(sorted(notes)) or None


def _ends_in_grey(image: Image.Image) -> bool:
    """Whether the lowest 8 rows, but not all, are the grey that libjpeg fills in where a file with an end has no more
    data; Pillow passes its warning on to nobody."""
    lowest = image.crop((0, max(0, image.height - 8), image.width, image.height))
    return all(pair == (128, 128) for pair in _extrema(lowest)) and any(pair != (128, 128) for pair in _extrema(image))


def _ends_in_nothing(image: Image.Image) -> bool:
    """Whether one of the last two rows is all zeros, as rows are that were never decoded: of an interlaced PNG the
    odd ones come last."""
    lowest = [image.crop((0, y, image.width, y + 1)) for y in range(max(0, image.height - 2), image.height)]
    return any(all(highest == 0 for _, highest in _extrema(row)) for row in lowest)


def _lacks_pixels(data: bytes) -> bool:
    """Whether the data of a PNG that was decoded without an error unpack to fewer bytes than its header promises.

    Pillow leaves the rows black that a stream with a proper end does not bring.
    """
    width, height, bits, color_type, _, _, interlaced = struct.unpack(">IIBBBBB", data[16:29])
    promised = 0
    for left, top, right, down in _ADAM7 if interlaced else ((0, 0, 1, 1),):
        columns, rows = -(-(width - left) // right), -(-(height - top) // down)
        if columns > 0 and rows > 0:  # a filter's byte before each row
            promised += rows * (1 + -(-columns * bits * _PNG_SAMPLES[color_type] // 8))
    inflate = zlib.decompressobj()
    position, found = 8, 0
    while position + 8 <= len(data) and found < promised:
        length = struct.unpack(">I", data[position : position + 4])[0]
        if data[position + 4 : position + 8] == b"IDAT":
            packed = data[position + 8 : position + 8 + length]
            while packed and found < promised:
                found += len(inflate.decompress(packed, 2**20))
                packed = inflate.unconsumed_tail
        position += 12 + length
    return found < promised


def _extrema(image: Image.Image) -> list[tuple[float, float]]:
    """(lowest, highest) of each channel."""
    return [channel.getextrema() for channel in image.split()]  # type: ignore[misc] # of one channel it is one pair


def _to_srgb(image: Image.Image, file_format: str | None, notes: set[str]) -> Image.Image:
    """A picture, or a band of one: each pixel for itself. Adds to `notes` what is lost."""
    profile = image.info.get("icc_profile")
    alpha: Image.Image | None = None
    if image.mode.startswith("I"):
        image, alpha = _scale_16_bit(image, file_format)
        profile = None
    elif image.mode == "F":
        raise DecodeError("pixels are floating-point numbers, whose range is not known")
    elif image.mode in _ALPHA_MODES or "transparency" in image.info:
        rgba = image.convert("RGBA")
        alpha, image = rgba.getchannel("A"), rgba.convert("RGB")
    elif image.mode not in _ICC_SPACES:
        image = image.convert("RGB")

    transform = None
    if profile:
        usable, transform = _srgb_transform(profile, image.mode)
        if not usable:
            notes.add("its colour profile cannot be used")
    if transform is not None:
        image = transform.apply(image)
    elif image.mode == "CMYK":
        notes.add("CMYK without a colour profile; its colours are estimated")
    image = image.convert("RGB")
    if alpha is None or alpha.getextrema() == (255, 255):
        return image
    notes.add("has transparent parts; they are laid on white")
    return Image.composite(image, Image.new("RGB", image.size, "white"), alpha)


def _scale_16_bit(image: Image.Image, file_format: str | None) -> tuple[Image.Image, Image.Image | None]:
    """16-bit greys to 8 bits, and alpha where the file names one grey as transparent."""
    # Older Pillows open a 16-bit PNG as 32-bit integers; a TIFF in mode I really has 32 bits.
    if image.mode == "I" and file_format != "PNG":
        raise DecodeError("pixels are 32-bit integers, whose range is not known")
    values = np.asarray(image).astype(np.uint32)
    grey = Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
    transparent = image.info.get("transparency")
    if not isinstance(transparent, int):
        return grey, None
    return grey, Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8))


@lru_cache(maxsize=16)
def _srgb_transform(profile: bytes, mode: str) -> tuple[bool, ImageCms.ImageCmsTransform | None]:
    """Whether the profile that a picture carries can be used, and the transform to sRGB; none where it is sRGB already.

    Without a usable profile the values are taken as sRGB, as every viewer does.
    """
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if source.profile.xcolor_space != _ICC_SPACES[mode]:
            return False, None
        if (source.profile.profile_description or "").startswith("sRGB"):
            return True, None
        return True, ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
    except (OSError, ImageCms.PyCMSError):
        return False, None


def prepare(image: Image.Image, size: int, crop: Literal["center", "squash"] = "center") -> NDArray[np.uint8]:
    """RGB picture to (size, size, 3) uint8, by Lanczos.

    `center` keeps the aspect ratio and cuts the longer side on both ends, `squash` distorts.
    """
    width, height = image.size
    if crop == "squash":
        box = (0.0, 0.0, float(width), float(height))
    else:
        # Cut and scaled in one go, so that a picture of 10 x 60000 pixels is never blown up as a whole.
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        box = (left, top, left + side, top + side)
    return np.asarray(image.resize((size, size), Image.Resampling.LANCZOS, box=box))
