"""What a glance at a picture tells, against imagehash, scipy and edits of real photos."""

import io

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from ldmkit.data.decode import glance
from ldmkit.data.looks import ALIKE, BLANK, GLANCE, LEVELS, Look, alike, first_alike


def photo(seed: int, size: tuple[int, int] = (200, 160)) -> Image.Image:
    """Clouds of three scales, as smooth and as rough as photos are; each seed another one."""
    rng = np.random.default_rng(seed)
    pixels = np.zeros((size[1], size[0], 3))
    for grid, weight in ((4, 60), (12, 40), (60, 25)):
        noise = rng.normal(size=(grid, grid, 3)).astype(np.float32)
        channels = [Image.fromarray(noise[..., c]).resize(size, Image.Resampling.BICUBIC) for c in range(3)]
        pixels += weight * np.stack([np.asarray(channel) for channel in channels], axis=2)
    return Image.fromarray((pixels + 128).clip(0, 255).astype(np.uint8))


def jpeg(image: Image.Image, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", **options)
    return file.getvalue()


def distance(one: Look, other: Look) -> int:
    return (int(one.phash, 16) ^ int(other.phash, 16)).bit_count()


@pytest.mark.parametrize("size", [(64, 64), (200, 160), (37, 500)])
def test_the_hash_is_that_of_imagehash(size: tuple[int, int]) -> None:
    imagehash = pytest.importorskip("imagehash")
    for seed in range(3):
        image = photo(seed, size)
        assert Look.at(image).phash == str(imagehash.phash(image, hash_size=16))


def test_sharpness_is_the_variance_of_scipys_laplacian() -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    image = photo(1, (64, 64))
    expected = ndimage.laplace(np.asarray(image.convert("L"), dtype=np.float64))[1:-1, 1:-1].var()
    assert Look.at(image).sharpness[LEVELS.index(64)] == pytest.approx(expected, rel=1e-3)


def test_blurred_ones_are_told_at_the_size_where_it_shows() -> None:
    sharp, blurred = (Look.at(image) for image in (photo(2), photo(2).filter(ImageFilter.GaussianBlur(4))))
    assert blurred.sharpness_at(128) < 50 < sharp.sharpness_at(128)  # type: ignore[operator]
    assert blurred.sharpness_at(32) > 50  # type: ignore[operator] # at a sixth of its size nobody sees it
    assert Look.at(photo(2, (20, 20))).sharpness_at(64) is None


def test_contrast_passes_over_single_pixels() -> None:
    grey = Image.new("L", (100, 100), 90)
    grey.putpixel((3, 3), 255)
    assert Look.at(grey).contrast == 0
    assert Look.at(Image.linear_gradient("L")).contrast == pytest.approx(0.98 * 255, abs=3)
    assert Look.at(photo(0)).contrast > BLANK


EDITS = {
    "saved anew": lambda image: Image.open(io.BytesIO(jpeg(image, quality=60))),
    "half": lambda image: image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.15),
    "grey": lambda image: image.convert("L"),
    "mirrored": ImageOps.mirror,
    "mirrored and saved anew": lambda image: Image.open(io.BytesIO(jpeg(ImageOps.mirror(image), quality=70))),
}


@pytest.mark.parametrize("edit", EDITS)
def test_edits_are_alike_and_others_are_not(edit: str) -> None:
    images = [photo(seed) for seed in range(20)]
    hashes = [Look.at(image).phash for image in [*images, *map(EDITS[edit], images)]]
    assert alike(hashes) == [*range(20), *range(20)]


def test_groups_are_the_connected_components_of_scipy() -> None:
    sparse = pytest.importorskip("scipy.sparse")
    rng = np.random.default_rng(0)
    mask = np.zeros(256, dtype=bool)
    mask[1::2] = True
    rows = [rng.integers(0, 2, 256).astype(bool) for _ in range(30)]
    for row in list(rows) * 2:  # chains: each a step away from one that is there, some of them mirrored
        flips = np.zeros(256, dtype=bool)
        flips[rng.choice(256, rng.integers(20, 60), replace=False)] = True
        rows.append(row ^ flips ^ (mask if rng.random() < 0.3 else False))
    rows += [rows[0]] * 40
    order = rng.permutation(len(rows))
    bits = np.stack(rows)[order]
    plain = (bits[:, None] ^ bits[None]).sum(axis=2)
    mirrored = (bits[:, None] ^ bits[None] ^ mask).sum(axis=2)
    number, labels = sparse.csgraph.connected_components(np.minimum(plain, mirrored) <= ALIKE)
    names = [np.packbits(row).tobytes().hex() for row in bits]
    found = alike(names)
    assert 5 < number < len(rows) - 45
    near = np.minimum(plain, mirrored)[:50, 50:] <= ALIKE
    packed = np.frombuffer(bytes.fromhex("".join(names)), np.uint8).reshape(-1, 32)
    assert first_alike(packed[:50], packed[50:]).tolist() == np.where(near.any(1), near.argmax(1), -1).tolist()
    assert 5 < near.any(1).sum() < 50
    assert len({*zip(labels, found, strict=True)}) == len(set(found)) == number
    assert all(found[first] == first for first in found)
    assert alike([]) == []


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_jpeg_is_looked_at_upright_and_while_it_is_decoded_smaller(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = photo(3, (1100, 800))
    size, _, look = glance(jpeg(image, exif=exif, quality=95), sharpness=True)
    upright = image if orientation == 1 else image.transpose(Image.Transpose.ROTATE_270)
    assert size == upright.size
    assert distance(look, Look.at(upright)) <= 4
    assert look.sharpness == pytest.approx(
        Look.at(upright).sharpness, rel=0.25
    )  # Pillow's reduction is another than libjpeg's
    assert min(size) / GLANCE > 3
    _, _, of_png = glance(png(upright), sharpness=True)
    assert of_png == Look.at(upright)
    for data in (jpeg(image, exif=exif, quality=95), png(upright)):
        _, _, small = glance(data, sharpness=False)
        assert small.sharpness is None
        assert distance(small, of_png) <= 8


def test_four_inks_are_as_bright_as_what_they_print() -> None:
    image = photo(4)
    _, _, look = glance(jpeg(image.convert("CMYK")), sharpness=True)
    assert distance(look, Look.at(image)) <= ALIKE


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
