"""`ldmkit data check`: what it prints and writes, and that a run takes over what it read."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.cli.conftest import Run
from tests.data.test_looks import photo


@pytest.fixture
def album(tmp_path: Path) -> Path:
    """Eight good photos, one blank, one broken: a name and a caption that would be markup in a page."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for seed in range(8):
        photo(seed, (120, 90)).save(folder / f"<img src=x>{seed}.jpg")
        (folder / f"<img src=x>{seed}.txt").write_text(f"<script>alert({seed})</script> of cat {seed}")
    Image.new("RGB", (80, 80), "navy").save(folder / "blank.png")
    (folder / "broken.png").write_bytes(b"x")
    return folder


def test_what_it_prints_and_its_json(album: Path, run: Run, tmp_path: Path) -> None:
    printed = run("data", "check", "pictures")
    assert (printed.code, printed.err) == (0, "")
    lines = printed.out.splitlines()
    assert lines[0] == "9 pictures; sizes: 120x90 (8), 80x80 (1)"
    assert lines.count("cannot be used: 1") == lines.count("near-blank: 1") == lines.count("without a caption: 1") == 1
    assert "  blank.png: its greys span 0 of 255 levels" in lines
    told = json.loads(run("data", "check", "pictures", "--json").out)
    assert told["pictures"] == 9
    assert told["counts"] == {"unusable": 1, "blank": 1, "caption_missing": 1}
    assert [row["file"] for row in told["findings"]["blank"]] == ["blank.png"]
    assert told["rejected"][0]["file"] == "broken.png"
    listed = [json.loads(line) for line in (tmp_path / told["exclude"]).read_text().splitlines()]
    assert [row["file"] for row in listed] == ["blank.png"]


def test_keys_of_a_recipe_and_the_exit_code(album: Path, run: Run) -> None:
    assert (
        "smaller than the size they are trained at: 9" in run("data", "check", "pictures", "--set", "data.size=128").out
    )
    left = run("data", "check", "pictures", "--set", "data.max_bad=0.05")
    assert left.code == 1
    assert "cannot be used: 1" in left.out, "what was found is told all the same"
    assert left.err.startswith("error: data.path: 1 of 10 files")
    of_recipe = run("data", "check", "photos-64", "--set", "data.path=pictures")
    assert "captions: the captioner palette is to write 1 of them" in of_recipe.out
    assert "without a caption" not in of_recipe.out
    assert "data.siez" in run("data", "check", "pictures", "--set", "data.siez=3").err
    assert "nothing does not exist" in run("data", "check", "nothing").err


def test_the_page_asks_nobody_and_runs_nothing(album: Path, run: Run, tmp_path: Path) -> None:
    told = json.loads(run("data", "check", "pictures", "--json").out)
    page = (tmp_path / told["page"]).read_text()
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in page
    assert not re.search(r"https?:|<script|<img src=x|url\(|@import|<link", page)
    assert "&lt;script&gt;alert(0)&lt;/script&gt;" in page
    assert page.count('src="data:image/jpeg;base64,') == page.count("<img ") >= 9 + 2


def test_nothing_is_moved_unless_asked(album: Path, run: Run, tmp_path: Path) -> None:
    before = sorted(album.iterdir())
    run("data", "check", "pictures")
    assert sorted(album.iterdir()) == before
    (album / "blank.txt").write_text("nothing")
    left = run("data", "check", "pictures", "--quarantine", "aside")
    assert "2 files moved to aside\n" in left.out
    assert {path.name for path in (tmp_path / "aside").iterdir()} == {
        "blank.png",
        "blank.txt",
        "broken.png",
        "moved.jsonl",
    }
    again = json.loads(run("data", "check", "pictures", "--json").out)
    assert (again["pictures"], again["counts"]) == (8, {})


def test_a_run_decodes_nothing_that_was_checked(
    album: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ldmkit.components.registry import Registry
    from ldmkit.data import pictures
    from ldmkit.pipeline import Pipeline
    from ldmkit.recipe import find_recipe, load_recipe
    from ldmkit.report import Reporter

    told = json.loads(run("data", "check", "pictures", "--json").out)

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr(pictures, "_measure", never)
    sets = ["data.path=pictures", "data.max_bad=0.2", "data.group_duplicates=true", f"data.exclude={told['exclude']}"]
    recipe = load_recipe(find_recipe("photos-64"), sets)
    index = Pipeline(recipe, registry=Registry.load(), reporter=Reporter(quiet=True)).index
    assert len(index) == 8, "the list to exclude is followed"
    assert "exclude.jsonl" in recipe.published()["data"]["exclude"]
    assert "/" not in recipe.published()["data"]["exclude"]


def test_an_archive_is_checked_as_its_folder_and_nothing_moved_out_of_it(album: Path, run: Run, tmp_path: Path) -> None:
    of_folder = json.loads(run("data", "check", "pictures", "--json").out)
    archive = Path(shutil.make_archive(str(album), "zip", album))
    for path, prefix in ((archive, ""), (archive.parent / "backup", "pictures.zip/")):
        if prefix:
            path.mkdir()
            archive.rename(path / archive.name)
        told = json.loads(run("data", "check", path.name, "--json").out)
        assert told["counts"] == of_folder["counts"]
        assert [row["file"] for row in told["findings"]["caption_missing"]] == [f"{prefix}blank.png"]
        page = (tmp_path / told["page"]).read_text()
        assert page.count("<img ") == (tmp_path / of_folder["page"]).read_text().count("<img ")
        refused = run("data", "check", path.name, "--quarantine", "aside")
        assert refused.code == 1
        what = f"an archive: {prefix}broken.png" if prefix else f"{path.name};"
        assert f"nothing is moved out of {what}" in refused.err
        assert bool(refused.out) == bool(prefix), "where it is sure from the beginning nothing is looked at"
        assert not (tmp_path / "aside").exists()
    assert "archives and tables read: pictures.zip (9)" in run("data", "check", "backup").out
