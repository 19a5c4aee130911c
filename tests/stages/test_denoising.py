"""The denoising loss, guidance and held-out loss against formulas written here; the parts that draw and load."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ldmkit.diffusion import make_schedule
from ldmkit.errors import LdmkitError
from ldmkit.stages.denoising import DenoisingTask
from ldmkit.stages.engine import start_engine
from ldmkit.stages.networks import trained_weights
from ldmkit.stages.picture_batches import picture_batches
from ldmkit.stages.plots import grid, plot_losses, to_uint8


def task(workshop: Any, *overrides: str) -> DenoisingTask:
    """A task without networks: its formulas alone."""
    made = object.__new__(DenoisingTask)
    made.recipe = workshop.pipeline(*overrides).recipe
    made.schedule = make_schedule(**made.recipe.diffusion.schedule_options())
    made.trainer = SimpleNamespace(accelerator=start_engine("fp32"))  # type: ignore[assignment]
    return made


class Constant(torch.nn.Module):
    """Says the same whatever it is asked, and notes what that was."""

    def __init__(self, value: float = 0.0) -> None:
        super().__init__()
        self.value = value
        self.asked: list[tuple[torch.Tensor, ...]] = []

    def forward(self, x_t: torch.Tensor, t: torch.Tensor, *text: torch.Tensor) -> torch.Tensor:
        self.asked.append((x_t, t, *text))
        return torch.full_like(x_t, self.value) + (text[0].reshape(-1, 1, 1, 1) if text else 0.0)


X0 = torch.arange(16, dtype=torch.float32).reshape(2, 2, 2, 2) / 8 - 1
NOISE = torch.randn(2, 2, 2, 2, generator=torch.Generator().manual_seed(0))


def test_flow_loss(workshop: Any) -> None:
    network, t = Constant(0.25), np.array([250.0, 900.0])
    loss = task(workshop)._loss(network, X0, t, NOISE, ())
    torch.testing.assert_close(loss, ((0.25 - (NOISE - X0)) ** 2).mean())
    x_t, times = network.asked[0]
    sigma = torch.tensor([0.25, 0.9]).reshape(2, 1, 1, 1)
    torch.testing.assert_close(x_t, (1 - sigma) * X0 + sigma * NOISE)
    assert times.tolist() == [250.0, 900.0]


def test_v_loss_with_min_snr(workshop: Any) -> None:
    """Hang et al. 2023: min(SNR, gamma) / (SNR + 1) for v; linear betas written out."""
    overrides = ("diffusion.schedule='linear'", "diffusion.prediction='v'", "diffusion.weighting='min_snr'")
    network, t = Constant(0.25), np.array([10.0, 700.0])
    loss = task(workshop, *overrides)._loss(network, X0, t, NOISE, ())
    bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[[10, 700]]
    alpha, sigma = (torch.from_numpy(np.sqrt(x)).float().reshape(2, 1, 1, 1) for x in (bar, 1 - bar))
    snr = torch.from_numpy(bar / (1 - bar)).float().reshape(2, 1, 1, 1)
    error = (0.25 - (alpha * NOISE - sigma * X0)) ** 2
    torch.testing.assert_close(loss, (torch.clamp(snr, max=5) / (snr + 1) * error).mean(), rtol=1e-4, atol=0)
    torch.testing.assert_close(network.asked[0][0], alpha * X0 + sigma * NOISE)


@pytest.mark.parametrize(("scale", "calls"), [(1.0, 1), (0.0, 2), (3.0, 2)])
def test_guidance(scale: float, calls: int, workshop: Any) -> None:
    """Ho and Salimans 2022, eq. 6, at the output: empty + scale * (prompt - empty)."""
    made = task(workshop, f"sampler.guidance_scale={scale}")
    prompts, empty = (torch.tensor([2.0, 3.0]),), (torch.tensor([1.0, 1.0]),)
    made.preview_text = lambda: (prompts, empty)  # type: ignore[method-assign]
    network = Constant()
    x0 = made._denoiser(network)(NOISE, 400.0)
    output = (1 + scale * torch.tensor([1.0, 2.0])).reshape(2, 1, 1, 1)
    torch.testing.assert_close(x0, NOISE - 0.4 * output)  # flow: x_t - sigma * (noise - x0)
    assert len(network.asked) == calls
    assert network.asked[0][1].tolist() == [400.0, 400.0]


def test_precision_of_the_engine() -> None:
    for precision, expected in (("fp32", "no"), ("bf16", "bf16"), ("fp32", "no")):  # stages may differ
        assert start_engine(precision).mixed_precision == expected
    if not torch.cuda.is_available():
        with pytest.raises(LdmkitError, match=r'precision = "fp16" needs a GPU'):
            start_engine("fp16")


def test_trained_weights(trained: Any, tmp_path: Path) -> None:
    ema = trained_weights(trained.run / "vae")
    (tmp_path / "model.safetensors").write_bytes((trained.run / "vae" / "model.safetensors").read_bytes())
    raw = trained_weights(tmp_path)
    assert ema.keys() == raw.keys()
    assert any(not torch.equal(ema[key], raw[key]) for key in raw)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_picture_batches(num_workers: int, workshop: Any) -> None:
    pipeline = workshop.pipeline(f"data.num_workers={num_workers}")
    batches = [np.array([3, 1]), [0, 19, 7]]
    found = list(picture_batches(pipeline.index.pictures(), pipeline.recipe.data, batches))
    for batch, pixels in zip(batches, found, strict=True):
        for number, own in zip(batch, pixels, strict=True):
            with Image.open(workshop.folder / "pictures" / f"{number:02d}.png") as picture:
                expected = np.asarray(picture).astype(np.float32).transpose(2, 0, 1) / 127.5 - 1
            np.testing.assert_allclose(own.numpy(), expected, atol=1e-6)


def test_grid() -> None:
    pixels = torch.stack([torch.full((3, 2, 2), value) for value in (-1.0, 0.0, 1.0)])
    assert to_uint8(pixels)[:, 0, 0, 0].tolist() == [0, 128, 255]
    assert to_uint8(pixels * 7)[:, 0, 0, 0].tolist() == [0, 128, 255]
    assert torch.equal(to_uint8(2 * torch.arange(256)[:, None, None, None] / 255 - 1).flatten(), torch.arange(256))
    white, black = 255 * torch.ones(2, 2), torch.zeros(2, 2)
    expected = torch.full((2 + 2 + 2 + 2 + 2, 2 + 2 + 2 + 2 + 2), 255.0)
    expected[2:4, 2:4], expected[2:4, 6:8], expected[6:8, 2:4] = black, white / 255 * 128, white
    expected[6:8, 6:8] = 255  # the place of the fourth stays white
    assert torch.equal(grid(pixels, columns=2)[..., 0].float(), expected)


@pytest.mark.parametrize("text", ["", '{"step": 1, "held_out_loss": 0.5}\n', '{"step": 1, "loss": 0.5}\n{"step": 2, '])
def test_plot_of_a_short_log(text: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(text)
    plot_losses(tmp_path, "title")
    assert (tmp_path / "loss.png").stat().st_size > 1000
