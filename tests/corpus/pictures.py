"""Every kind of picture file that a folder may hold: what `scan` must say of it, and the pixels that must come out."""

import os
import re
import struct
import unicodedata
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms

from ldmkit.data.decode import load_picture
from ldmkit.data.pictures import PictureIndex
from ldmkit.report import printable
from tests.corpus.picture_files import chunk, flat, grey_tiff, png, quilt, saved, tiff


@dataclass(frozen=True)
class Kind:
    """One file, and what must become of it."""

    name: str
    """the file's path in the folder; bytes that are no UTF-8 as surrogates"""
    make: bytes | Callable[[Path], object]
    """the content, or what puts the file where it is told"""
    reason: str | None = None
    """words of the reason why it is left out; None: it is used"""
    note: str | None = None
    """words of what must be said of a file that is used; None: nothing"""
    pixels: np.ndarray[Any, Any] | None = None
    """(H, W, 3) uint8 that must come out of it"""
    within: float = 0
    """mean absolute difference to `pixels` that its compression may make"""


def _used() -> Iterator[Kind]:
    """Nothing is lost of these, and nothing is said."""
    rgb = quilt()
    image = Image.fromarray(rgb)
    level = rgb[..., 0]
    grey = np.repeat(level[..., None], 3, axis=2)
    yield Kind("plain.png", saved(rgb, "PNG"), pixels=rgb)
    yield Kind("grey.png", saved(level, "PNG"), pixels=grey)
    indexed = image.quantize(9)
    yield Kind("palette.png", saved(indexed, "PNG"), pixels=np.asarray(indexed.convert("RGB")))
    bits = level > 127
    yield Kind(
        "one bit.png", saved(bits, "PNG"), pixels=np.repeat(bits[..., None], 3, axis=2).astype(np.uint8) * np.uint8(255)
    )
    ramp = struct.pack(">6H", 0, 257, 20000, 32768, 65278, 65535)
    scaled = np.repeat(np.array([[0, 1, 78, 128, 254, 255]], np.uint8)[..., None], 3, axis=2)  # v * 255 / 65535
    yield Kind("16 bit grey.png", png(6, 1, 16, 0, [ramp]), pixels=scaled)
    yield Kind("16 bit grey.tif", grey_tiff(16, 1, struct.pack("<6H", *struct.unpack(">6H", ramp)), 6), pixels=scaled)
    yield Kind("16 bit.png", png(2, 1, 16, 2, [ramp]), pixels=scaled.reshape(-1, 3)[:, 0].reshape(1, 2, 3), within=1)
    yield Kind(
        "last chunk unknown.png", png(8, 8, 8, 2, [bytes(24)] * 8, chunk(b"prVt", b"x" * 999)), pixels=flat(0, 0, 0)
    )
    yield Kind("a zip behind it.png", saved(rgb, "PNG") + b"PK\x03\x04" + bytes(99), pixels=rgb)
    yield Kind("1x1.png", saved(rgb[:1, :1], "PNG"), pixels=rgb[:1, :1])
    yield Kind(
        "strip.png", saved(np.repeat(rgb[:1], 4000, axis=0)[:, :1], "PNG"), pixels=np.repeat(rgb[:1, :1], 4000, axis=0)
    )
    yield Kind("plain.jpg", saved(rgb, "JPEG", quality=95), pixels=rgb, within=12)
    yield Kind("progressive.jpeg", saved(rgb, "JPEG", quality=95, progressive=True), pixels=rgb, within=12)
    yield Kind("grey.jpg", saved(level, "JPEG", quality=95), pixels=grey, within=4)
    # Grey at the bottom is a picture's right as long as some of it lies elsewhere in the file than in its last rows.
    yield Kind("all grey.jpg", saved(flat(128, 128, 128), "JPEG"), pixels=flat(128, 128, 128))
    exif = Image.Exif()
    exif[0x0112] = 6  # shown a quarter turn clockwise
    yield Kind("turned.jpg", saved(rgb, "JPEG", quality=95, exif=exif), pixels=np.rot90(rgb, -1), within=12)
    yield Kind("turned.png", saved(rgb, "PNG", exif=exif), pixels=np.rot90(rgb, -1))
    yield Kind("lossless.webp", saved(rgb, "WEBP", lossless=True), pixels=rgb)
    yield Kind("plain.bmp", saved(rgb, "BMP"), pixels=rgb)
    yield Kind("palette.bmp", saved(indexed, "BMP"), pixels=np.asarray(indexed.convert("RGB")))
    yield Kind("still.gif", saved(indexed, "GIF"), pixels=np.asarray(indexed.convert("RGB")))
    for compression in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits"):
        yield Kind(f"{compression}.tif", saved(rgb, "TIFF", compression=compression), pixels=rgb)
    yield Kind("jpeg inside.tiff", saved(rgb, "TIFF", compression="jpeg", quality=95), pixels=rgb, within=16)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    yield Kind("sRGB profile.png", saved(rgb, "PNG", icc_profile=profile), pixels=rgb)
    yield Kind("a jpeg.png", saved(rgb, "JPEG", quality=95), pixels=rgb, within=12)
    yield Kind("CAPITALS.PNG", saved(rgb[8:], "PNG"), pixels=rgb[8:])
    other = saved(rgb[:8], "MPO", save_all=True, append_images=[Image.fromarray(rgb[8:16])], quality=95)
    yield Kind("a phone's.jpg", other, pixels=rgb[:8], within=16)
    # No more is unpacked than the picture takes.
    yield Kind(
        "deflate bomb.tif",
        grey_tiff(8, 1, zlib.compress(bytes(200_000_000)), 8, 8, compression=8),
        pixels=flat(0, 0, 0),
    )
    # sRGB's red is 54.3, 80.8, 69.9 in CIE L*a*b* (D50).
    at = 8 + 2 + 10 * 12 + 4
    fields = {256: 2, 257: 2, 258: 8, 259: 1, 262: 8, 273: at, 277: 3, 278: 2, 279: 12, 284: 1}
    lab = tiff([(tag, 4, 1, value) for tag, value in fields.items()], bytes([138, 81, 70]) * 4)
    yield Kind("lab.tif", lab, pixels=flat(255, 0, 0, width=2, height=2), within=6)
    yield Kind("black.png", saved(flat(0, 0, 0), "PNG"), pixels=flat(0, 0, 0))
    yield Kind("opaque.png", saved(image.convert("RGBA"), "PNG"), pixels=rgb)


