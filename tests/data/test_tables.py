"""Parquet and save_to_disk: the tables are written by pyarrow and by `datasets` itself."""

import io
import sys

import pytest
from ldmkit_captions import Sidecar
from PIL import Image

from ldmkit import LdmkitError
from ldmkit.data.pictures import scan

pa = pytest.importorskip("pyarrow")
from pyarrow import parquet  # noqa: E402 - of a library that may not be there


def picture(color, file_format="PNG"):
    file = io.BytesIO()
    Image.new("RGB", (8, 6), color).save(file, file_format)
    return file.getvalue()


COLORS = ("red", "blue", "lime")


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LDMKIT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def table(tmp_path):
    cells = [{"bytes": picture(color, "JPEG"), "path": f"{color}.jpg"} for color in COLORS]
    columns = {"id": [7, 8, 9], "image": cells, "title": [f"a {color} cat" for color in COLORS]}
    path = tmp_path / "set" / "train-00000-of-00001.parquet"
    path.parent.mkdir()
    parquet.write_table(pa.table(columns), path, row_group_size=2)
    return path


def captions(index, **options):
    return Sidecar(**options).caption(index.pictures())


def test_parquet(table, tmp_path):
    for path, prefix in ((table, ""), (table.parent, f"{table.name}/")):
        index = scan(path)
        assert [entry.key for entry in index.entries] == [f"{prefix}{row:08}.jpg" for row in range(3)]
        assert captions(index) == [None] * 3
        assert captions(index, column="title") == [f"a {color} cat" for color in COLORS]
        assert index.pictures()[1].load().tobytes() == Image.open(io.BytesIO(picture("blue", "JPEG"))).tobytes()
    (copied,) = (tmp_path / "cache").rglob("*.tar")
    before = copied.stat().st_mtime_ns
    scan(table)
    assert copied.stat().st_mtime_ns == before  # once
    parquet.write_table(pa.table({"image": [picture("white")], "text": ["a white cat"]}), table)
    assert captions(scan(table)) == ["a white cat"]
    several = pa.table({"image": [picture("white")], "text": [["a white  cat", "white"]]})
    parquet.write_table(several, table)
    assert captions(scan(table)) == ["a white cat\nwhite"]


def test_what_a_table_does_not_give_is_said(table):
    many = {"depth": [picture("white")], "image": [picture("red")], "text": ["a"]}
    parquet.write_table(pa.table(many), table.parent / "many.parquet")
    parquet.write_table(pa.table({"a": [1], "b": [b"xx"]}), table.parent / "numbers.parquet")
    (table.parent / "cut.parquet").write_bytes(table.read_bytes()[:-9])
    empty = [{"bytes": picture("red"), "path": None}, {"bytes": None, "path": "/elsewhere/a.png"}]
    parquet.write_table(pa.table({"image": empty}), table.parent / "names.parquet")
    index = scan(table.parent, max_bad=1)
    assert "many.parquet/pictures are read from its column depth and not from image" in index.unread
    assert "numbers.parquet: no column of it holds pictures' bytes; its columns are: a, b" in index.unread
    assert [key for key, _ in index.rejected] == ["cut.parquet", "names.parquet/00000001.jpg"]
    assert "not a table that can be read" in index.rejected[0][1]


def test_bombs(table):
    many = [picture("red") + bytes(4000)] * 10_000  # which Parquet stores once
    for columns in ({"image": [picture("red")], "text": ["x" * 30_000_000]}, {"image": many}):
        parquet.write_table(pa.table(columns), table, compression="zstd")
        with pytest.raises(LdmkitError, match=r"parquet: would unpack to more than 200 times its size"):
            scan(table)


def test_save_to_disk(tmp_path):
    datasets = pytest.importorskip("datasets")
    images = [Image.open(io.BytesIO(picture(color))) for color in COLORS]
    features = datasets.Features({"picture": datasets.Image(), "caption": datasets.Value("string")})
    made = datasets.Dataset.from_dict({"picture": images, "caption": [f"a {c} cat" for c in COLORS]}, features)
    datasets.DatasetDict({"train": made, "test": made.select([0])}).save_to_disk(tmp_path / "saved")
    index = scan(tmp_path / "saved")
    assert [entry.key.rsplit("/", 1)[1] for entry in index.entries] == [f"{n:08}.png" for n in (0, 0, 1, 2)]
    assert captions(index) == ["a red cat", "a red cat", "a blue cat", "a lime cat"]
    assert index.rejected == ()


def test_without_pyarrow_the_error_names_what_to_install(table, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(LdmkitError, match=r"tables are read with pyarrow: pip install 'ldmkit\[hub\]'"):
        scan(table)
