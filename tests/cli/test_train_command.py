"""`ldmkit train` up to the point where training begins, and `ldmkit status`."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ldmkit.pipeline import Pipeline

Run = Callable[..., Any]


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What would have been run: (recipe's name, stages, forced, ignore_gate) of each call."""
    calls: list[tuple[Any, ...]] = []

    def record(
        self: Pipeline, stages: tuple[str, ...], *, forced: str | None = None, ignore_gate: bool, **_: Any
    ) -> None:
        calls.append((self.recipe.name, stages, forced, ignore_gate))

    monkeypatch.setattr(Pipeline, "run", record)
    return calls


def test_stages(run: Run, begun: list[tuple[Any, ...]]) -> None:
    every = ("caption", "train-vae", "encode", "train-unet", "train-t2i", "export")
    for arguments, stages in {
        ("train", "toy-cats"): every,
        ("train", "toy-cats", "--only", "encode"): ("encode",),
        ("train", "toy-cats", "--from", "train-unet"): every[3:],
        **{(stage, "toy-cats"): (stage,) for stage in every[:-1]},
    }.items():
        assert run(*arguments).code == 0
        assert begun.pop() == ("toy-cats", stages, None, False)
    run("train-vae", "toy-cats", "--again")
    assert begun.pop() == ("toy-cats", ("train-vae",), "train-vae", False)
    for command in ("train", "train-unet", "train-t2i"):
        run(command, "toy-cats", "--force")
        assert begun.pop()[3] is True
    assert run("encode", "toy-cats", "--force").code == 2  # which no gate stops
    run("train", "toy-cats", "--set", "name=mine")
    assert begun.pop()[0] == "mine"


