"""What is exported opens by `datasets`, by `webdataset`, and by a reader written from kohya's layout."""

import io
import json
import re
import tarfile

import numpy as np
import pytest
from click.testing import CliRunner
from ldmkit_captions import Sidecar
from PIL import Image

from ldmkit.cli.data import data
from ldmkit.data import export_set as exporting
from ldmkit.data.decode import load_picture
from ldmkit.data.export_set import export_set
from ldmkit.data.pictures import scan
from ldmkit.errors import LdmkitError

KEYS = ("a.gif", "b/a.jpg", "b/a.png", "süß.webp")
"""in order; two of one stem, one of a format that others do not take"""
CAPTIONS = {"b/a.jpg": "un chat noir", "b/a.png": "a cat, 猫", "süß.webp": "a sweet cat"}


@pytest.fixture
def index(tmp_path):
    rng = np.random.default_rng(0)
    for key in KEYS:
        path = tmp_path / "pictures" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 12, 3), np.uint8)).save(path)
    return scan(tmp_path / "pictures")


def same(image, index, number):
    expected = load_picture(index.folder / KEYS[number])
    return np.array_equal(np.asarray(image.convert("RGB")), np.asarray(expected))


def test_imagefolder_by_datasets(index, tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    export_set(index, CAPTIONS, tmp_path / "out", "imagefolder", name="cats")
    opened = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "out"), cache_dir=str(tmp_path / "hf"))[
        "train"
    ]
    assert opened["source"] == list(KEYS)
    assert opened["text"] == [CAPTIONS.get(key) for key in KEYS]
    assert all(same(image, index, number) for number, image in enumerate(opened["image"]))


@pytest.mark.filterwarnings("ignore")  # of the library's own
def test_shards_by_webdataset(index, tmp_path, monkeypatch):
    webdataset = pytest.importorskip("webdataset")
    monkeypatch.setattr(exporting, "SHARD_PICTURES", 3)
    export_set(index, CAPTIONS, tmp_path / "out", "webdataset", name="cats")
    shards = sorted((tmp_path / "out").iterdir())
    assert [shard.name for shard in shards] == ["000000.tar", "000001.tar"]
    rows = list(
        webdataset.WebDataset([*map(str, shards)], shardshuffle=False)
        .decode("pil")
        .to_tuple("jpg;png;webp", "txt", "json")
    )
    assert [row[2]["source"] for row in rows] == list(KEYS)
    assert [row[1] for row in rows] == [CAPTIONS.get(key, "") for key in KEYS]
    assert all(same(row[0], index, number) for number, row in enumerate(rows))


def test_kohya(index, tmp_path):
    """As sd-scripts reads it: REPEATS_CLASS folders, pictures by ending, the caption beside each."""
    export_set(index, CAPTIONS, tmp_path / "out", "kohya", name="cats")
    (subset,) = (tmp_path / "out").iterdir()
    assert re.fullmatch(r"(\d+)_(.+)", subset.name).groups() == ("1", "cats")
    files = sorted(subset.glob("*"))
    pictures = [file for file in files if file.suffix in (".png", ".jpg", ".jpeg", ".webp", ".bmp")]
    texts = [file.with_suffix(".txt") for file in pictures]
    assert [text.read_text("utf-8") if text.exists() else None for text in texts] == [CAPTIONS.get(key) for key in KEYS]
    assert len({text.name for text in texts}) == len(KEYS)
    assert all(same(Image.open(file), index, number) for number, file in enumerate(pictures))


@pytest.mark.parametrize("form", exporting.FORMS)
def test_what_is_exported_comes_back(form, index, tmp_path):
    export_set(index, CAPTIONS, tmp_path / "out", form, name="cats")
    back = scan(tmp_path / "out")
    assert [p.load().tobytes() for p in back.pictures()] == [p.load().tobytes() for p in index.pictures()]
    none = "" if form == "webdataset" else None  # whose samples all have a text
    assert Sidecar().caption(back.pictures()) == [CAPTIONS.get(key, none) for key in KEYS]
    with pytest.raises(LdmkitError, match="not an empty folder"):
        export_set(index, CAPTIONS, tmp_path / "out", form, name="cats")


@pytest.mark.parametrize("form", exporting.FORMS)
def test_several_captions_of_a_picture(form, index, tmp_path):
    """Lists where `datasets` reads them, lines for kohya's `enable_wildcard`; a .txt of WebDataset's has the first."""
    export_set(index, CAPTIONS | {"b/a.png": "a cat\n猫"}, tmp_path / "out", form, name="cats")
    if form == "kohya":
        assert (tmp_path / "out" / "1_cats" / "000000002.txt").read_text("utf-8") == "a cat\n猫"
    elif form == "imagefolder":
        json_table = pytest.importorskip("pyarrow.json").read_json(tmp_path / "out" / "metadata.jsonl")
        assert json_table["text"].to_pylist() == [None, ["un chat noir"], ["a cat", "猫"], ["a sweet cat"]]
        assert Sidecar().caption(scan(tmp_path / "out").pictures())[1:] == ["un chat noir", "a cat\n猫", "a sweet cat"]
    else:
        with tarfile.open(tmp_path / "out" / "000000.tar") as tar:
            member = {name: tar.extractfile(name).read() for name in tar.getnames()}
        assert member["000000002.txt"] == b"a cat"
        assert json.loads(member["000000002.json"])["text"] == ["a cat", "猫"]
        back = Sidecar().caption(scan(tmp_path / "out").pictures())
        assert back == ["", "un chat noir", "a cat\n猫", "a sweet cat"]


def test_the_command(index, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures" / "b" / "a.txt").write_text("a cat")
    command = ["export", "photos-64", "out", "--as", "kohya", "--set", "data.path=pictures"]
    result = CliRunner().invoke(data, command, catch_exceptions=False)
    assert result.output.endswith("out: 4 pictures, 2 with a caption\n")
    assert len(list((tmp_path / "out" / "1_photos-64").glob("*.txt"))) == 2
    assert io.BytesIO((tmp_path / "out" / "1_photos-64" / "000000000.png").read_bytes()).read(4) == b"\x89PNG"
