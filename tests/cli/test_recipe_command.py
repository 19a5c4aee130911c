"""`ldmkit recipe`."""

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]


def test_check(run: Run, tmp_path: Path) -> None:
    assert run("recipe", "check", "cats") == (0, "cats: no mistakes (cats)\n", "")
    assert run("recipe", "check", "cats", "--set", "name=mine") == (0, "cats: no mistakes (mine)\n", "")
    left = run("recipe", "check", "cats", "--set", "vae.step=3", "--set", "sampler.use=dim")
    assert left.code == 1
    assert left.out == ""
    assert [line.split("(did")[0] for line in left.err.splitlines()] == [
        f"error: {Path(__file__).parents[2] / 'recipes' / 'cats.toml'}: 2 mistakes",
        '  [vae] has the unknown key "step" ',
        '  [sampler] no sampler is called "dim" ',
    ]
    assert run("recipe", "check", "cat").err.startswith(
        'error: cat: no such recipe (did you mean "cats"?); the recipes'
    )


def test_show_is_a_recipe(run: Run, tmp_path: Path) -> None:
    shown = run("recipe", "show", "toy-cats", "--set", "seed=5").out
    assert tomllib.loads(shown)["seed"] == 5
    (tmp_path / "copy.toml").write_text(shown)
    assert run("recipe", "show", "copy.toml").out == shown
    as_json = json.loads(run("recipe", "show", "copy.toml", "--json").out)
    assert as_json["data"] == {**tomllib.loads(shown)["data"]}


def test_shown_plugins_lie_beside_the_recipe(run: Run, tmp_path: Path) -> None:
    """What is shown can be saved beside them, and the whole folder taken elsewhere."""
    folder = tmp_path / "mine"
    (folder / "sub").mkdir(parents=True)
    for path in (folder / "sub" / "plugin.py", tmp_path / "other.py"):
        path.write_text("")
    (folder / "mine.toml").write_text(
        'plugins = ["sub/plugin.py"]\n[vae]\nsteps = 1\n[unet]\nsteps = 1\n[t2i]\nsteps = 1\n'
    )
    shown = run("recipe", "show", "mine/mine.toml").out
    assert shown.startswith(f"# plugins lie beside the recipe, in {folder}: ")
    assert tomllib.loads(shown)["plugins"] == ["./sub/plugin.py"]
    (folder / "shown.toml").write_text(shown)
    moved = folder.rename(tmp_path / "moved")
    left = run("recipe", "check", str(moved / "shown.toml"))
    assert (left.code, left.out) == (0, f"{moved / 'shown.toml'}: no mistakes (mine)\n")
    assert str(moved / "sub" / "plugin.py") in left.err
    shown = run("recipe", "show", "moved/mine.toml", "--set", "plugins=['other.py']").out
    assert tomllib.loads(shown)["plugins"] == ["other.py"]


def test_new(run: Run, tmp_path: Path) -> None:
    left = run("recipe", "new", "recipes/mine.toml")
    assert left == (0, "recipes/mine.toml: set data.path, then run `ldmkit train recipes/mine.toml`\n", "")
    assert run("recipe", "check", "recipes/mine.toml").code == 0
    text = (tmp_path / "recipes" / "mine.toml").read_text()
    again = run("recipe", "new", "recipes/mine.toml")
    assert again == (1, "", "error: recipes/mine.toml: exists already; choose another name\n")
    assert (tmp_path / "recipes" / "mine.toml").read_text() == text


def test_new_where_nothing_can_be_written(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    left = run("recipe", "new", "file/mine.toml")
    assert (left.code, left.out) == (1, "")
    assert left.err.startswith("error: file")
    assert left.err.count("\n") == 1


def test_schema_is_json(run: Run) -> None:
    schema = json.loads(run("recipe", "schema").out)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["properties"]["data"]
    assert "dpmpp_2m" in schema["$defs"]["SamplerChoice"]["properties"]["use"]["enum"]


def test_a_plugin_file_that_is_not_there_names_recipe_and_key(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("plugins = ['gone.py']")
    left = run("recipe", "check", "mine.toml")
    assert left == (1, "", f"error: mine.toml: plugins: {tmp_path / 'gone.py'}: no such plugin file\n")


@pytest.mark.parametrize("command", ["train", "status", "caption", "train-t2i"])
def test_every_command_that_takes_a_recipe_checks_it_first(command: str, run: Run, tmp_path: Path) -> None:
    left = run(command, "toy-cats", "--set", "t2i.step=3")
    assert left.code == 1
    assert '[t2i] has the unknown key "step" (did you mean "steps"?) (from --set t2i.step=3)' in left.err
    assert list(tmp_path.iterdir()) == []
