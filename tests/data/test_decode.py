"""Golden pixels: files built by hand, byte by byte where Pillow's writer would share a mistake with its reader."""

import io
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from ldmkit.data.decode import MAX_PIXELS, DecodeError, decode, load_picture, prepare
from ldmkit.errors import LdmkitError


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, bits, color_type, rows, extra=b""):
    """PNG, ISO/IEC 15948, chapter 11: colour type 0 grey, 2 RGB, 3 palette, 4 grey and alpha, 6 RGBA."""
    header = struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def saved(image, file_format, **options):
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def pixels(data):
    image, _ = decode(data)
    assert image.mode == "RGB"
    return np.asarray(image).tolist()


def grey(*values):
    return [[[value] * 3 for value in values]]


def test_16_bit_grey_is_scaled():
    row = struct.pack(">6H", 0, 257, 20000, 32768, 65278, 65535)
    # v * 255 / 65535, rounded: 20000 -> 77.8, 32768 -> 127.5 and a bit, 65278 -> 254.0
    assert pixels(png(6, 1, 16, 0, [row])) == grey(0, 1, 78, 128, 254, 255)


def test_16_bit_grey_with_a_transparent_value():
    row = struct.pack(">2H", 1000, 1001)
    assert pixels(png(2, 1, 16, 0, [row], chunk(b"tRNS", struct.pack(">H", 1000)))) == grey(255, 4)


@pytest.mark.parametrize("byte_order", ["<", ">"])
def test_16_bit_tiff(byte_order):
    tags = [(256, 3), (257, 1), (258, 16), (259, 1), (262, 1), (273, 122), (277, 1), (278, 1), (279, 6)]
    body = (b"II*\0" if byte_order == "<" else b"MM\0*") + struct.pack(byte_order + "IH", 8, len(tags))
    for tag, value in tags:  # type 4 is LONG, one value each
        body += struct.pack(byte_order + "HHII", tag, 4, 1, value)
    data = (body + bytes(4)).ljust(122, b"\0") + struct.pack(byte_order + "3H", 0, 32768, 65535)
    assert pixels(data) == grey(0, 128, 255)


def test_16_bit_rgb():
    row = struct.pack(">6H", 0, 32768, 65535, 65535, 257, 0)
    (first, second) = pixels(png(2, 1, 16, 2, [row]))[0]
    assert np.abs(np.array([first, second]) - [[0, 128, 255], [255, 1, 0]]).max() <= 1


def test_alpha_is_composited_on_white_not_dropped():
    row = bytes([255, 0, 0, 255, 255, 0, 0, 0, 255, 0, 0, 51])
    # 51 / 255 is a fifth: 255 * 4 / 5 = 204 of white shows through
    assert pixels(png(3, 1, 8, 6, [row])) == [[[255, 0, 0], [255, 255, 255], [255, 204, 204]]]


def test_grey_and_alpha():
    assert pixels(png(2, 1, 8, 4, [bytes([10, 255, 10, 0])])) == grey(10, 255)


def test_rgb_with_a_transparent_colour():
    data = png(2, 1, 8, 2, [bytes([7, 8, 9, 7, 8, 10])], chunk(b"tRNS", struct.pack(">3H", 7, 8, 9)))
    assert pixels(data) == [[[255, 255, 255], [7, 8, 10]]]


def test_palette_with_transparency():
    palette = chunk(b"PLTE", bytes([9, 8, 7, 0, 0, 255])) + chunk(b"tRNS", bytes([0, 255]))
    assert pixels(png(2, 1, 8, 3, [bytes([0, 1])], palette)) == [[[255, 255, 255], [0, 0, 255]]]


def test_one_bit_and_transparent_gif():
    assert pixels(png(8, 1, 1, 0, [bytes([0b10100000])])) == grey(255, 0, 255, 0, 0, 0, 0, 0)
    image = Image.new("P", (2, 1), 0)
    image.putpalette([1, 2, 3, 200, 100, 50])
    image.putpixel((1, 0), 1)
    assert pixels(saved(image, "GIF", transparency=0)) == [[[255, 255, 255], [200, 100, 50]]]


