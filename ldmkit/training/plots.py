"""The pictures that training leaves behind: grids and loss curves."""

import re
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ldmkit.run.metrics import read_metrics

PANELS = (
    ("held-out loss by timestep", r"held_out_loss_t\d+", "log"),
    ("PSNR (dB)", r"held_out_psnr(_ema.*)?", "linear"),
    ("SSIM", r"held_out_ssim(_ema.*)?", "linear"),
    ("LPIPS", r"held_out_lpips(_ema.*)?", "linear"),
)
"""(axis, keys of the metrics, scale) of the panels below the losses"""


def to_uint8(pixels: torch.Tensor) -> torch.Tensor:
    """(B, 3, H, W) in [-1, 1] to (B, H, W, 3) uint8, clipped."""
    return ((pixels.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu()


def grid(pixels: torch.Tensor, columns: int) -> torch.Tensor:
    """(B, 3, H, W) in [-1, 1] to one (H', W', 3) uint8 picture, row by row, two white pixels between."""
    from torchvision.utils import make_grid

    whole = make_grid(pixels.float().clamp(-1, 1).cpu(), nrow=columns, padding=2, pad_value=1.0)
    return to_uint8(whole[None])[0]


def save_picture(path: Path, picture: torch.Tensor) -> None:
    """(H, W, 3) uint8 to a PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture.numpy()).save(path)


def plot_losses(stage_dir: Path, title: str) -> None:
    """`loss.png`: training and held-out losses against the optimizer step; below it what else was held out.

    A panel of the held-out loss by timestep (`held_out_loss_t1`, ...) and one each of PSNR, SSIM and LPIPS are there
    where the metrics have them.
    """
    from matplotlib.figure import Figure  # not pyplot: no global state, no display

    rows = read_metrics(stage_dir / "metrics.jsonl")
    keys = list(dict.fromkeys(key for row in rows for key in row))
    panels = [("loss", [key for key in keys if re.fullmatch(r"held_out_loss(_ema.*)?", key)], "log")]
    for name, pattern, scale in PANELS:
        if matching := sorted(key for key in keys if re.fullmatch(pattern, key)):
            panels.append((name, matching, scale))
    figure = Figure(figsize=(8, 1.3 + 3.2 * len(panels)), layout="constrained")
    every = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
    for axes, (name, shown, scale) in zip(every, panels, strict=True):
        if name == "loss":
            _plot_training(axes, [(row["step"], row["loss"]) for row in rows if "loss" in row])
        for i, key in enumerate(shown):
            points = [(row["step"], row[key]) for row in rows if key in row]
            label = key.removeprefix("held_out_").replace("_", " ")
            axes.plot(*zip(*points, strict=True), "o-", markersize=3, color=f"C{i + 1}", label=f"held out: {label}")
        axes.set(ylabel=name, yscale=scale)
        axes.grid(alpha=0.3, which="both")
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize="small")
    every[-1].set(xlabel="optimizer step")
    figure.suptitle(title)
    figure.savefig(stage_dir / "loss.png", dpi=110)


def _plot_training(axes: Any, points: list[tuple[float, float]]) -> None:
    """Each logged loss, thin, and the mean of the newest ones, about a fiftieth of all."""
    if points:
        steps, values = zip(*points, strict=True)
        axes.plot(steps, values, linewidth=0.6, alpha=0.4, color="C0", label="training")
        width = max(1, len(values) // 50)
        smooth = [sum(values[max(0, i - width + 1) : i + 1]) / min(i + 1, width) for i in range(len(values))]
        axes.plot(steps, smooth, color="C0", label=f"training, mean of {width}")
