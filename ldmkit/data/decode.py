"""Decodes one picture to sRGB, whatever it comes as, and brings it to a size.

What a plain `convert("RGB")` gets wrong is done here first: 16-bit greys, alpha, colour profiles, EXIF rotation.
"""

import io
import sys
import threading
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError, features

from ldmkit.data import jpeg, png, tiff, webp
from ldmkit.data.colour import conversion
from ldmkit.data.looks import GLANCE, HASHED, Look
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
PIXELS_VERSION = 1
"""raised whenever `decode` or `prepare` gives other pixels"""
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

_ALPHA_MODES = ("LA", "PA", "RGBA", "La", "RGBa")
_LUMA = np.array([0.299, 0.587, 0.114])
_GREYS = ("1", "L", "LA", "La")
_TURNS = dict(
    zip(
        range(2, 9),
        (
            Image.Transpose.FLIP_LEFT_RIGHT,
            Image.Transpose.ROTATE_180,
            Image.Transpose.FLIP_TOP_BOTTOM,
            Image.Transpose.TRANSPOSE,
            Image.Transpose.ROTATE_270,
            Image.Transpose.TRANSVERSE,
            Image.Transpose.ROTATE_90,
        ),
        strict=True,
    )
)
_SIDEWAYS = [_TURNS[orientation] for orientation in (5, 6, 7, 8)]


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
    return load_bytes(data, str(path))


def load_bytes(data: bytes, name: str) -> Image.Image:
    """As `load_picture`, of a file's bytes; `name` is for the error."""
    try:
        return decode(data)[0]
    except DecodeError as error:
        raise LdmkitError(f"{name}: {error}") from error


def decode(data: bytes) -> tuple[Image.Image, str | None]:
    """A file's bytes to (RGB picture, note); the note says what of the file is lost or taken on trust.

    May be called by several threads at once. Raises DecodeError.
    """
    return _decoded(data, lambda image: image)


def measure(data: bytes) -> tuple[tuple[int, int], str | None]:
    """((width, height), note) of a file's bytes as `decode` gives them. Raises DecodeError."""
    size, note, _ = glance(data, sharpness=False)
    return size, note


def glance(data: bytes, *, sharpness: bool) -> tuple[tuple[int, int], str | None, Look]:
    """((width, height), note, look) of a file's bytes as `decode` gives them. Raises DecodeError."""

    def of_sound_jpeg(data: bytes, pixels: NDArray[np.uint8], notes: set[str]) -> tuple[Any, str | None]:
        size, turn, note = _header(data, notes)
        grey = pixels[..., 0]
        if pixels.shape[2] == 4:  # Adobe's four inks, of which 255 is none
            grey = (pixels[..., :3] @ _LUMA * pixels[..., 3] / 255).astype(np.uint8)
        image = Image.fromarray(grey)
        return (size, Look.at(image if turn is None else image.transpose(turn), sharpness=sharpness)), note

    def of_others(image: Image.Image) -> Any:
        return image.size, Look.at(image, sharpness=sharpness)

    (size, look), note = _decoded(data, of_others, of_sound_jpeg, GLANCE if sharpness else HASHED)
    return size, note, look


def _decoded(
    data: bytes,
    result: Callable[[Image.Image], T],
    of_sound_jpeg: Callable[[bytes, NDArray[np.uint8], set[str]], tuple[T, str | None]] | None = None,
    side: int = 1,
) -> tuple[T, str | None]:
    """`of_sound_jpeg` makes the result of a JPEG that libjpeg has decoded without a remark, of its pixels reduced down
    to `side`."""
    # Pillow's remarks on odd metadata. Never taken back: where threads end a catch_warnings in another order than they
    # began it, what one of them set stays for all.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    if not data:
        raise DecodeError("an empty file")
    if len(data) > MAX_BYTES:
        raise DecodeError(f"larger than {MAX_BYTES // 2**20} MiB")
    chunks, notes = dict[bytes, bytes](), set[str]()
    try:
        if data.startswith(png.SIGNATURE):
            data, chunks, notes = png.slimmed(data)
        with Image.open(io.BytesIO(data), formats=FORMATS) as header:
            (width, height), file_format = header.size, header.format
        if width * height > MAX_PIXELS:
            raise DecodeError(f"{width}x{height} pixels, more than {MAX_PIXELS:,} in all")
        with one_large if width * height > _LARGE else nullcontext():
            if file_format in ("JPEG", "MPO"):
                data, note, pixels = jpeg.mended(data, side)
                if of_sound_jpeg and pixels is not None and note is None:
                    return of_sound_jpeg(data, pixels, notes)
                notes |= {note} if note else set()
            if file_format == "WEBP" and webp.holds_zeros(data):
                raise DecodeError("damaged (a part of its data is zeros)")
            return _decode_whole(data, chunks, notes, result)  # whose pictures are gone before the lock is
    except DecodeError:
        raise
    except Image.DecompressionBombError as error:
        raise DecodeError(f"more than {MAX_PIXELS:,} pixels") from error
    except UnidentifiedImageError as error:
        raise DecodeError(f"not a {', '.join(FORMATS[:-1])} or {FORMATS[-1]} picture") from error
    except Exception as error:  # a broken file leads Pillow's decoders to almost any exception
        raise DecodeError(f"damaged ({str(error) or type(error).__name__})") from error