def test_cmyk():
    image = Image.new("CMYK", (3, 1))
    for x, ink in enumerate([(0, 255, 255, 0), (100, 0, 0, 128), (0, 0, 0, 255)]):
        image.putpixel((x, 0), ink)
    # (255 - C) * (255 - K) / 255: 155 * 127 / 255 = 77.2
    assert pixels(saved(image, "TIFF")) == [[[255, 0, 0], [77, 127, 127], [0, 0, 0]]]


@pytest.mark.parametrize(
    ("orientation", "expected"),  # Exif 2.3, tag 0x0112: which side of the file is the picture's top and left
    [(1, "ab/cd"), (2, "ba/dc"), (3, "dc/ba"), (4, "cd/ab"), (5, "ac/bd"), (6, "ca/db"), (7, "db/ca"), (8, "bd/ac")],
)
@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "WEBP"])
def test_exif_rotation(orientation, expected, file_format):
    colors = {"a": (255, 0, 0), "b": (0, 255, 0), "c": (0, 0, 255), "d": (0, 0, 0)}
    image = Image.new("RGB", (2, 2))
    image.putdata([colors[letter] for letter in "abcd"])
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if file_format == "WEBP" else {}
    found = pixels(saved(image, file_format, exif=exif, **options))
    assert found == [[list(colors[letter]) for letter in row] for row in expected.split("/")]


