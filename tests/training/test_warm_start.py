"""First weights from another run: the very ones, on top of a fresh optimizer, whatever becomes of that run."""

import hashlib
import json
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file, save_file

from ldmkit.errors import LdmkitError
from ldmkit.export.run import _notes
from ldmkit.run.folder import recipe_of_run

SECOND = ("--set", "name=second")
# A step that moves no weight by more than this.
STILL = 1e-12


def second(trained: Any, folder: Path) -> Path:
    """The trained workshop with a copy of its run, `second`."""
    shutil.copytree(trained.folder, folder, dirs_exist_ok=True)
    shutil.copytree(folder / "runs" / "tiny", folder / "runs" / "second")
    return folder / "runs" / "second"


def still(part: str) -> list[str]:
    return ["--set", f"{part}.steps=1", "--set", f"{part}.learning_rate={STILL}", "--set", f"{part}.warmup_steps=0"]


def parts_of(run: Path) -> dict[str, Any]:
    """As a context has them: each part's record and folder."""
    records = {part: json.loads((run / part / "record.json").read_text()) for part in ("vae", "unet", "t2i")}
    parts = {part: SimpleNamespace(record=lambda found=found: found) for part, found in records.items()}
    return {"parts": parts, "folder": lambda part: run / part, "recipe": recipe_of_run(run)}


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def assert_near(found: Path, wanted: dict[str, torch.Tensor]) -> None:
    tensors = load_file(found)
    assert set(tensors) >= set(wanted)
    for name, tensor in wanted.items():
        torch.testing.assert_close(tensors[name], tensor, rtol=0, atol=2 * STILL, msg=name)


def test_first_weights_are_the_averaged_ones_of_the_other_run(trained: Any, processes: Any, tmp_path: Path) -> None:
    run = second(trained, tmp_path)
    unet = {name: tensor + 1 for name, tensor in load_file(trained.run / "unet" / "ema.safetensors").items()}
    save_file(unet, tmp_path / "mine.safetensors")
    commands = {"t2i": "tiny", "unet": "mine.safetensors", "vae": "tiny"}  # behind the autoencoder all would be stale
    code, output = processes.run(
        tmp_path, *(["train-" + p, "tiny.toml", *SECOND, *still(p), "--init-from", s] for p, s in commands.items())
    )
    assert code == 0, output
    assert "train-vae: first weights: runs/tiny/vae/ema.safetensors (SHA-256 " in output
    assert_near(run / "unet" / "model.safetensors", unet)
    for part in ("t2i", "vae"):
        source = load_file(trained.run / part / "ema.safetensors")
        for name in ("model", "ema", "ema_0.8"):
            assert_near(run / part / f"{name}.safetensors", source)
    notes = _notes(cast(Any, SimpleNamespace(run_dir=run, index=SimpleNamespace(entries=()), **parts_of(run))), {})
    assert notes["stages"]["vae"]["started_from"] == {
        "name": "tiny",
        "sha256": sha256(trained.run / "vae" / "ema.safetensors"),
    }
    assert notes["stages"]["unet"]["started_from"]["name"] == "mine.safetensors"
    assert str(tmp_path) not in json.dumps(notes)
    state = (run / "vae" / "checkpoints").glob("step_*")
    assert [path.name for path in state] == ["step_00000001"]  # a step of its own, and none of the other run's


def test_killed_and_resumed_without_the_other_run(trained: Any, exact: Any, processes: Any, tmp_path: Path) -> None:
    """Bit by bit what it would have been: the run has its own copy, and says from where."""
    for name in ("undisturbed", "killed"):
        second(trained, tmp_path / name)
    command = ["train-unet", "tiny.toml", *SECOND]
    start = [*command, "--init-from", "runs/tiny/unet/ema.safetensors", "--again"]
    code, output = processes.run(tmp_path / "undisturbed", start)
    assert code == 0, output
    alone = tmp_path / "undisturbed" / "runs" / "second" / "unet"
    assert exact.curve(alone) != exact.curve(trained.run / "unet")
    code, output = processes.run(tmp_path / "killed", start, strike=40, at="/checkpoints/")
    assert code == -signal.SIGKILL, output
    shutil.rmtree(tmp_path / "killed" / "runs" / "tiny")
    code, output = processes.run(tmp_path / "killed", command)
    assert code == 0, output
    assert "train-unet: first weights: runs/tiny/unet/ema.safetensors (SHA-256 " in output
    assert "going on from step" in output
    exact.assert_same(tmp_path / "killed" / "runs" / "second" / "unet", alone)


@pytest.mark.parametrize(
    ("stage", "overrides", "told"),
    [
        ("train-vae", ["vae.channels=[4,16]"], r"does not fit \[vae\]: .* is 8x4x3x3 there and 16x4x3x3 here, and \d+"),
        ("train-unet", ["unet.time_dim=16"], r"does not fit \[unet\]: .* is 8x8 there and 16x16 here, and \d+ more"),
        ("train-unet", ["unet.num_res_blocks=2"], r"does not fit \[unet\]: .*, \.\.\. not there \(\d+ in all\)"),
        ("train-t2i", ["t2i.num_res_blocks=2"], r"does not fit \[t2i\]: "),
    ],
)
def test_weights_of_other_networks_are_refused_before_anything_is_set_aside(
    stage: str, overrides: list[str], told: str, trained: Any, tmp_path: Path
) -> None:
    run = second(trained, tmp_path)
    pipeline = type(trained)(tmp_path).pipeline("name='second'", *overrides)
    pipeline.start_from(Path("tiny"), (stage,))
    with pytest.raises(LdmkitError, match=rf"^--init-from {tmp_path}/runs/tiny/\w+/ema\.safetensors: {told}"):
        pipeline.run((stage,), ignore_gate=True)
    assert not (run / "stale").exists()
    assert not (run / "init").exists()


def test_text_encoder_of_other_words_is_refused_and_its_unet_is_not(
    trained: Any, processes: Any, tmp_path: Path
) -> None:
    run = second(trained, tmp_path)
    for path in (tmp_path / "pictures").glob("*.txt"):
        path.write_text("a dog in a hat on a mat")
    code, output = processes.run(tmp_path, *([s, "tiny.toml", *SECOND] for s in ("caption", "encode")))
    assert code == 0, output
    command = ["train-t2i", "tiny.toml", *SECOND, *still("t2i"), "--init-from"]
    code, output = processes.run(tmp_path, [*command, "tiny"])
    assert code == 1, output
    assert "error: runs/tiny/t2i/ema.safetensors: its text encoder knows the words of other captions" in output
    source = load_file(trained.run / "t2i" / "ema.safetensors")
    unet = {name: tensor for name, tensor in source.items() if name.startswith("unet.")}
    save_file({name.removeprefix("unet."): tensor for name, tensor in unet.items()}, tmp_path / "unet_t2i.safetensors")
    code, output = processes.run(tmp_path, [*command, "unet_t2i.safetensors"])
    assert code == 0, output
    assert "t2i: unet_t2i.safetensors holds no text encoder: this one's first weights are random" in output
    assert_near(run / "t2i" / "model.safetensors", unet)
