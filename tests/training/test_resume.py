"""Training that is stopped in every way and goes on: not one bit differs from training left alone."""

import json
import random
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from ldmkit.signals import StopSignals

# Two signals as soon as the save of the sixth step is on its way to the disk, which then takes forever.
IMPATIENT = """
import os, signal, sys, threading, time

def watch(event, arguments):
    if event == "os.mkdir" and ".step_00000006" in str(arguments[0]):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(600)

sys.addaudithook(watch)
"""
STAGES = {"train-vae": "vae", "train-unet": "unet", "train-t2i": "t2i"}


@pytest.mark.parametrize("stage", STAGES)
def test_killed_anywhere(stage: str, trained: Any, exact: Any, processes: Any, tmp_path: Path) -> None:
    part = exact.before(trained, STAGES[stage], tmp_path)
    shutil.copytree(tmp_path, counted := tmp_path / "counted")
    code, output = processes.run(counted, (stage, "tiny.toml"), strike=-1)
    assert code == 0, output
    exact.assert_same(counted / "runs" / "tiny" / STAGES[stage], trained.run / STAGES[stage])  # the same run twice
    total = int(output.split("touched ")[1])
    assert total > 60
    rng = random.Random(stage)
    killed = inside_saves = 0
    while killed < 7:
        # Every second one in a save: the touches of its temporary folder are counted, about 25 a save.
        at, most = ("/checkpoints/.", 40) if killed % 2 else ("runs/", total * 2 // 3)
        code, output = processes.run(tmp_path, (stage, "tiny.toml"), strike=rng.randrange(1, most), at=at)
        assert code in (-signal.SIGKILL, 0), output
        killed += code != 0
        inside_saves += any((part / "checkpoints").glob(".*"))
        if code == 0:
            exact.assert_same(part, trained.run / STAGES[stage])
            shutil.rmtree(part)
    assert inside_saves >= 2
    code, output = processes.run(tmp_path, (stage, "tiny.toml"))
    assert code == 0, output
    exact.assert_same(part, trained.run / STAGES[stage])
    left = [path.name for path in part.rglob(".*")]
    assert not left, "a killed save's leftovers"


def test_checkpoints_that_a_whole_run_keeps(trained: Any, exact: Any, processes: Any, tmp_path: Path) -> None:
    """The last one, every third step's, and the best on the held-out pictures: here one before training went wrong."""
    part = exact.before(trained, "t2i", tmp_path)
    wild = [
        "--set",
        "t2i.learning_rate=1.0",
        "--set",
        "t2i.warmup_steps=8",
        "--set",
        "t2i.eval_every=2",
        "--set",
        "t2i.keep_best=true",
    ]
    code, output = processes.run(tmp_path, ("train-t2i", "tiny.toml", *wild))
    assert code == 0, output
    rows = [json.loads(line) for line in (part / "metrics.jsonl").read_text().splitlines()]
    held_out = {row["step"]: row["held_out_loss_ema"] for row in rows if "held_out_loss_ema" in row}
    assert list(held_out) == [2, 4, 6, 8]
    best = min(held_out, key=held_out.__getitem__)
    assert best in (2, 4)
    kept = sorted(path.name for path in (part / "checkpoints").iterdir())
    assert kept == [f"step_{step:08d}" for step in sorted({best, 3, 6, 8})]


def test_second_signal_leaves_at_once(trained: Any, exact: Any, processes: Any, tmp_path: Path) -> None:
    """In the middle of a save: the checkpoint before it stays, and training goes on from there."""
    part = exact.before(trained, "unet", tmp_path)
    (tmp_path / "impatient.py").write_text(IMPATIENT)
    recipe = tmp_path / "tiny.toml"
    recipe.write_text('plugins = ["./impatient.py"]\n' + recipe.read_text())
    code, output = processes.run(tmp_path, ("train-unet", "tiny.toml"))
    assert code == 130, output
    assert output.splitlines()[-1] == "interrupted"
    assert [path.name for path in (part / "checkpoints").glob("step_*")] == ["step_00000003"]
    (tmp_path / "impatient.py").write_text("")
    code, output = processes.run(tmp_path, ("train-unet", "tiny.toml"))
    assert code == 0, output
    assert "going on from step 3 of 8" in output
    exact.assert_same(part, trained.run / "unet")


@pytest.mark.parametrize(
    ("stage", "number", "code"), [("train-vae", signal.SIGTERM, 143), ("train-t2i", signal.SIGINT, 130)]
)
def test_asked_to_stop(
    stage: str, number: int, code: int, trained: Any, exact: Any, processes: Any, tmp_path: Path
) -> None:
    part = exact.before(trained, STAGES[stage], tmp_path)
    # The log is opened once a step and once a save, and once more where there is one to resume.
    for strike, step in ((2, 2), (5, 5)):
        options = {"strike": strike, "at": f"/{STAGES[stage]}/metrics.jsonl", "signal": int(number)}
        found, output = processes.run(tmp_path, (stage, "tiny.toml"), **options)
        assert found == code, output
        assert "stopping after this step" in output
        assert f"saved at step {step} of 8; the same command goes on" in output
        assert len(exact.curve(part)) == step
        assert (part / "checkpoints" / f"step_{step:08d}" / "manifest.json").is_file()
        assert json.loads((part / "record.json").read_text())["state"] == "running"
    found, output = processes.run(tmp_path, (stage, "tiny.toml"))
    assert found == 0, output
    assert "going on from step 5 of 8" in output
    exact.assert_same(part, trained.run / STAGES[stage])


def test_asked_to_stop_at_the_last_step(trained: Any, exact: Any, processes: Any, tmp_path: Path) -> None:
    part = exact.before(trained, "unet", tmp_path)
    options = {"strike": 10, "at": "/unet/metrics.jsonl", "signal": int(signal.SIGTERM)}  # behind two saves
    code, output = processes.run(
        tmp_path, ("train-unet", "tiny.toml"), ("train-t2i", "tiny.toml", "--again"), **options
    )
    assert code == 143, output  # the stage behind it does not begin
    assert "t2i" not in output
    code, output = processes.run(tmp_path, ("train-unet", "tiny.toml"))
    assert code == 0, output
    exact.assert_same(part, trained.run / "unet")
    records = [json.loads((folder / "record.json").read_text()) for folder in (part, trained.run / "unet")]
    assert records[0]["facts"] == records[1]["facts"] != {}


@pytest.mark.parametrize("strike", [12, 25, 33, 41])
def test_encoding_killed(strike: int, trained: Any, exact: Any, processes: Any, tmp_path: Path) -> None:
    exact.before(trained, "latents", tmp_path)
    shutil.rmtree(tmp_path / "runs" / "tiny" / "text")
    code, output = processes.run(tmp_path, ("encode", "tiny.toml"), strike=strike)
    assert code == -signal.SIGKILL, output
    code, output = processes.run(tmp_path, ("encode", "tiny.toml"))
    assert code == 0, output
    for part in ("latents", "text"):
        files = sorted(path.name for path in (trained.run / part).iterdir())
        assert sorted(path.name for path in (tmp_path / "runs" / "tiny" / part).iterdir()) == files
        for name in set(files) - {"record.json"}:
            found = (tmp_path / "runs" / "tiny" / part / name).read_bytes()
            assert found == (trained.run / part / name).read_bytes(), name


def test_killed_beside_loader_processes(trained: Any, exact: Any, processes: Any, tmp_path: Path) -> None:
    """They outlive a killed parent for seconds; the run can go on at once all the same."""
    part = exact.before(trained, "vae", tmp_path)
    command = ("train-vae", "tiny.toml", "--set", "data.num_workers=2")
    code, output = processes.run(tmp_path, command, strike=5, at="/metrics.jsonl")
    assert code == -signal.SIGKILL, output
    code, output = processes.run(tmp_path, command)
    assert code == 0, output
    exact.assert_same(part, trained.run / "vae")


def test_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    with StopSignals("vae", quiet=True) as signals:
        assert signals.number == 0
        signal.raise_signal(signal.SIGTERM)
        assert signals.number == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    monkeypatch.setenv("WORLD_SIZE", "2")
    with StopSignals("vae", quiet=True) as signals:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)  # the launcher passing on what the terminal sent to all
        assert signals.number == signal.SIGINT
