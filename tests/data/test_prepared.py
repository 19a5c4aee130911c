"""Pictures kept at the working size: the very pixels that decoding gives, each content decoded once."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ldmkit.data import sources as sources_module
from ldmkit.data.batches import picture_batches
from ldmkit.data.decode import load_picture
from ldmkit.data.pictures import PictureIndex, scan
from ldmkit.data.prepared import prepared_pictures
from ldmkit.recipe.data import Data
from ldmkit.report import Reporter

SIZE = 16


class Album:
    """A folder of photos of (48, 40) pixels, one picture of the working size and a copy."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.run, self.folder = folder / "run", folder / "pictures"
        self.folder.mkdir()
        for i in range(6):
            self.draw(f"{i}.{'jpg' if i % 2 else 'png'}", i)
        self.draw("small.png", 7, (SIZE, SIZE))
        (self.folder / "copy.png").write_bytes((self.folder / "0.png").read_bytes())
        self.decoded: list[str] = []
        self.lines: list[str] = []
        monkeypatch.setattr(sources_module, "load_picture", self.load)

    def draw(self, name: str, seed: int, size: tuple[int, int] = (48, 40)) -> None:
        noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(noise).save(self.folder / name)

    def load(self, path: Path) -> Image.Image:
        self.decoded.append(path.name)
        return load_picture(path)

    def index(self) -> PictureIndex:
        return scan(self.folder)

    def pixels(self, **options: Any) -> np.ndarray[Any, Any]:
        """Of all pictures, drawn twice; `decoded` is what had to be decoded for it, once for each time."""
        self.decoded.clear()
        data = Data(path="x", size=SIZE, num_workers=0, **options)
        reporter = Reporter(quiet=True)
        reporter.line = self.lines.append  # type: ignore[method-assign]
        index = self.index()
        prepared = prepared_pictures(index, data, self.run, reporter)
        order = [*range(len(prepared)), *range(len(prepared))]
        return np.concatenate([batch.numpy() for batch in picture_batches(prepared, data, [order])])

    def straight(self) -> np.ndarray[Any, Any]:
        data = Data(path="x", size=SIZE, num_workers=0)
        plain = self.index().pictures()
        return np.concatenate([b.numpy() for b in picture_batches(plain, data, [[*range(len(plain))] * 2])])


@pytest.fixture
def album(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Album:
    return Album(tmp_path, monkeypatch)


LARGE = [f"{i}.{'jpg' if i % 2 else 'png'}" for i in range(6)]


def test_each_content_is_decoded_once_and_comes_out_as_it_would_anew(album: Album) -> None:
    expected = album.straight()
    assert (album.pixels() == expected).all()
    assert sorted(album.decoded) == [
        *LARGE,
        "small.png",
        "small.png",
    ]  # that one is not worth it, and the copy comes free
    assert (album.pixels() == expected).all()
    assert album.decoded == ["small.png"] * 2
    (album.folder / "3.jpg").rename(album.folder / "sub-3.jpg")
    album.draw("new.png", 9)
    album.draw("1.jpg", 10)  # another picture by an old name
    expected = album.straight()
    assert (album.pixels() == expected).all()
    assert sorted(album.decoded) == ["1.jpg", "new.png", "small.png", "small.png"]
    assert (album.pixels(crop="squash") != expected).any()


def test_what_a_killed_run_left_is_gone_on_with(album: Album, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = album.straight()
    monkeypatch.setattr("ldmkit.data.prepared.BATCH", 1)
    load = album.load

    def killed(path: Path) -> Image.Image:
        if path.name == "4.png":
            raise KeyboardInterrupt
        return load(path)

    monkeypatch.setattr(sources_module, "load_picture", killed)
    with pytest.raises(KeyboardInterrupt):
        album.pixels()
    (pixels,) = album.run.rglob("pixels.bin")
    with pixels.open("ab") as file:
        file.write(b"half a row")
    monkeypatch.setattr(sources_module, "load_picture", load)
    assert (album.pixels() == expected).all()
    assert sorted(album.decoded) == ["4.png", "5.jpg", "small.png", "small.png"]


def test_a_row_that_the_disk_changed_is_decoded_again(album: Album) -> None:
    expected = album.straight()
    album.pixels()
    (pixels,) = album.run.rglob("pixels.bin")
    content = bytearray(pixels.read_bytes())
    content[SIZE * SIZE * 3 + 5] ^= 1
    pixels.unlink()  # a new file: the old one may still be mapped
    pixels.write_bytes(content)
    from ldmkit.data.prepared import _mapped

    _mapped.cache_clear()
    assert (album.pixels() == expected).all()


def test_disk_budget(album: Album) -> None:
    expected = album.straight()
    row = SIZE * SIZE * 3
    assert (album.pixels(cache_gb=4 * row / 1e9) == expected).all()
    assert album.lines == [
        f"2 of 6 large pictures do not fit into data.cache_gb = {4 * row / 1e9:g} and the disk's free space; "
        "they are decoded at each draw"
    ]
    assert [path.stat().st_size for path in album.run.rglob("pixels.bin")] == [4 * row]
    for name in LARGE[:4]:
        (album.folder / name).unlink()
    (album.folder / "copy.png").unlink()
    album.pixels(cache_gb=4 * row / 1e9)  # what is gone makes room
    assert len(album.lines) == 1
    assert [path.stat().st_size for path in album.run.rglob("pixels.bin")] == [2 * row]
    assert (album.pixels(cache_gb=0.0) == album.straight()).all()
    assert len(album.decoded) >= 6


def test_pictures_of_an_archive_are_prepared_as_those_of_its_folder(album: Album) -> None:
    expected = album.straight()
    album.folder = Path(shutil.make_archive(str(album.folder), "zip", album.folder))
    assert (album.pixels() == expected).all()
    (album.run / "prepared").rename(album.run / "as it was")
    assert (album.pixels() == expected).all()
    (pixels,) = album.run.glob("prepared/*/pixels.bin")
    pixels.write_bytes(bytes(pixels.stat().st_size))  # each row's checksum is wrong now
    assert (album.pixels() == expected).all()
