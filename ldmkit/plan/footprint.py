"""What a run will hold on the disk, from what its first steps wrote."""

from pathlib import Path

import numpy as np

from ldmkit.recipe.training import Training

_GROWING = {"pictures.json", "captions.json"}
"""files of `latents/` and `text/` that grow with what they hold, beside the arrays"""


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below the folder; 0 where it is not there."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def times_due(every: int, start: int, stop: int, *, last: bool) -> int:
    """How often something that comes `every` so many steps, and after the last one, comes in steps start+1 to stop."""
    return stop // every - start // every + (last and stop > start and stop % every > 0)


def trained_bytes(folder: Path, section: Training, num_steps: int) -> tuple[int, int]:
    """(a finished training stage, one checkpoint) in bytes, from a folder with one of everything but the weights."""
    (checkpoint,) = (folder / "checkpoints").glob("step_*")
    one = folder_bytes(checkpoint)
    kept = section.keep_checkpoints + section.keep_best + (num_steps // section.keep_every if section.keep_every else 0)
    checkpoints = min(kept, times_due(section.checkpoint_every, 0, num_steps, last=True) + section.keep_best)
    weights = [f.stat().st_size for f in checkpoint.glob("*.safetensors") if not f.name.startswith("optimizer_")]
    drawn = folder_bytes(folder / "samples") + folder_bytes(folder / "tensorboard")
    draws = times_due(section.sample_every, 0, num_steps, last=True)
    row = max(len(line) for line in (folder / "metrics.jsonl").read_bytes().splitlines())
    rows = times_due(section.log_every, 0, num_steps, last=True)
    plot = (folder / "loss.png").stat().st_size
    # TensorBoard keeps each number as well, in about twice the bytes.
    return one * checkpoints + sum(weights) + drawn * draws + 3 * row * rows + plot, one


def grown_bytes(folder: Path, factor: float, *, per_picture: float | None = None) -> int:
    """Bytes of `latents/` or `text/` once they hold `factor` times as much; headers stay as they are.

    `per_picture` is the factor of `index.npy`, where it differs.
    """
    total = 0.0
    for file in folder.iterdir():
        size = file.stat().st_size
        grows = per_picture if per_picture is not None and file.name == "index.npy" else factor
        if file.suffix == ".npy":
            content = np.load(file, mmap_mode="r", allow_pickle=False).nbytes
            total += content * grows + size - content
        else:
            total += size * (grows if file.name in _GROWING else 1)
    return round(total)
