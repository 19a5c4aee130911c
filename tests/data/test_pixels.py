"""Every decode against libvips, which shares no code with Pillow's own readers; damage, metadata, colours."""

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ldmkit.data.decode import DecodeError, decode, measure
from tests.corpus.picture_files import chunk, png, quilt, saved, tiff
from tests.data.test_decode import icc_profile

pyvips = pytest.importorskip("pyvips")

RNG = np.random.default_rng(7)
Y, X = np.mgrid[:72, :104]
RGB = np.stack([X * 2, Y * 3, (X + Y)], -1).astype(np.uint8) ^ RNG.integers(0, 8, (72, 104, 3), dtype=np.uint8)
PHOTO = Image.fromarray(RGB)
DEEP = RGB.astype(np.uint16) * 257 ^ RNG.integers(0, 256, RGB.shape, dtype=np.uint16)
RGBA = np.dstack([RGB, X.astype(np.uint8) * 2])


def by_vips(data: bytes) -> np.ndarray[Any, Any]:
    """(H, W, 3) uint8, upright, on white."""
    image = pyvips.Image.new_from_buffer(data, "").autorot()
    if image.get_typeof("icc-profile-data"):
        image = image.icc_transform("srgb", depth=8, intent="perceptual")
    image = image.colourspace("srgb")
    if image.hasalpha():
        image = image.flatten(background=255)
    return np.broadcast_to(image.cast("uchar").numpy().reshape(image.height, image.width, -1), (*Y.shape, 3))


def vips(array: np.ndarray[Any, Any], file: str, **options: Any) -> bytes:
    image = pyvips.Image.new_from_array(array)
    space = {1: "b-w", 2: "b-w", 3: "srgb", 4: "srgb"}[image.bands]
    deep = {"b-w": "grey16", "srgb": "rgb16"}[space]
    return image.copy(interpretation=deep if array.dtype == np.uint16 else space).write_to_buffer(file, **options)


def grey_profile(gamma: float) -> bytes:
    """ICC.1:2001, 6.3.2: a grey profile's curve is its kTRC."""
    return icc_profile(gamma, space=b"GRAY").replace(b"rTRC", b"kTRC")


LINEAR, LINEAR_GREY = icc_profile(1.0), grey_profile(1.8)
FILES: dict[str, bytes] = {
    **{f"jpeg {s}": saved(PHOTO, "JPEG", subsampling=s, quality=90) for s in ("4:4:4", "4:2:2", "4:2:0")},
    "jpeg progressive": saved(PHOTO, "JPEG", progressive=True),
    "jpeg coarse": saved(PHOTO, "JPEG", quality=15, optimize=True, restart_marker_blocks=3),
    "jpeg grey": saved(RGB[..., 0], "JPEG"),
    "jpeg in linear light": saved(PHOTO, "JPEG", icc_profile=LINEAR),
    "png": vips(RGB, ".png", interlace=True),
    "png palette": vips(RGB, ".png", palette=True, bitdepth=4),
    **{f"png grey {bits}": vips(RGB[..., 0], ".png", bitdepth=bits) for bits in (1, 2, 4)},
    "png 16": vips(DEEP, ".png"),
    "png grey 16": vips(DEEP[..., 0], ".png"),
    "png alpha": vips(RGBA, ".png"),
    "png grey alpha": vips(RGBA[..., 2:], ".png"),
    "png alpha 16": vips(np.dstack([DEEP, DEEP[..., 1]]), ".png"),
    "png grey profile": saved(RGB[..., 0], "PNG", icc_profile=LINEAR_GREY),
    "png grey alpha profile": saved(Image.fromarray(RGBA[..., 2:], "LA"), "PNG", icc_profile=LINEAR_GREY),
    "webp": saved(PHOTO, "WEBP", quality=80),
    "webp alpha": saved(Image.fromarray(RGBA), "WEBP", lossless=True),
    "gif": vips(RGB, ".gif", interlace=True),
    **{f"tiff {c}": vips(RGB, ".tif", compression=c) for c in ("none", "lzw", "deflate", "packbits", "jpeg")},
    "tiff tiles": vips(
        RGB, ".tif", tile=True, tile_width=32, tile_height=16, compression="lzw", predictor="horizontal"
    ),
    "tiff raw tiles": vips(RGB, ".tif", tile=True, tile_width=32, tile_height=16),
    "tiff 16": vips(DEEP, ".tif", compression="deflate"),
    "tiff alpha": vips(RGBA, ".tif", compression="lzw"),
    "tiff white is zero": vips(RGB[..., 0], ".tif", miniswhite=True),
    "tiff fax": vips((RGB[..., 0] > 99) * np.uint8(255), ".tif", bitdepth=1, compression="ccittfax4"),
}
for orientation in range(1, 9):
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = saved(Image.fromarray(np.ascontiguousarray(RGB[:72, :72])), "JPEG", exif=exif)
    FILES[f"jpeg turned {orientation}"] = turned