def _remarked() -> Iterator[Kind]:
    """Something is lost of these, or taken on trust, and that is said."""
    red, blue = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    frames: dict[str, Any] = {"save_all": True, "append_images": [blue]}
    for name, file_format in (
        ("moves.gif", "GIF"),
        ("moves.webp", "WEBP"),
        ("moves.png", "PNG"),
        ("pages.tif", "TIFF"),
    ):
        options = frames | ({"lossless": True} if file_format == "WEBP" else {})
        yield Kind(name, saved(red, file_format, **options), note="several frames", pixels=flat(255, 0, 0))
    half = Image.new("RGBA", (8, 8), (255, 0, 0, 51))  # a fifth of red, four of white
    on_white = flat(255, 204, 204)
    yield Kind("alpha.png", saved(half, "PNG"), note="transparent", pixels=on_white)
    yield Kind("alpha.tif", saved(half, "TIFF"), note="transparent", pixels=on_white)
    yield Kind("alpha.webp", saved(half, "WEBP", lossless=True), note="transparent", pixels=on_white)
    yield Kind(
        "grey alpha.png", png(8, 8, 8, 4, [bytes([10, 0] * 8)] * 8), note="transparent", pixels=flat(255, 255, 255)
    )
    clear = chunk(b"tRNS", struct.pack(">3H", 7, 8, 9))
    yield Kind(
        "one clear colour.png",
        png(8, 8, 8, 2, [bytes([7, 8, 9] * 8)] * 8, clear),
        note="transparent",
        pixels=flat(255, 255, 255),
    )
    palette = chunk(b"PLTE", bytes([9, 8, 7])) + chunk(b"tRNS", b"\0")
    yield Kind(
        "clear palette.png", png(8, 8, 8, 3, [bytes(8)] * 8, palette), note="transparent", pixels=flat(255, 255, 255)
    )
    indexed = Image.new("P", (8, 8), 0)
    indexed.putpalette([1, 2, 3])
    yield Kind("clear.gif", saved(indexed, "GIF", transparency=0), note="transparent", pixels=flat(255, 255, 255))
    ink = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    yield Kind("ink.tif", saved(ink, "TIFF"), note="CMYK", pixels=flat(255, 0, 0))
    yield Kind("ink.jpg", saved(ink, "JPEG", quality=95), note="CMYK", pixels=flat(255, 0, 0), within=3)
    rgb = quilt()
    yield Kind(
        "broken profile.png", saved(rgb, "PNG", icc_profile=b"x" * 200), note="profile cannot be used", pixels=rgb
    )
    ink_profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    ink_profile[16:20] = b"CMYK"
    yield Kind(
        "profile of ink.jpg",
        saved(rgb, "JPEG", quality=95, icc_profile=bytes(ink_profile)),
        note="profile cannot be used",
        pixels=rgb,
        within=12,
    )
    yield Kind("no end.jpg", saved(rgb, "JPEG", quality=95)[:-2], note="no end marker", pixels=rgb, within=12)
    bomb = chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(200_000_000)))
    yield Kind("text bomb.png", png(8, 8, 8, 2, [bytes(24)] * 8, bomb), note="too large", pixels=flat(0, 0, 0))


