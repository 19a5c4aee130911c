"""`ldmkit plan`: what it counts, what it leaves alone, and what a real run then writes. Its times are not looked at."""

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ldmkit.plan import planner

Run = Callable[..., Any]

PLUGIN = """
from pathlib import Path
from ldmkit import LdmkitError, hookimpl

class Unreachable:
    def caption(self, pictures):
        raise LdmkitError("the hub cannot be reached")

@hookimpl
def register_captioners():
    return {"unreachable": Unreachable}

@hookimpl
def log_metrics(run_dir, stage, step, metrics):
    Path("heard").write_text("")
"""


@pytest.fixture
def here(tmp_path: Path, trained: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the trained workshop's pictures and recipe, a plugin, and a place for temporary files."""
    shutil.copytree(trained.folder / "pictures", tmp_path / "pictures")
    (tmp_path / "plugin.py").write_text(PLUGIN)
    recipe = (trained.folder / "tiny.toml").read_text()
    (tmp_path / "tiny.toml").write_text('plugins = ["./plugin.py"]\n' + recipe)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    # torch makes a folder of its own among the temporary files, once in a process: whichever test is the first.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path.parent / "inductor"))
    monkeypatch.setattr("ldmkit.report.PATIENCE", 0)
    # Fewer than there are, so that what is said of all is worked out from some.
    monkeypatch.setattr(planner, "MAX_SAMPLE", 8)
    monkeypatch.setattr(planner, "MIN_SAMPLE", 8)
    return tmp_path


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of each file and folder."""
    return {
        str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if "__pycache__" not in path.parts and path != folder / "tmp"
    }


def written(folder: Path) -> int:
    """Bytes of a part, without its record."""
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file() and f != folder / "record.json")


def test_a_run_that_has_not_begun(run: Run, here: Path, trained: Any) -> None:
    before = tree(here)
    # Two epochs of 18 pictures are 7 batches of 5.
    epochs = ("--set", "vae.losses.gan.start_epoch=2", "--set", "vae.batch_size=5")
    left = run("plan", "tiny.toml", "--steps", "8", "--json", *epochs)
    assert left.code == 0, left.err
    assert "reading pictures  20/20" in left.err
    assert tree(here) == before
    told = json.loads(left.out)
    rows = {row["stage"]: row for row in told["stages"]}
    assert {name: row["left"] for name, row in rows.items()} == {
        "caption": 20,
        "train-vae": 7,
        "train-vae with gan": 1,
        "encode latents": 20,
        "encode text": rows["encode text"]["left"],
        "train-unet": 8,
        "train-t2i": 8,
        "export": 1,
    }
    disk: Counter[str] = Counter()
    for name, row in rows.items():
        disk[name.partition(" with ")[0]] += row["disk"]
    parts = {"caption": "captions", "train-vae": "vae", "encode latents": "latents"}
    parts |= {"train-unet": "unet", "train-t2i": "t2i"}
    for stage, part in parts.items():
        real = written(trained.run / part)
        assert disk[stage] == pytest.approx(real, rel=0.2), stage
    assert disk["encode latents"] == pytest.approx(written(trained.run / "latents"), abs=512)  # headers
    assert told["disk"] == sum(row["disk"] for row in rows.values())
    checkpoint = max((trained.run / "t2i" / "checkpoints").iterdir())
    assert rows["train-t2i"]["transient_disk"] == pytest.approx(written(checkpoint), rel=0.02)
    assert all(rows[stage]["largest_batch"]["size"] % 2 == 0 for stage in ("train-unet",))  # grad_accumulation = 2


def test_a_run_on_its_way(run: Run, here: Path, trained: Any) -> None:
    """Done stages cost nothing, an interrupted one what is left of it, and one that cannot run stops no other."""
    shutil.copytree(trained.run, here / "runs" / "tiny")
    unet = here / "runs" / "tiny" / "unet"
    shutil.rmtree(unet / "checkpoints" / "step_00000008")
    record = json.loads((unet / "record.json").read_text())
    inputs = {key: record[key] for key in ("inputs", "fingerprint", "made_of")}
    (unet / "record.json").write_text(json.dumps({**inputs, "state": "running"}))
    before = tree(here)
    left = run(
        "plan",
        "tiny.toml",
        "--steps",
        "8",
        "--json",
        "--set",
        "caption.use=unreachable",
        "--set",
        "caption.keep_existing=false",
        "--set",
        "t2i.keep_best=true",
    )
    assert tree(here) == before
    rows = {row["stage"]: row for row in json.loads(left.out)["stages"]}
    assert left.code == 1
    assert rows["caption"]["state"] == "cannot run"
    assert "the hub cannot be reached" in rows["caption"]["reason"]
    assert [rows[stage]["state"] for stage in ("train-vae", "encode latents")] == ["done", "done"]
    assert rows["train-unet"]["left"] == 8 - 6  # of the checkpoint at step 6
    assert rows["train-unet"]["disk"] < rows["train-t2i"]["disk"]  # most of it is there
    assert rows["train-t2i"]["left"] == 8  # its captions are other ones now


def test_mistakes_are_one_line(run: Run, here: Path) -> None:
    for arguments, expected in {
        ("plan", "tinny.toml"): "tinny.toml",
        ("plan", "tiny.toml", "--set", "data.path=nowhere"): "data.path: ",
        ("plan", "tiny.toml", "--set", "vae.stepz=3"): "stepz",
    }.items():
        left = run(*arguments)
        assert (left.code, left.out) == (1, "")
        error = left.err.splitlines()[-1]  # before it stands that the recipe's plugin is run
        assert error.startswith("error: ")
        assert expected in error
        assert left.err.count("error: ") == 1
    assert run("plan", "tiny.toml", "--steps", "7").code == 2
    assert list((here / "tmp").iterdir()) == []


def test_ctrl_c_leaves_nothing(here: Path, processes: Any) -> None:
    before = tree(here)
    temporary = here / "tmp"
    code, output = processes.run(
        here, ("plan", "tiny.toml"), env={"TMPDIR": str(temporary)}, strike=60, signal=2, at="ldmkit-plan-"
    )
    assert code == 130, output
    assert "\ninterrupted\n" in output
    assert "measuring train-vae" in output
    assert {name: file for name, file in tree(here).items() if not name.startswith("output-")} == before