@pytest.mark.parametrize("name", FILES)
def test_against_libvips(name: str) -> None:
    image, _ = decode(FILES[name])
    expected = by_vips(FILES[name]) if "turned" not in name else None
    if expected is None:
        expected = pyvips.Image.new_from_buffer(FILES[name], "").autorot().numpy()
    assert np.abs(np.asarray(image, dtype=int) - expected).max() <= 3
    assert measure(FILES[name]) == (image.size, decode(FILES[name])[1])


@pytest.mark.parametrize("byte_order", ["<", ">"])
@pytest.mark.parametrize("rows", [9, 72])
def test_planes_of_16_bits(byte_order: str, rows: int) -> None:
    """TIFF 6.0, PlanarConfiguration 2: first all strips of red, then of green, then of blue."""
    strips = 72 // rows * 3
    size = 104 * 2 * rows
    count = 12
    lists = 8 + 2 + count * 12 + 4
    fields = {256: 104, 257: 72, 262: 2, 259: 1, 277: 3, 278: rows, 284: 2}
    entries = [(tag, 4, 1, value) for tag, value in fields.items()]
    entries += [(258, 3, 3, lists), (273, 4, strips, lists + 6), (279, 4, strips, lists + 6 + 4 * strips)]
    entries += [(282, 4, 1, 72), (283, 4, 1, 72)]
    body = (b"II*\0" if byte_order == "<" else b"MM\0*") + struct.pack(byte_order + "IH", 8, count)
    body += b"".join(struct.pack(byte_order + "HHII", *entry) for entry in sorted(entries)) + bytes(4)
    start = lists + 6 + 8 * strips
    body += struct.pack(byte_order + "3H", 16, 16, 16)
    body += struct.pack(f"{byte_order}{strips}I", *(start + i * size for i in range(strips)))
    body += struct.pack(f"{byte_order}{strips}I", *[size] * strips)
    data = body + np.moveaxis(DEEP, 2, 0).astype(byte_order + "u2").tobytes()
    assert np.abs(np.asarray(decode(data)[0], dtype=int) - (DEEP >> 8)).max() <= 1


# --- damage -----------------------------------------------------------------------------------------------------------