def icc_profile(gamma, space=b"RGB "):
    """A matrix profile of ICC.1:2001 with sRGB's primaries (D50-adapted) and a pure gamma."""

    def s15f16(*values):
        return b"".join(struct.pack(">i", round(value * 65536)) for value in values)

    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)
    text = b"desc" + bytes(4) + struct.pack(">I", 5) + b"test\0" + bytes(4 + 4 + 2 + 1 + 67)
    xyz = b"XYZ " + bytes(4)
    tags = {
        b"desc": text.ljust(-(-len(text) // 4) * 4, b"\0"),
        b"wtpt": xyz + s15f16(0.9642, 1.0, 0.8249),
        b"rXYZ": xyz + s15f16(0.4360747, 0.2225045, 0.0139322),
        b"gXYZ": xyz + s15f16(0.3850649, 0.7168786, 0.0971045),
        b"bXYZ": xyz + s15f16(0.1430804, 0.0606169, 0.7141733),
        b"rTRC": curve,
        b"gTRC": curve,
        b"bTRC": curve,
    }
    table, body = struct.pack(">I", len(tags)), b""
    for name, value in tags.items():
        table += name + struct.pack(">II", 128 + 4 + 12 * len(tags) + len(body), len(value))
        body += value
    header = struct.pack(">I4sI4s4s4s", 0, b"lcms", 0x02100000, b"mntr", space, b"XYZ ").ljust(36, b"\0") + b"acsp"
    header = header.ljust(68, b"\0") + s15f16(0.9642, 1.0, 0.8249)
    data = header.ljust(128, b"\0") + table + body
    return struct.pack(">I", len(data)) + data[4:]


def test_colour_profile_is_applied():
    values = np.array([0, 10, 55, 128, 200, 255])
    row = b"".join(bytes([value] * 3) for value in values.tolist())
    profile = chunk(b"iCCP", b"test\0\0" + zlib.compress(icc_profile(1.0)))
    found = np.array(pixels(png(6, 1, 8, 2, [row], profile)))[0]
    linear = values / 255  # IEC 61966-2-1
    expected = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055) * 255
    assert np.abs(found - expected[:, None]).max() <= 1


@pytest.mark.parametrize("profile", [b"no profile at all", icc_profile(1.0, space=b"GRAY")])
def test_unusable_profile_is_ignored(profile):
    data = png(1, 1, 8, 2, [bytes([55, 55, 55])], chunk(b"iCCP", b"test\0\0" + zlib.compress(profile)))
    assert pixels(data) == grey(55)


def test_animation_gives_its_first_frame_and_says_so():
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "green", "blue", "white", "black")]
    image, note = decode(saved(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert image.getpixel((0, 0)) == (255, 0, 0)
    assert note is not None
    assert "first" in note
    assert decode(saved(frames[0], "GIF"))[1] is None


@pytest.mark.parametrize(
    ("file_format", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("PNG", {}),
        ("WEBP", {}),
        ("BMP", {}),
        ("GIF", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
    ],
)
def test_cut_file_is_rejected(file_format, options):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = saved(Image.fromarray(noise), file_format, **options)
    decode(data)
    cut = data[: len(data) // 2]
    if file_format == "JPEG":
        Image.open(io.BytesIO(cut)).verify()  # which is why everything is decoded in full
    with pytest.raises(DecodeError):
        decode(cut)


@pytest.mark.parametrize("side", [9_000, 60_000])
def test_huge_header_is_rejected_before_decoding(side):
    assert side * side > MAX_PIXELS
    data = png(side, side, 8, 2, [bytes(10)])
    with pytest.raises(DecodeError, match="pixels"):
        decode(data)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", "not a JPEG"),
        (b"just text", "not a JPEG"),
        (b"\x89PNG\r\n\x1a\n", "not a JPEG"),
        (saved(Image.new("F", (2, 2)), "TIFF"), "floating"),
        (saved(Image.new("I", (2, 2)), "TIFF"), "32-bit"),
        (saved(Image.new("RGB", (2, 2)), "PPM"), "not a JPEG"),
    ],
)
def test_what_is_no_usable_picture(data, reason):
    with pytest.raises(DecodeError, match=reason):
        decode(data)


def test_load_picture_names_the_file(tmp_path):
    good, bad = tmp_path / "ä\n.png", tmp_path / "bad.png"
    good.write_bytes(png(1, 1, 8, 0, [b"\x07"]))
    bad.write_bytes(png(60_000, 60_000, 8, 0, [b"\0"]))
    assert load_picture(good).getpixel((0, 0)) == (7, 7, 7)
    with pytest.raises(LdmkitError, match=r"bad\.png.*pixels"):
        load_picture(bad)
    with pytest.raises(LdmkitError, match="No such file"):
        load_picture(tmp_path / "none.png")


@pytest.mark.parametrize(("width", "height"), [(200, 100), (100, 200), (128, 128)])
def test_center_crop_is_torchvisions(width, height):
    transforms = pytest.importorskip("torchvision.transforms.v2")
    # Mild noise: with values near 0 and 255 the order of the two passes shows, since each clips what overshoots.
    noise = np.random.default_rng(1).integers(80, 176, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    found = prepare(image, (50, 50))
    expected = transforms.CenterCrop(50)(transforms.Resize(50, transforms.InterpolationMode.LANCZOS)(image))
    assert found.shape == (50, 50, 3)
    assert found.dtype == np.uint8
    # Lanczos reaches 3 output pixels far: there the cut picture has no neighbours to take from.
    inner = (slice(3, -3), slice(3, -3))
    np.testing.assert_allclose(found[inner].astype(int), np.asarray(expected)[inner].astype(int), atol=1)


def test_pillows_remarks_are_silenced_whatever_thread_decodes():
    """Warnings are errors in tests: an EXIF block that says it has five entries, and has none, would be one."""
    data = saved(Image.new("RGB", (2, 2), "red"), "PNG", exif=b"Exif\0\0II*\0\x08\0\0\0\x05\0")
    with pytest.warns(UserWarning, match="Corrupt EXIF"):
        dict(Image.open(io.BytesIO(data)).getexif())
    with ThreadPoolExecutor(4) as pool:
        assert {image.size for image, _ in pool.map(decode, [data] * 20)} == {(2, 2)}
    with pytest.raises(UserWarning, match="ours"):  # nobody else's are
        warnings.warn("ours", UserWarning, stacklevel=1)


def test_squash_distorts_and_center_does_not():
    image = Image.new("RGB", (90, 30), "black")
    image.paste("white", (30, 0, 60, 30))  # the middle third
    assert prepare(image, (30, 30), "center").min() == 255
    squashed = prepare(image, (30, 30), "squash")
    assert squashed[15, 3, 0] == 0
    assert squashed[15, 15, 0] == 255


def test_extreme_aspect_ratio_stays_small():
    assert prepare(Image.new("RGB", (2, 60_000), "red"), (64, 64)).tolist() == [[[255, 0, 0]] * 64] * 64
