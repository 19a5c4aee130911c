"""`ldmkit export onnx` up to the point where graphs are written."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import click
import pytest

from ldmkit.cli.export import onnx
from ldmkit.pipeline import Pipeline
from ldmkit.recipe import find_recipe, load_recipe
from ldmkit.recipe.sections import Export
from ldmkit.run.files import fingerprint
from ldmkit.runtime.manifest import Precision

Run = Callable[..., Any]


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path, Path | None, str | None]]:
    """(run, folder of the bundle, forced) of each export that was begun."""
    calls: list[tuple[Path, Path | None, str | None]] = []

    def record(
        self: Pipeline, stages: tuple[str, ...], *, forced: str | None = None, bundle_dir: Path | None = None
    ) -> None:
        assert stages == ("export",)
        calls.append((self.run_dir, bundle_dir, forced))

    monkeypatch.setattr(Pipeline, "run", record)
    return calls


def make_run(name: str, *, state: str, seconds: int) -> Path:
    """A run's folder as far as finding the newest one looks into it."""
    folder = Path("runs") / name
    (folder / "t2i").mkdir(parents=True)
    recipe = load_recipe(find_recipe("photos-64"), [f"name={name}"])
    (folder / "recipe.json").write_text(recipe.model_dump_json())
    record = folder / "t2i" / "record.json"
    record.write_text(json.dumps({"inputs": {}, "fingerprint": fingerprint({}), "state": state}))
    os.utime(record, (seconds, seconds))
    return folder


def test_the_newest_finished_run(run: Run, exported: list[tuple[Path, Path | None, str | None]]) -> None:
    make_run("first", state="done", seconds=1000)
    newest = make_run("second", state="done", seconds=3000)
    make_run("third", state="done", seconds=2000)
    make_run("unfinished", state="running", seconds=4000)
    left = run("export", "onnx")
    assert (left.code, left.err) == (0, "")
    assert left.out.endswith("bundle: exports/second\n")
    assert exported == [(newest, None, "export")]


def test_a_run_by_folder_and_by_name(run: Run, exported: list[Any]) -> None:
    folder = make_run("first", state="done", seconds=1000)
    for name in ("first", "runs/first", "runs/first/", str(folder.resolve())):
        assert run("export", "onnx", name).code == 0
        assert exported.pop()[0].resolve() == folder.resolve()
    assert run("export", "onnx", "first", "--out", "elsewhere").out.endswith("bundle: elsewhere\n")
    assert exported.pop()[1] == Path("elsewhere")


def test_precision_and_encoder(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run("first", state="done", seconds=1000)
    asked: list[tuple[str, bool]] = []
    monkeypatch.setattr(
        Pipeline, "run", lambda self, *_, **__: asked.append((self.recipe.export.precision, self.recipe.export.encoder))
    )
    for arguments in ((), ("--precision", "fp16", "--with-encoder"), ("--precision", "fp16-weights")):
        assert run("export", "onnx", "first", *arguments).code == 0
    assert asked == [("fp32", False), ("fp16", True), ("fp16-weights", False)]
    left = run("export", "onnx", "first", "--precision", "int8")
    assert (left.code, "'fp32', 'fp16-weights', 'fp16'" in left.err) == (2, True)


def test_precisions_are_those_of_recipes_and_manifests() -> None:
    known = get_args(Precision)
    assert get_args(Export.model_fields["precision"].annotation) == known
    (option,) = [parameter for parameter in onnx.params if parameter.name == "precision"]
    assert isinstance(option.type, click.Choice)
    assert tuple(option.type.choices) == known


def test_weights_of_an_unfinished_run(run: Run) -> None:
    make_run("first", state="done", seconds=1000)
    left = run("export", "safetensors", "first", "--out", "weights")
    assert left.code == 1
    assert left.err.startswith(f"error: {Path('runs/first/vae')}: not finished; `ldmkit train` with the run's recipe")
    assert not Path("weights").exists()


def test_a_renamed_run_goes_by_its_folder(run: Run, exported: list[Any]) -> None:
    copied = make_run("first", state="done", seconds=1000).rename("runs/kept")
    assert run("export", "onnx", "kept").out.endswith("bundle: exports/kept\n")
    assert exported.pop()[0] == copied


def test_a_folder_whose_name_no_bundle_can_have(run: Run, exported: list[Any]) -> None:
    make_run("first", state="done", seconds=1000).rename("runs/kept (2)")
    left = run("export", "onnx", "kept (2)")
    assert left.code == 1
    assert left.err.startswith(f"error: {Path('runs/kept (2)')}: a bundle cannot have this folder's name: letters")
    assert exported == []


def test_code_that_comes_along_with_a_run_is_not_run(run: Run, exported: list[Any], tmp_path: Path) -> None:
    folder = make_run("first", state="done", seconds=1000)
    plugin = "from pathlib import Path\nPath('sprung').touch()\n"
    for place, code in ((folder / "evil.py", 1), (tmp_path / "mine.py", 0)):
        place.write_text(plugin)
        record = json.loads((folder / "recipe.json").read_text())
        (folder / "recipe.json").write_text(json.dumps({**record, "plugins": [str(place)]}))
        left = run("export", "onnx", "first")
        assert left.code == code, left.err
        assert Path("sprung").exists() == (code == 0)
        assert ("recipe.json: plugins:" in left.err) == (code == 1)
        assert ("recipe.json: runs the plugin" in left.err) == (code == 0)


def test_what_is_no_run(run: Run, tmp_path: Path) -> None:
    left = run("export", "onnx")
    assert left == (1, "", "error: runs: no finished run here; `ldmkit train RECIPE` makes one\n")
    for name, what in (("nothing", "no such folder"), (str(tmp_path), "not a run: it has no recipe.json")):
        left = run("export", "onnx", name)
        assert left.code == 1
        assert left.err == f"error: {name}: {what}; runs lie in runs/\n"
    Path("cats.toml").touch()
    left = run("export", "onnx", "cats.toml")
    assert left == (1, "", "error: cats.toml: a file, not a run; the run of a recipe is the folder runs/NAME\n")


def test_a_run_that_is_not_finished(run: Run, pictures: Path) -> None:
    """A real one, whose captions are all there is."""
    arguments = ("--set", f"data.path={pictures}", "--set", "caption.use=filename")
    assert run("caption", "photos-64", *arguments).code == 0
    left = run("export", "onnx", "photos-64")
    assert left.code == 1
    assert left.err.startswith(f"error: {Path('runs/photos-64/vae')}: missing, and bundle is made from it; run `ldmkit")
    assert "no finished run" in run("export", "onnx").err