NOISE = quilt(160, 160) ^ RNG.integers(0, 32, (160, 160, 3), dtype=np.uint8)
JPEGS = {
    "baseline": saved(NOISE, "JPEG", quality=90),
    "own tables": saved(NOISE, "JPEG", quality=90, optimize=True),
    "progressive": saved(NOISE, "JPEG", quality=90, progressive=True),
    "restarts": saved(NOISE, "JPEG", quality=90, restart_marker_rows=2),
}
OTHER = saved(NOISE // 2, "JPEG", quality=90)


@pytest.mark.parametrize("kind", JPEGS)
def test_damage_that_pillow_swallows(kind: str) -> None:
    whole = JPEGS[kind]
    size, half = len(whole), len(whole) // 2
    decode(whole)
    damaged = {
        "zero block": whole[:half] + bytes(1024) + whole[half + 1024 :],
        "zero tail": whole[:half] + bytes(size - half),
        "zero tail with an end": whole[:half] + bytes(size - half - 2) + b"\xff\xd9",
        "lost bytes": whole[:half] + whole[half + 700 :],
        "cut with an end": whole[:half] + b"\xff\xd9",
        "two downloads": whole[:half] + OTHER[len(OTHER) // 2 :],
        "cut": whole[:half],
    }
    for name, data in damaged.items():
        with pytest.raises(DecodeError, match="damaged"):
            raise AssertionError(f"{name}: {decode(data)[1]}")


def test_damage_of_other_formats(capfd: pytest.CaptureFixture[str]) -> None:
    for options in ({"compression": "tiff_lzw"}, {"compression": "tiff_adobe_deflate"}, {"compression": "jpeg"}):
        data = bytearray(saved(NOISE, "TIFF", strip_size=4096, **options))
        data[len(data) // 2 : len(data) // 2 + 600] = bytes(600)
        with pytest.raises(DecodeError, match=r"damaged \(.*(LZW|ZIP|Decod|data)"):
            decode(bytes(data))
    for lossless in (False, True):
        data = bytearray(saved(NOISE, "WEBP", lossless=lossless, quality=95))
        data[len(data) // 2 : len(data) // 2 + 4000] = bytes(4000)
        with pytest.raises(DecodeError, match="zeros"):
            decode(bytes(data))
    assert capfd.readouterr().err == ""  # libtiff's lines are in the reason, under the file's name


@pytest.mark.parametrize("kind", JPEGS)
def test_what_is_no_damage_of_a_jpeg(kind: str) -> None:
    whole = JPEGS[kind]
    expected = np.asarray(Image.open(io.BytesIO(whole)).convert("RGB"))
    odd = {
        "no end marker": whole[:-2],
        "stray": whole[:-2] + b"\1\2\3" * 4 + whole[-2:],
        "stray bytes": whole[:-2] + b"\x55" * 300 + whole[-2:],  # as cameras fill up a sector
        "bytes between": whole[:-2] + b"\x55" * 300 + b"\xff" * 3 + whole[-2:],  # T.81, B.1.1.2: before any marker
        None: whole + b"\0" * 999,  # what follows the end is another's
    }
    for words, data in odd.items():
        image, note = decode(data)
        assert (words in (note or "")) if words else note is None
        assert (np.asarray(image) == expected).all()


# --- metadata ---------------------------------------------------------------------------------------------------------


def test_metadata_cost_no_picture() -> None:
    large = b"Comment\0" + bytes(RNG.integers(32, 127, 2**21, dtype=np.uint8))
    bomb = b"Comment\0\0" + zlib.compress(bytes(50_000_000))
    packed = b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(bytes(2**21))
    checksum = chunk(b"tEXt", b"Title\0a cat")[:-1] + b"!"
    extras = {
        "too large": [chunk(b"tEXt", large), chunk(b"zTXt", bomb), chunk(b"iTXt", packed)],
        "damaged": [checksum, chunk(b"zTXt", b"Title\0\7no method"), chunk(b"zTXt", b"Title\0\0no stream")],
        "large (1": [chunk(b"iCCP", b"sRGB\0\0" + zlib.compress(icc_profile(1.0) + bytes(1_400_000)))],
    }
    row = bytes([55, 120, 200])
    for words, chunks in extras.items():
        for extra in chunks:
            image, note = decode(png(1, 1, 8, 2, [row], extra + chunk(b"tEXt", b"Title\0a cat")))
            assert words in (note or "")
            # The profile is honoured for all its size: linear light to sRGB.
            assert image.getpixel((0, 0)) == (tuple(row) if words != "large (1" else (128, 182, 229))


def test_exif_is_not_written_anew_to_turn_a_picture() -> None:
    """A rational of -1/0, as phones write, cannot be written; Exif 2.3: 0x0112 is 6, a quarter turn clockwise."""
    tags = [(0x0112, 3, 1, 6), (0x011A, 5, 1, 8 + 2 + 2 * 12 + 4)]
    block = tiff(tags, struct.pack("<ii", -1, 0))
    data = saved(RGB, "JPEG", exif=b"Exif\0\0" + block)
    assert (np.asarray(decode(data)[0]) == np.rot90(np.asarray(Image.open(io.BytesIO(data))), -1)).all()


# --- colour -----------------------------------------------------------------------------------------------------------


def encoded(linear: Any) -> np.ndarray[Any, Any]:
    """IEC 61966-2-1, in levels."""
    linear = np.clip(np.asarray(linear, dtype=float), 0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055) * 255


RAMP = np.arange(0, 65536, 257 * 3 + 40, dtype=np.uint16)
DEEP_RAMP = [b"".join(struct.pack(">3H", v, v, v) for v in RAMP.tolist())]


@pytest.mark.parametrize("name", [b"test\0", b"sRGB\0"])
def test_profile_is_judged_by_its_curves(name: bytes) -> None:
    """Linear light in 16 bits: the darkest of 8 are 13 levels apart."""
    profile = icc_profile(1.0).replace(b"test\0", name)
    deep = png(len(RAMP), 1, 16, 2, DEEP_RAMP, chunk(b"iCCP", b"x\0\0" + zlib.compress(profile)))
    assert np.abs(np.asarray(decode(deep)[0])[0] - encoded(RAMP / 65535)[:, None]).max() <= 2


def test_grey_of_16_bits_with_a_profile() -> None:
    profile = chunk(b"iCCP", b"x\0\0" + zlib.compress(grey_profile(1.0)))
    data = png(len(RAMP), 1, 16, 0, [RAMP.astype(">u2").tobytes()], profile)
    assert np.abs(np.asarray(decode(data)[0])[0] - encoded(RAMP / 65535)[:, None]).max() <= 2


P3_TO_SRGB = np.array([[1.2249, -0.2247, 0], [-0.0420, 1.0419, 0], [-0.0197, -0.0786, 1.0979]])  # W3C, CSS Color 4
DISPLAY_P3 = (31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000)
COLOURS = np.array([[200, 40, 90], [10, 250, 128], [128, 128, 128], [255, 255, 255], [30, 60, 200]], dtype=np.uint8)


@pytest.mark.parametrize(
    ("extra", "gamma", "matrix"),
    [
        (chunk(b"gAMA", struct.pack(">I", 100_000)), 1.0, np.eye(3)),
        (chunk(b"gAMA", struct.pack(">I", 55_556)), 1.8, np.eye(3)),
        (chunk(b"gAMA", struct.pack(">I", 100_000)) + chunk(b"cHRM", struct.pack(">8I", *DISPLAY_P3)), 1.0, P3_TO_SRGB),
        (chunk(b"cICP", bytes([1, 8, 0, 1])), 1.0, np.eye(3)),
        (chunk(b"cICP", bytes([12, 8, 0, 1])), 1.0, P3_TO_SRGB),
        (chunk(b"cICP", bytes([12, 8, 0, 1])) + chunk(b"gAMA", struct.pack(">I", 45_455)), 1.0, P3_TO_SRGB),
    ],
)
def test_colour_chunks_of_a_png(extra: bytes, gamma: float, matrix: np.ndarray[Any, Any]) -> None:
    """PNG, third edition, clause 4.3, and ITU-T H.273: 8 is linear, 12 the primaries of Display P3."""
    image, note = decode(png(5, 1, 8, 2, [COLOURS.tobytes()], extra))
    assert note is None
    assert np.abs(np.asarray(image)[0] - encoded((COLOURS / 255) ** gamma @ matrix.T)).max() <= 1


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (chunk(b"cICP", bytes([1, 13, 0, 1])), None),
        (chunk(b"gAMA", struct.pack(">I", 45_455)), None),
        (chunk(b"sRGB", b"\0") + chunk(b"gAMA", struct.pack(">I", 100_000)), None),
        (chunk(b"cICP", bytes([9, 16, 0, 1])), "cICP 9/16/0/1"),
        (chunk(b"gAMA", struct.pack(">I", 0)), "gAMA 0"),
        (chunk(b"gAMA", struct.pack(">I", 45_455)) + chunk(b"cHRM", bytes(32)), "cHRM"),
    ],
)
def test_colour_chunks_that_change_nothing(extra: bytes, words: str | None) -> None:
    image, note = decode(png(5, 1, 8, 2, [COLOURS.tobytes()], extra))
    assert (np.asarray(image)[0] == COLOURS).all()
    assert (words in (note or "")) if words else note is None


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("clear", [0, 1])
def test_transparent_grey_of_every_depth(bits: int, clear: int) -> None:
    row = {1: b"\x40", 2: b"\x10", 4: b"\x01", 8: b"\0\1", 16: b"\0\0\0\1"}[bits]  # the samples 0 and 1
    image, note = decode(png(2, 1, bits, 0, [row], chunk(b"tRNS", struct.pack(">H", clear))))
    levels = [0, round(255 / (2**bits - 1))]
    assert [image.getpixel((x, 0))[0] for x in (0, 1)] == [255 if x == clear else levels[x] for x in (0, 1)]  # type: ignore[index]
    assert "transparent" in (note or "")


@pytest.mark.parametrize("clear", [(4660, 22136, 39612), (4661, 22136, 39612)])
def test_transparent_colour_of_16_bits(clear: tuple[int, int, int]) -> None:
    """All 16 bits decide: one level of 65,536 beside it is another colour."""
    data = png(1, 1, 16, 2, [struct.pack(">3H", 4660, 22136, 39612)], chunk(b"tRNS", struct.pack(">3H", *clear)))
    assert decode(data)[0].getpixel((0, 0)) == ((255,) * 3 if clear[0] == 4660 else (18, 86, 154))
