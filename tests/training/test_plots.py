"""What `loss.png` shows, read off matplotlib's own objects."""

import json
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from ldmkit.training.plots import plot_losses


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Those that were saved, in order."""
    saved: list[Figure] = []
    save = Figure.savefig

    def keep(self: Figure, *arguments: Any, **options: Any) -> None:
        saved.append(self)
        save(self, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    return saved


def plotted(folder: Path, extra: dict[str, float], figures: list[Figure]) -> dict[str, dict[str, list[float]]]:
    """Panel -> curve -> values, of ten logged steps and two evaluations."""
    rows = [{"step": step, "loss": 1 / step} for step in range(1, 11)]
    for i, row in enumerate((rows[4], rows[9])):
        row |= {key: value + i for key, value in extra.items()}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    plot_losses(folder, "title")
    return {
        axes.get_ylabel(): {str(line.get_label()): list(line.get_ydata()) for line in axes.lines}  # type: ignore[arg-type]
        for axes in figures[-1].axes
    }


def test_every_average_and_the_timesteps(tmp_path: Path, figures: list[Figure]) -> None:
    keys = ["held_out_loss", "held_out_loss_ema", "held_out_loss_ema_0.99", *(f"held_out_loss_t{i}" for i in (2, 1))]
    found = plotted(tmp_path, {key: float(i) for i, key in enumerate(keys)}, figures)
    training = [1 / step for step in range(1, 11)]
    assert found["loss"] == {
        "training": training,
        "training, mean of 1": training,
        "held out: loss": [0.0, 1.0],
        "held out: loss ema": [1.0, 2.0],
        "held out: loss ema 0.99": [2.0, 3.0],
    }
    assert found["held-out loss by timestep"] == {"held out: loss t1": [4.0, 5.0], "held out: loss t2": [3.0, 4.0]}
    assert list(found) == ["loss", "held-out loss by timestep"]


def test_measures_of_the_autoencoder(tmp_path: Path, figures: list[Figure]) -> None:
    found = plotted(tmp_path, {"held_out_psnr": 20.0, "held_out_psnr_ema": 21.0, "held_out_ssim": 0.5}, figures)
    assert list(found) == ["loss", "PSNR (dB)", "SSIM"]
    assert found["PSNR (dB)"] == {"held out: psnr": [20.0, 21.0], "held out: psnr ema": [21.0, 22.0]}
    assert (figures[-1].axes[1].lines[0].get_xdata() == [5, 10]).all()  # type: ignore[union-attr]
