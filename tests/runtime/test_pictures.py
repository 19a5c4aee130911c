"""PNG files and grids."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldmkit.errors import LdmkitError
from ldmkit.runtime.generate import to_pictures
from ldmkit.runtime.pictures import grid, slug, write_picture


def test_pixels_are_clipped_and_rounded() -> None:
    pixels = np.array([-2.0, -1.0, 0.0, 1.0, 2.0, 1 - 2 / 255]).reshape(1, 1, 1, 6).repeat(3, axis=1)
    assert np.asarray(to_pictures(pixels)[0])[0, :, 0].tolist() == [0, 0, 128, 255, 255, 254]


def test_nothing_is_overwritten_and_metadata_survives(tmp_path: Path) -> None:
    image = Image.new("RGB", (2, 2), "red")
    path = tmp_path / "deep" / "a.png"
    written = [write_picture(image, path, {"prompt": "κατ 猫", "seed": str(k)}) for k in range(3)]
    assert [file.name for file in written] == ["a.png", "a-2.png", "a-3.png"]
    for k, file in enumerate(written):
        with Image.open(file) as opened:
            assert opened.text == {"prompt": "κατ 猫", "seed": str(k)}  # type: ignore[attr-defined]
    with pytest.raises(LdmkitError, match="exists and is not overwritten"):
        write_picture(image, path, {}, exact=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(LdmkitError, match="cannot be made"):
        write_picture(image, tmp_path / "file" / "a.png", {})


def test_a_full_disk_leaves_no_half_picture(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")  # not on Windows
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    image = Image.effect_noise((64, 64), 80).convert("RGB")
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(LdmkitError, match=r"a\.png cannot be written: File too large"):
            write_picture(image, tmp_path / "a.png", {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_grid_places_pictures_row_by_row() -> None:
    images = [Image.new("RGB", (4, 3), (k, 0, 0)) for k in range(5)]
    sheet = grid(images, gap=1)
    assert sheet.size == (3 * 4 + 2, 2 * 3 + 1)
    assert [sheet.getpixel((x, y)) for y in (0, 4) for x in (0, 5, 10)] == [
        *[(k, 0, 0) for k in range(5)],
        (255, 255, 255),
    ]


@pytest.mark.parametrize(("num", "columns"), [(1, 1), (2, 2), (3, 3), (5, 3), (6, 3), (7, 3), (8, 4), (9, 3), (16, 4)])
def test_grid_has_full_rows_where_it_can(num: int, columns: int) -> None:
    assert grid([Image.new("RGB", (1, 1))] * num, gap=0).size == (columns, -(-num // columns))


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("A cute, orange cat!", "a-cute-orange-cat"),
        ("", "unconditional"),
        ("../../etc/passwd", "etc-passwd"),
        ("猫" * 40, "猫" * 20),
        ("x" * 80, "x" * 60),
        ("...", "unconditional"),
    ],
)
def test_slug(prompt: str, name: str) -> None:
    assert slug(prompt) == name