def test_a_data_set_that_cannot_be_reached(tmp_path: Path) -> None:
    """Without network: by name, and with the way out. A proxy that is not there stands for no network."""
    dead = dict.fromkeys(("HTTPS_PROXY", "HTTP_PROXY", "https_proxy", "http_proxy"), "http://127.0.0.1:9")
    left = subprocess.run(
        [sys.executable, "-m", "ldmkit", "train", "recipes/cats.toml"],
        cwd=tmp_path,
        env={k: v for k, v in os.environ.items() if k not in ("no_proxy", "NO_PROXY")}
        | dead
        | {"HF_HOME": str(tmp_path / "hub"), "HF_HUB_DISABLE_TELEMETRY": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert left.returncode == 1
    assert left.stderr.startswith("error: data.source: cat.zip of the data set ziyang06315/cats_images_dataset")
    assert "--set data.path=DIR" in left.stderr
    assert "Traceback" not in left.stderr
    assert not (tmp_path / "data").exists()


def test_pictures_of_ones_own_instead(run: Run, pictures: Path) -> None:
    left = run(
        "train", "recipes/cats.toml", "--set", f"data.path={pictures}", "--set", "caption.use=filename", "--dry-run"
    )
    assert left.code == 0
    assert left.err == ""
    assert left.out.splitlines()[0] == "run runs/cats"
    assert [line.split() for line in left.out.splitlines()[1:]] == [
        ["caption", "captions", "missing"],
        ["train-vae", "vae", "missing"],
        ["encode", "latents", "missing"],
        ["encode", "text", "missing"],
        ["train-unet", "unet", "missing"],
        ["train-t2i", "t2i", "missing"],
        ["export", "bundle", "missing"],
    ]
    assert not Path("runs").exists()


def test_a_first_stage_really_runs_on_them(run: Run, pictures: Path, tmp_path: Path) -> None:
    arguments = ("cats", "--set", f"data.path={pictures}", "--set", "caption.use=filename")
    left = run("caption", *arguments)
    assert left.code == 0, left.err
    rows = [json.loads(line) for line in (tmp_path / "runs/cats/captions/captions.jsonl").read_text().splitlines()]
    assert {row["caption"] for row in rows} == {"red cat"}
    parts = json.loads(run("status", *arguments, "--json").out)["parts"]
    assert [part["state"] for part in parts] == ["done", *["missing"] * 6]
    assert run("caption", *arguments).out == "cats: everything is up to date; nothing to do\n"
    changed = run("status", *arguments, "--set", "caption.strip_digits=false").out
    assert "stale  (caption.strip_digits" in changed


@pytest.mark.parametrize(
    "command", [("train",), ("train", "--dry-run"), ("status",), ("status", "--json"), ("caption",)]
)
def test_a_folder_without_pictures(command: tuple[str, ...], run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    for folder, what in {
        "nowhere": "does not exist",
        "empty": "holds no pictures",
        "file": "is neither a folder nor an archive",
    }.items():
        left = run(command[0], "photos-64", *command[1:], "--set", f"data.path={folder}")
        assert (left.code, left.out) == (1, "")
        assert left.err.startswith(f"error: data.path: {tmp_path / folder} {what}")
        assert "--set data.path=DIR" in left.err


def test_a_plan_fetches_nothing(run: Run, tmp_path: Path) -> None:
    left = run("train", "toy-cats", "--dry-run")
    assert left.code == 0
    assert "the pictures are not there yet" in left.out
    assert list(tmp_path.iterdir()) == []


def test_a_command_that_cannot_begin_leaves_nothing(run: Run, pictures: Path, tmp_path: Path) -> None:
    for path in ("nowhere", "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        assert run("train", "cats", "--set", f"data.path={path}", "--set", "caption.use=filename").code == 1
        assert not (tmp_path / "runs").exists()


def test_captions_that_exist_need_no_torch(
    run: Run, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ldmkit.cli.common.find_spec", lambda name: None)
    options = ("--set", "data.path=pictures", "--set", "caption.use=filename", "--set", "text.use=transformer")
    left = run("caption", "toy-cats", *options)
    assert (left.code, left.err) == (0, "")
    assert (tmp_path / "runs" / "toy-cats" / "captions" / "captions.jsonl").is_file()
    assert "torch" in run("train-vae", "toy-cats", *options).err


@pytest.mark.parametrize("command", [("caption",), ("train", "--dry-run"), ("status", "--json"), ("plan",)])
def test_reading_many_pictures_is_not_silent(
    command: tuple[str, ...], run: Run, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What only looks says so on stderr: stdout is for the result."""
    monkeypatch.setattr("ldmkit.report.PATIENCE", 0.0)
    monkeypatch.setattr("ldmkit.plan.planner.Planner.__init__", lambda *_, **__: sys.exit(0))
    left = run(command[0], "cats", *command[1:], "--set", f"data.path={pictures}", "--set", "caption.use=filename")
    assert left.code == 0
    assert "reading pictures  12/12" in (left.out if command == ("caption",) else left.err)
    assert "reading pictures" not in (left.err if command == ("caption",) else left.out)


def test_drawing_many_pictures_is_not_silent(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ldmkit.report.PATIENCE", 0.0)
    assert "getting pictures  5/5" in run("caption", "toy-cats", "--set", "data.num_pictures=5").out


def test_more_pictures_asked_for_than_there_are_is_not_passed_over(run: Run, pictures: Path) -> None:
    """A set that ldmkit drew could be drawn larger, so that is a mistake; one's own photos are as many as they are."""
    assert run("caption", "toy-cats", "--set", "data.num_pictures=5").code == 0
    more = run("caption", "toy-cats", "--set", "data.num_pictures=8")
    assert more.code == 1
    assert "data.num_pictures is 8, and data/toy-cats holds 5 toy cats: remove the folder" in more.err
    own = ("caption", "toy-cats", "--set", f"data.path={pictures}", "--set", "caption.use=filename")
    told = run(*own, "--set", "data.num_pictures=13")
    assert told.code == 0
    assert f"data.num_pictures = 13, and {pictures} has 12 that can be used" in told.out
    assert "num_pictures" not in run(*own, "--set", "data.num_pictures=12").out
