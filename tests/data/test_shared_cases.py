"""The inputs of ../shared/cases/data that concern what is listed and read. Other tests make small ones of each kind:
test_unread.py (1, 2, 18), test_caption_forms.py (10 to 15, 20), test_links.py (17), test_archives.py and
test_tables.py (19), tests/recipe/test_load.py (21)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ldmkit_captions import Filename, Folder, Sidecar

from ldmkit import LdmkitError
from ldmkit.data.pictures import PictureIndex, scan
from ldmkit.recipe import RecipeFile

CASES = Path(__file__).parents[3] / "shared" / "cases" / "data"
pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason="the shared cases are not here")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], PictureIndex]:
    monkeypatch.setenv("LDMKIT_CACHE", str(tmp_path / "cache"))

    def read(case: str) -> PictureIndex:
        number, _, folder = case.partition("/")
        (found,) = CASES.glob(f"{number}-*")
        return scan(found / (folder or "pics"), max_bad=1)

    return read


def captions(index: PictureIndex, **options: Any) -> tuple[list[str | None], list[str]]:
    sidecar = Sidecar(**options)
    return sidecar.caption(index.pictures()), sidecar.remarks()


def test_every_file_is_read_or_named(index: Callable[[str], PictureIndex]) -> None:
    found = index("01")
    said = "\n".join((*(key for key, _ in found.rejected), *found.unread))
    folder = found.folder
    read = {entry.key for entry in found.entries}
    assert [path.name for path in folder.iterdir() if path.name not in read and path.name not in said] == []
    assert {"chrome_12.jfif", "old_13.jpe", "stereo_14.mpo", "anim_18.apng"} <= read


def test_each_file_is_called_what_it_is(index: Callable[[str], PictureIndex]) -> None:
    found = index("02")
    reasons = {**dict(found.rejected), **dict.fromkeys((entry.key for entry in found.entries), "read")}
    assert "git lfs pull" in reasons["lfs.jpg"]
    assert "HTML" in reasons["blocked.jpg"]
    assert "HEIC" in reasons["from_iphone.jpg"] or reasons["from_iphone.jpg"] == "read"
    assert "AVIF" in reasons["from_web.jpg"] or reasons["from_web.jpg"] == "read"


@pytest.mark.parametrize(("case", "options"), [("10", {}), ("11", {}), ("12", {}), ("13", {})])
def test_every_row_finds_its_picture(case: str, options: dict[str, str], index: Callable[[str], PictureIndex]) -> None:
    texts, remarks = captions(index(case), **options)
    assert len(texts) == 12
    assert None not in texts
    assert remarks == []


def test_all_captions_of_other_encodings_are_named(index: Callable[[str], PictureIndex]) -> None:
    with pytest.raises(LdmkitError, match="not UTF-8") as caught:
        captions(index("14"))
    assert str(caught.value).count(".txt") > 1


def test_sidecars_however_they_are_named(index: Callable[[str], PictureIndex]) -> None:
    texts, _ = captions(index("15"))
    assert texts.count(None) == 0


def test_thumbnails_and_recycle_bins(index: Callable[[str], PictureIndex]) -> None:
    found = index("18")
    assert len(found) == 8
    assert any("@eaDir" in line for line in found.unread)


@pytest.mark.parametrize(
    ("kind", "count"), [("zip", 12), ("webdataset", 12), ("parquet", 12), ("save_to_disk", 12), ("mixed", 40)]
)
def test_containers(kind: str, count: int, index: Callable[[str], PictureIndex]) -> None:
    if kind not in ("zip", "webdataset"):
        pytest.importorskip("pyarrow")
    found = index(f"19/{kind}/pics")
    assert len(found) == count
    assert found.rejected == ()
    texts, remarks = captions(found)
    assert [text for text in texts if text] == [f"a cat {number}" for number in range(12)] * ((count - 4) // 12 or 1)
    assert remarks == []
    if kind == "mixed":
        said = found.summary()[0]
        assert all(name in said for name in ("00000.tar", "set.zip", "train-00000-of-00001.parquet"))


def test_class_folders(index: Callable[[str], PictureIndex]) -> None:
    pictures = index("20").pictures()
    assert set(Folder().caption(pictures)) == {"Siamese", "black cat", "tabby"}
    assert set(Filename().caption(pictures)) == {None}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("windows_path", "single quotes"),
        ("windows_path2", "single quotes"),
        ("smart_quotes", "typographic"),
        ("python_bool", "true or false"),
        ("yaml", "looks like YAML"),
        ("utf16_notepad", "save it as UTF-8"),
        ("cp1252", "save it as UTF-8"),
        ("twice", "twice"),
        ("utf8_bom", None),
        ("crlf", None),
    ],
)
def test_recipe_files(name: str, said: str | None) -> None:
    path = CASES / "21-recipe-files" / f"{name}.toml"
    if said is None:
        RecipeFile.read(path).validate()
        return
    with pytest.raises(LdmkitError, match=said):
        RecipeFile.read(path)