def _header(data: bytes, notes: set[str]) -> tuple[tuple[int, int], Image.Transpose | None, str | None]:
    """((width, height) upright, what makes it so, note) of a JPEG; the note on its colours depends on its header."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        turn = turn_of(image, notes)
        profile = image.info.get("icc_profile")
        _to_srgb(Image.new(image.mode, (1, 1)), None, image.format, (profile, {}), notes)
        size = image.size[::-1] if turn in _SIDEWAYS else image.size
        return size, turn, "; ".join(sorted(notes)) or None


def _decode_whole(
    data: bytes, chunks: Mapping[bytes, bytes], notes: set[str], result: Callable[[Image.Image], T]
) -> tuple[T, str | None]:
    image, low, file_format, profile = _upright(data, chunks, notes)
    whole = Image.new("RGB", image.size)
    rows = max(1, _BAND // image.width)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        band = _to_srgb(image.crop(box), low and low.crop(box), file_format, (profile, chunks), notes)
        whole.paste(band, (0, top))
    return result(whole), "; ".join(sorted(notes)) or None


def _upright(
    data: bytes, chunks: Mapping[bytes, bytes], notes: set[str]
) -> tuple[Image.Image, Image.Image | None, str | None, bytes | None]:
    """(picture, the low bytes of its samples where they matter, format, profile) of a file, in the file's colours."""
    low = None
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        # MPO is a phone's JPEG: what follows its picture is a thumbnail or a depth map.
        if getattr(image, "is_animated", False) and image.format != "MPO":
            notes.add("has several frames; the first is used")
        image.seek(0)
        tiff.correct_planes(image)
        for stream in tiff.jpeg_streams(image, data):
            jpeg.mended(stream)
        bits_16 = image.mode in ("RGB", "RGBA") and any(";16" in str(tile.args) for tile in image.tile)
        tiff.load(image, notes)
        profile = chunks.get(b"iCCP") or image.info.get("icc_profile")
        if bits_16 and (profile or chunks.keys() & {b"tRNS", b"cICP", b"gAMA"}):
            low = _low_bytes(data)
        if image.format == "PNG":
            if _ends_in_nothing(image) and png.lacks_pixels(data):
                raise DecodeError("damaged (its last rows are missing)")
            bits = data[24]
            if image.mode == "L" and bits < 8 and isinstance(image.info.get("transparency"), int):
                image.info["transparency"] *= 255 // (2**bits - 1)  # as Pillow scales the samples, but not this one
        turn = turn_of(image, notes)
        if turn is None:
            return image, low, image.format, profile
        return image.transpose(turn), low and low.transpose(turn), image.format, profile


def _low_bytes(data: bytes) -> Image.Image:
    """The lower halves of 16-bit samples, of which Pillow keeps the upper: read the other way round."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        tiff.correct_planes(image)
        native = {"little": "B", "big": "L"}[sys.byteorder]
        swapped = {";16L": ";16B", ";16B": ";16L", ";16N": f";16{native}"}
        tiles = []
        for tile in image.tile:
            args = tile.args if isinstance(tile.args, tuple) else (tile.args,)
            tiles.append(tile._replace(args=(args[0][:-4] + swapped[args[0][-4:]], *args[1:])))
        image.tile = tiles
        tiff.load(image, set())
        return image.copy()


def turn_of(image: Image.Image, notes: set[str]) -> Image.Transpose | None:
    """What makes the picture upright (Exif 2.3, tag 0x0112); Pillow's own way writes all of the EXIF anew for it."""
    try:
        orientation = image.getexif().get(0x0112)
    except Exception:  # EXIF that is broken leads Pillow to almost any exception
        notes.add("its EXIF cannot be read; it is not turned")
        return None
    return _TURNS.get(orientation)  # type: ignore[arg-type] # whatever else the tag holds is in no dictionary


