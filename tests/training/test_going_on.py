"""A finished part that is trained on: the same bits where they can be, and told where they cannot."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

OFTEN = ("unet.lr_schedule='constant'", "unet.warmup_steps=0")


def train(processes: Any, folder: Path, *overrides: str, again: bool = False) -> str:
    settings = [word for override in overrides for word in ("--set", override)]
    code, output = processes.run(folder, ("train-unet", "tiny.toml", *settings, *(["--again"] if again else [])))
    assert code == 0, output
    return str(output)


@pytest.fixture
def copied(trained: Any, tmp_path: Path) -> Path:
    shutil.copytree(trained.folder, tmp_path / "copied")
    return tmp_path / "copied"


def test_some_steps_and_some_more_are_all_of_them_at_once(
    copied: Path, trained: Any, exact: Any, processes: Any, tmp_path: Path
) -> None:
    """8 + 8 steps against 16, with a constant rate; weights, averages and optimizer, and the log."""
    output = train(processes, copied, "unet.steps=16")
    assert "train-unet: goes on from step 8: unet.steps: 8 -> 16" in output
    assert "unet: going on from step 8 of 16 with unet.steps: 8 -> 16\n" in output
    assert not (copied / "runs" / "tiny" / "stale").exists()
    shutil.copytree(trained.folder, tmp_path / "once")
    train(processes, tmp_path / "once", "unet.steps=16", again=True)
    one, other = (folder / "runs" / "tiny" / "unet" for folder in (copied, tmp_path / "once"))
    last = "checkpoints/step_00000016"
    names = [path.name for path in (one / last).glob("*.safetensors")]
    assert "optimizer_model.safetensors" in names
    for name in names:
        assert (one / last / name).read_bytes() == (other / last / name).read_bytes(), name
    assert exact.weights(one) == exact.weights(other)
    loss = [[row["loss"] for row in exact.curve(part)] for part in (one, other)]
    assert loss[0] == loss[1]
    record = json.loads((one / "record.json").read_text())
    assert record["history"] == [{"step": 8, "changed": ["unet.steps: 8 -> 16"]}]
    assert "history" not in json.loads((other / "record.json").read_text())


def test_another_rate_and_other_averages(copied: Path, exact: Any, processes: Any) -> None:
    part = copied / "runs" / "tiny" / "unet"
    old = exact.weights(part)
    changes = ("unet.steps=10", "unet.learning_rate=0.01", "unet.ema_decays=[0.8,0.5]", "unet.grad_accumulation=1")
    output = train(processes, copied, *changes)
    assert "; no longer what this recipe alone would give" in output
    assert "unet.learning_rate: 0.0001 -> 0.01" in output
    assert [float.fromhex(row["step"]) for row in exact.curve(part)] == list(range(1, 11))
    assert exact.weights(part) != old
    state = json.loads((part / "checkpoints" / "step_00000010" / "state.json").read_text())
    assert state["num_averaged"] == {"ema": 10, "ema_0.5": 2}  # the one that was kept goes on, the other begins
    assert load_file(part / "ema.safetensors").keys() == load_file(part / "ema_0.5.safetensors").keys()
    train(processes, copied, *changes[:1], "unet.learning_rate=0.001", *changes[2:])  # nothing is left to train
    record = json.loads((part / "record.json").read_text())
    assert [entry["step"] for entry in record["history"]] == [8, 10]


def test_damaged_weights_come_from_the_last_checkpoint(copied: Path, exact: Any, processes: Any) -> None:
    part = copied / "runs" / "tiny" / "unet"
    old, data = exact.weights(part), bytearray((part / "ema.safetensors").read_bytes())
    data[-3] ^= 4
    (part / "ema.safetensors").write_bytes(data)
    output = train(processes, copied)
    assert "damaged (ema.safetensors is not what was written: its SHA-256 differs; taken from the last" in output
    assert exact.weights(part) == old
