"""The stages with the other network: chosen by name, trained, found again, and no U-Net's weights for it."""

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

SMALL = ("use=dit", "width=16", "depth=1", "num_heads=2")


def overrides(part: str, *more: str) -> list[str]:
    return [word for key in (*SMALL, *more) for word in ("--set", f"{part}.{key}")]


def test_a_transformer_is_trained_in_both_stages(trained: Any, processes: Any, tmp_path: Path) -> None:
    shutil.copytree(trained.folder, tmp_path, dirs_exist_ok=True)
    velocity = ["--set", "diffusion.prediction=x0", "--set", "diffusion.weighting=velocity"]
    both = [*overrides("unet"), *overrides("t2i"), *velocity]
    code, output = processes.run(tmp_path, *([f"train-{part}", "tiny.toml", *both] for part in ("unet", "t2i")))
    assert code == 0, output
    for part in ("unet", "t2i"):
        folder = tmp_path / "runs" / "tiny" / part
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert all(line["loss"] < 1e3 for line in lines if "loss" in line)
        names = {name.removeprefix("unet.") for name in load_file(folder / "ema.safetensors")}
        assert "blocks.0.modulation.weight" in names
        assert any(name.startswith("blocks.0.cross_attention.") for name in names) == (part == "t2i")


def test_a_unets_weights_are_refused(trained: Any, processes: Any, tmp_path: Path) -> None:
    shutil.copytree(trained.folder, tmp_path, dirs_exist_ok=True)
    shutil.copytree(tmp_path / "runs" / "tiny", tmp_path / "runs" / "second")
    start = ["--set", "name=second", "--init-from", "tiny"]
    code, output = processes.run(tmp_path, ["train-unet", "tiny.toml", *overrides("unet"), *start])
    assert code == 1
    assert "--init-from runs/tiny" in output
    assert "does not fit [unet]: " in output
