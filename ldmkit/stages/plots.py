"""The pictures that training leaves behind: grids and loss curves."""

from pathlib import Path

import torch
from PIL import Image

from ldmkit.run import read_metrics


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
    """`loss.png`: the training loss (thin, smoothed) and the held-out losses against the optimizer step."""
    from matplotlib.figure import Figure  # not pyplot: no global state, no display

    rows = read_metrics(stage_dir / "metrics.jsonl")
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    train = [(row["step"], row["loss"]) for row in rows if "loss" in row]
    if train:
        steps, values = zip(*train, strict=True)
        axes.plot(steps, values, linewidth=0.6, alpha=0.4, color="tab:blue", label="training")
        width = max(1, len(values) // 50)
        smooth = [sum(values[max(0, i - width + 1) : i + 1]) / min(i + 1, width) for i in range(len(values))]
        axes.plot(steps, smooth, color="tab:blue", label=f"training, mean of {width}")
    for key, colour in (("held_out_loss", "tab:orange"), ("held_out_loss_ema", "tab:green")):
        held_out = [(row["step"], row[key]) for row in rows if key in row]
        if held_out:
            axes.plot(*zip(*held_out, strict=True), "o-", markersize=3, color=colour, label=key.replace("_", " "))
    axes.set(title=title, xlabel="optimizer step", ylabel="loss", yscale="log")
    axes.grid(alpha=0.3, which="both")
    if axes.get_legend_handles_labels()[0]:
        axes.legend()
    figure.savefig(stage_dir / "loss.png", dpi=110)