def _ends_in_nothing(image: Image.Image) -> bool:
    """Whether one of the last two rows is all zeros, as rows are that were never decoded: of an interlaced PNG the
    odd ones come last."""
    lowest = [image.crop((0, y, image.width, y + 1)) for y in range(max(0, image.height - 2), image.height)]
    return any(all(highest == 0 for _, highest in _extrema(row)) for row in lowest)


def _extrema(image: Image.Image) -> list[tuple[float, float]]:
    """(lowest, highest) of each channel."""
    return [channel.getextrema() for channel in image.split()]  # type: ignore[misc] # of one channel it is one pair


def _to_srgb(
    image: Image.Image,
    low: Image.Image | None,
    file_format: str | None,
    said: tuple[bytes | None, Mapping[bytes, bytes]],
    notes: set[str],
) -> Image.Image:
    """A picture, or a band of one: each pixel for itself. Adds to `notes` what is lost.

    `low`: the lower halves of its samples where it has 16 bits and they matter; `said`: its profile and PNG chunks.
    """
    alpha: Image.Image | None = None
    clear = image.info.get("transparency")
    grey = bool(said[0]) and said[0][16:20] == b"GRAY"  # type: ignore[index] # one that is there
    if image.mode.startswith("I"):
        image, low, alpha = _split_16_bit(image, file_format)
    elif image.mode == "F":
        raise DecodeError("pixels are floating-point numbers, whose range is not known")
    elif low is not None and isinstance(clear, tuple):
        values = np.asarray(image).astype(np.uint16) << 8 | np.asarray(low)
        alpha = Image.fromarray(np.where((values == clear).all(axis=2), 0, 255).astype(np.uint8))
    elif image.mode in _ALPHA_MODES or clear is not None:
        rgba = image.convert("RGBA")
        alpha, image = rgba.getchannel("A"), rgba.convert("L" if grey and image.mode in _GREYS else "RGB")
        low = low and low.convert("RGB")
    elif image.mode not in ("RGB", "L", "CMYK"):
        image = image.convert("L" if grey and image.mode in _GREYS else "RGB")

    convert = conversion(*said, image.mode, notes)
    if convert is not None:
        image = convert(image, low)
    elif image.mode == "CMYK":
        notes.add("CMYK without a colour profile; its colours are estimated")
    elif image.mode == "L" and low is not None:
        values = np.asarray(image).astype(np.uint32) << 8 | np.asarray(low)
        image = Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
    image = image.convert("RGB")
    if alpha is None or alpha.getextrema() == (255, 255):
        return image
    notes.add("has transparent parts; they are laid on white")
    return Image.composite(image, Image.new("RGB", image.size, "white"), alpha)


def _split_16_bit(image: Image.Image, file_format: str | None) -> tuple[Image.Image, Image.Image, Image.Image | None]:
    """16-bit greys as their upper and lower bytes, and alpha where the file names one grey as transparent."""
    # Older Pillows open a 16-bit PNG as 32-bit integers; a TIFF in mode I really has 32 bits.
    if image.mode == "I" and file_format != "PNG":
        raise DecodeError("pixels are 32-bit integers, whose range is not known")
    values = np.asarray(image).astype(np.uint32)
    high, low = (Image.fromarray(part.astype(np.uint8)) for part in (values >> 8, values & 255))
    transparent = image.info.get("transparency")
    if not isinstance(transparent, int):
        return high, low, None
    return high, low, Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8))


def prepare(
    image: Image.Image, shape: tuple[int, int], crop: Literal["center", "squash"] = "center"
) -> NDArray[np.uint8]:
    """RGB picture to (H, W, 3) uint8, by Lanczos; `shape`: W, H.

    `center` keeps the aspect ratio and cuts what is too long on both ends, `squash` distorts.
    """
    width, height = image.size
    if crop == "squash":
        box = (0.0, 0.0, float(width), float(height))
    else:
        # Cut and scaled in one go, so that a picture of 10 x 60000 pixels is never blown up as a whole.
        across, down = min(width, height * shape[0] / shape[1]), min(height, width * shape[1] / shape[0])
        left, top = (width - across) / 2, (height - down) / 2
        box = (left, top, left + across, top + down)
    return np.asarray(image.resize(shape, Image.Resampling.LANCZOS, box=box))