def _refused() -> Iterator[Kind]:
    rgb = quilt(64, 64)
    files = {
        "jpg": saved(rgb, "JPEG", quality=95),
        "png": saved(rgb, "PNG"),
        "gif": saved(rgb, "GIF"),
        "webp": saved(rgb, "WEBP", lossless=True),
        "bmp": saved(rgb, "BMP"),
        "tif": saved(rgb, "TIFF", compression="tiff_lzw"),
    }
    for ending, data in files.items():
        yield Kind(f"half.{ending}", data[: len(data) // 2], "damaged|not a JPEG")
        yield Kind(f"head.{ending}", data[:24], "damaged|not a JPEG")
    yield Kind("last bytes gone.jpg", files["jpg"][:-20], "damaged")
    yield Kind("ends early.jpg", files["jpg"][: len(files["jpg"]) // 2] + b"\xff\xd9", "damaged")
    yield Kind("empty.png", b"", "an empty file")
    yield Kind("one byte.jpg", b"\xff", "not a JPEG")
    texts = {
        "text.png": b"a cat",
        "page.jpg": b"<html><img src=x onerror=alert(1)></html>",
        "drawing.png": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
        "script.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file\n",
        "letter.jpg": b"%PDF-1.7\n",
        "layers.png": b"8BPS\0\1" + bytes(40),
        "list.gif": b"#!/bin/sh\ntouch canary\n",
        "macros.bmp": b"/* XPM */",
        "archive.webp": b"PK\x03\x04" + bytes(60),
        "program.png": b"\x7fELF" + bytes(60),
        "pickle.jpg": b"\x80\x04cposix\nsystem\n(S'touch canary'\ntR.",
        "phone.jpg": b"\0\0\0\x18ftypheic" + bytes(30),
    }
    for name, data in texts.items():
        yield Kind(name, data, "not a JPEG")
    for file_format in ("PPM", "TGA", "ICO", "PCX", "JPEG2000", "DDS", "SGI"):  # Pillow reads them; we do not
        yield Kind(f"{file_format}.png", saved(rgb, file_format), "not a JPEG")
    yield Kind("60000 square.png", png(60_000, 60_000, 8, 2, [b""]), "60000x60000|80,000,000")
    yield Kind("largest.png", png(2**31 - 1, 2**31 - 1, 8, 2, [b""]), "80,000,000")
    start = files["jpg"].index(b"\xff\xc0") + 5  # height and width in the frame's header
    yield Kind(
        "65000 square.jpg",
        files["jpg"][:start] + struct.pack(">2H", 65_000, 65_000) + files["jpg"][start + 4 :],
        "80,000,000",
    )
    yield Kind(
        "65535 square.gif", b"GIF89a" + struct.pack("<2H", 65_535, 65_535) + bytes(3) + b",", "80,000,000|damaged|not"
    )
    yield Kind(
        "wide.bmp",
        b"BM" + struct.pack("<IIIIiiHH", 54, 0, 54, 40, 2**30, 2**30, 1, 24) + bytes(24),
        "80,000,000|damaged",
    )
    yield Kind(
        "negative.bmp",
        b"BM" + struct.pack("<IIIIiiHH", 54, 0, 54, 40, -5, 5, 1, 24) + bytes(24),
        "80,000,000|damaged|not",
    )
    yield Kind("no pixels.png", png(0, 0, 8, 2, [b""]), "damaged|not")
    yield Kind("bad checksum.png", bytes([*files["png"][:-20], files["png"][-20] ^ 1, *files["png"][-19:]]), "damaged")
    yield Kind("too few rows.png", png(8, 8, 8, 2, [b"x" * 24] * 4), "last rows are missing")
    # The passes of Adam7 that 5 x 5 pixels have; the last one, rows 1 and 3, is missing.
    passes = b"".join(b"\0" + b"x" * columns for columns in (1, 1, 2, 1, 1, 3, 2, 2, 2))
    few = png(5, 5, 8, 0, zlib.compress(passes), interlace=1)
    yield Kind("too few passes.png", few, "last rows are missing")
    yield Kind("no data.png", png(8, 8, 8, 2, b"nonsense"), "damaged")
    yield Kind("floats.tif", grey_tiff(32, 3, struct.pack("<2f", 0.5, 1e30), 2), "floating-point")
    yield Kind("32 bit.tif", grey_tiff(32, 1, struct.pack("<2I", 1, 2**31), 2), "32-bit|damaged|not")
    yield Kind("goes round.tif", tiff([(256, 4, 1, 8)], following=8), "damaged|not")
    yield Kind("far away.tif", tiff([(256, 4, 2**31, 2**31)]), "damaged|not")
    yield Kind("link.png", lambda path: path.symlink_to(path.parent.parent / "secret.png"), "a symbolic link")
    yield Kind("dangling.png", lambda path: path.symlink_to("nowhere"), "a symbolic link")
    yield Kind("itself.png", lambda path: path.symlink_to(path.name), "a symbolic link")
    yield Kind("itself", lambda path: path.symlink_to(path.name), "a symbolic link")
    yield Kind("loop", lambda path: path.symlink_to(path.parent), "a symbolic link")
    if hasattr(os, "mkfifo"):
        yield Kind("pipe.png", os.mkfifo, "not a regular file")


def _named() -> Iterator[Kind]:
    """Names that a shell, a terminal or a list would trip over; each holds another picture."""
    names = [
        "ünï 猫 🐈.png",
        "a\nb.png",
        "\x1b[2Jclear.png",
        "-rf.png",
        "$(touch canary).png",
        "`touch canary`.png",
        "%s%n.png",
        "..png",
        "x" * 240 + ".png",
        "\u202egnp.exe.png",
        " .png",
        "a\tb.png",
        "CON.png",
        "deep/" * 40 + "down.png",
    ]
    if os.name == "posix":
        names.append(os.fsdecode(b"caf\xe9.png"))
    for number, name in enumerate(names):
        pixels = np.roll(quilt(), number + 1, axis=2) ^ np.uint8(number)
        reason = "hidden" if name == "..png" else None
        yield Kind(name, saved(pixels, "PNG"), reason, pixels=pixels)
    for form in ("NFC", "NFD"):
        pixels = quilt(8, 8) if form == "NFC" else quilt(16, 16)
        note = None if form == "NFD" else "Unicode normalisation"
        yield Kind(unicodedata.normalize(form, "é") + ".png", saved(pixels, "PNG"), note=note, pixels=pixels)
    yield Kind("twin.png", saved(quilt(40, 40), "PNG"), pixels=quilt(40, 40))
    yield Kind("twins.png", saved(quilt(40, 40), "PNG"), note="same content", pixels=quilt(40, 40))
    yield Kind("stem.bmp", saved(quilt(32, 32), "PNG"), pixels=quilt(32, 32))
    yield Kind("stem.png", saved(quilt(48, 48), "PNG"), note="same stem", pixels=quilt(48, 48))


def kinds() -> list[Kind]:
    """All of them but the largest."""
    return [*_used(), *_remarked(), *_refused(), *_named()]


def largest() -> list[Kind]:
    """As large as is allowed, in the ways that cost most memory."""
    side = 8944  # 8944 squared is just below 80 million
    clear = Image.new("RGBA", (side, side), (255, 0, 0, 51))
    exif = Image.Exif()
    exif[0x0112] = 6
    return [
        Kind("clear.png", saved(clear, "PNG", compress_level=1), note="transparent"),
        Kind("turned.jpg", saved(clear.convert("RGB"), "JPEG", exif=exif)),
    ]


def write(folder: Path, wanted: list[Kind]) -> None:
    """Puts the files into a new folder; beside it lies `secret.png`, to which a link leads."""
    folder.mkdir(parents=True)
    Image.new("RGB", (8, 8), "yellow").save(folder.parent / "secret.png")
    for kind in wanted:
        path = folder / kind.name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(kind.make, bytes):
            path.write_bytes(kind.make)
        else:
            kind.make(path)


def faults(folder: Path, index: PictureIndex, wanted: list[Kind]) -> list[str]:
    """What `scan` made of the files that it should not have: a line each."""
    used = {entry.key: entry for entry in index.entries}
    rejected = dict(index.rejected)
    remarks = index.remarks()
    found = []
    for kind in wanted:
        said = used[kind.name].note if kind.name in used else rejected.get(kind.name)
        if kind.reason == "hidden":
            if kind.name in used or kind.name in rejected:
                found.append(f"{kind.name!r}: a hidden file was read")
        elif kind.reason is not None:
            if re.search(kind.reason, rejected.get(kind.name, "")) is None:
                found.append(f"{kind.name!r}: should be left out for {kind.reason!r}, not {said!r}")
        elif kind.name not in used:
            found.append(f"{kind.name!r}: left out: {said!r}")
        else:
            lines = "\n".join(line for line in remarks if line.startswith(printable(kind.name)))
            if (kind.note or "") not in lines or (kind.note is None and said):
                found.append(f"{kind.name!r}: should be remarked on with {kind.note!r}, not {lines!r}")
            if kind.pixels is not None:
                pixels = np.asarray(load_picture(folder / kind.name))
                if pixels.shape != kind.pixels.shape:
                    found.append(f"{kind.name!r}: is {pixels.shape}, not {kind.pixels.shape}")
                elif (off := np.abs(pixels.astype(int) - kind.pixels).mean()) > kind.within:
                    found.append(f"{kind.name!r}: silently changed, {off:.1f} levels off")
    strangers = (used.keys() | rejected.keys()) - {kind.name for kind in wanted}
    return found + [f"{name!r}: is not one of the files" for name in strangers]
