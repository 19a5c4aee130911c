"""The denoising loss, guidance and held-out loss against formulas written here; the parts that draw and load."""

from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer

from ldmkit.caches.sets import TextSet
from ldmkit.data.batches import picture_batches
from ldmkit.denoising.task import MIN_EVALUATED, DenoisingLoss, DenoisingTask
from ldmkit.diffusion.process import make_schedule
from ldmkit.diffusion.torch_sampling import draw_latents
from ldmkit.run.networks import trained_weights
from ldmkit.training.plots import grid, plot_losses, to_uint8


def loss(workshop: Any, *overrides: str) -> DenoisingLoss:
    diffusion = workshop.pipeline(*overrides).recipe.diffusion
    return DenoisingLoss(diffusion, make_schedule(**diffusion.schedule_options()), nullcontext)


def task(workshop: Any) -> DenoisingTask:
    """A task without networks: its evaluation alone."""
    made = object.__new__(DenoisingTask)
    made.loss = loss(workshop)
    made.engine = SimpleNamespace(device=torch.device("cpu"), seed=0)  # type: ignore[assignment]
    made.memory = {}
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
    losses = loss(workshop)(network, X0, t, NOISE, ())
    torch.testing.assert_close(losses, ((0.25 - (NOISE - X0)) ** 2).mean((1, 2, 3)))
    x_t, times = network.asked[0]
    sigma = torch.tensor([0.25, 0.9]).reshape(2, 1, 1, 1)
    torch.testing.assert_close(x_t, (1 - sigma) * X0 + sigma * NOISE)
    assert times.tolist() == [250.0, 900.0]


@pytest.mark.parametrize("weighting", ["min_snr", "p2"])
def test_weighted_v_loss(weighting: str, workshop: Any) -> None:
    """Hang et al. 2023: min(SNR, gamma) / (SNR + 1) for v; Choi et al. 2022: SNR / (SNR + 1) / (k + SNR)^gamma.

    Linear betas written out.
    """
    options = ("min_snr_gamma=2.5", "p2_k=0.5", "p2_gamma=0.7")
    chosen = ("schedule='linear'", "prediction='v'", f"weighting='{weighting}'", *options)
    network, t = Constant(0.25), np.array([10.0, 700.0])
    losses = loss(workshop, *(f"diffusion.{key}" for key in chosen))(network, X0, t, NOISE, ())
    bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[[10, 700]]
    alpha, sigma = (torch.from_numpy(np.sqrt(x)).float().reshape(2, 1, 1, 1) for x in (bar, 1 - bar))
    snr = torch.from_numpy(bar / (1 - bar)).float()
    weight = torch.clamp(snr, max=2.5) / (snr + 1) if weighting == "min_snr" else snr / (snr + 1) / (0.5 + snr) ** 0.7
    error = (0.25 - (alpha * NOISE - sigma * X0)) ** 2
    torch.testing.assert_close(losses, weight * error.mean((1, 2, 3)), rtol=1e-4, atol=0)
    torch.testing.assert_close(network.asked[0][0], alpha * X0 + sigma * NOISE)


@pytest.mark.parametrize(("scale", "calls"), [(1.0, 1), (0.0, 2), (3.0, 2)])
def test_guidance(scale: float, calls: int) -> None:
    """Ho and Salimans 2022, eq. 6, at the output: empty + scale * (prompt - empty)."""
    network = Constant()
    x0 = draw_latents(
        network,
        NOISE,
        sampler=SimpleNamespace(sample=lambda denoise, noise, schedule, randn_like: denoise(noise, 400.0)),  # type: ignore[arg-type]
        schedule=make_schedule("flow"),
        prediction="flow",
        randn_like=torch.randn_like,
        text=((torch.tensor([2.0, 3.0]),), (torch.tensor([1.0, 1.0]),)),
        guidance_scale=scale,
    )
    output = (1 + scale * torch.tensor([1.0, 2.0])).reshape(2, 1, 1, 1)
    torch.testing.assert_close(x0, NOISE - 0.4 * output)  # flow: x_t - sigma * (noise - x0)
    assert len(network.asked) == calls
    assert network.asked[0][1].tolist() == [400.0, 400.0]


class Picky(Constant):
    """As good at a timestep as the timestep is small; the text is the picture's number."""

    def forward(self, x_t: torch.Tensor, t: torch.Tensor, *text: torch.Tensor) -> torch.Tensor:
        self.asked.append((x_t, t, *text))
        return t.reshape(-1, 1, 1, 1).expand_as(x_t) * self.value


@pytest.mark.parametrize(("num_held_out", "repeats"), [(1, 128), (5, 26), (150, 1)])
@pytest.mark.parametrize("averaged", [True, False])
def test_held_out_loss_by_timestep(averaged: bool, num_held_out: int, repeats: int, workshop: Any) -> None:
    """Computed anew in float64 from what the network was asked: out - (noise - x0), with noise read off x_t."""
    x0 = np.random.default_rng(0).standard_normal((num_held_out, 1, 2, 4, 4))
    made = task(workshop)
    made.held_out = np.arange(num_held_out)[::-1].copy()
    made.latents = SimpleNamespace(  # type: ignore[assignment]
        batch=lambda indices, *_: torch.from_numpy(x0[indices, 0]).float(), buckets=np.zeros(num_held_out, int)
    )
    made.conditioning = SimpleNamespace(batch=lambda indices, step: (torch.from_numpy(indices),))  # type: ignore[assignment]
    raw, average = Picky(0.01), Picky(0.001)
    made.modules = {"model": raw}
    raw.compile(backend=lambda *_: pytest.fail("an evaluation would only compile it once more"))
    made.emas = {"ema": SimpleNamespace(module=average), "ema_0.9": SimpleNamespace(module=raw)} if averaged else {}  # type: ignore[dict-item]
    metrics = made.evaluate()
    assert made.evaluate() == metrics
    quarters = [f"held_out_loss_t{i}" for i in (1, 2, 3, 4)]
    averages = ["held_out_loss_ema", "held_out_loss_ema_0.9"] if averaged else []
    assert list(metrics) == ["held_out_loss", *averages, *quarters]

    first, key = (average, "held_out_loss_ema") if averaged else (raw, "held_out_loss")
    calls = first.asked[: -(-num_held_out * repeats // 128)]
    x_t, t, picture = (torch.cat(parts).double() for parts in zip(*calls, strict=True))
    assert len(t) == num_held_out * repeats >= MIN_EVALUATED
    np.testing.assert_allclose(np.diff(t), 1000 / len(t), rtol=1e-3)
    for number in range(num_held_out):  # once in each of as many parts of the timesteps
        mine = np.sort(t[picture == number].numpy())
        assert np.floor(mine * repeats / 1000).tolist() == list(range(repeats))
    x0_asked = torch.from_numpy(x0)[picture.long(), 0]
    sigma = (t / 1000).reshape(-1, 1, 1, 1)
    noise = (x_t - (1 - sigma) * x0_asked) / sigma
    losses = ((first.value * t.reshape(-1, 1, 1, 1) - (noise - x0_asked)) ** 2).mean((1, 2, 3))
    assert metrics[key] == pytest.approx(losses.mean().item(), rel=1e-3)
    for i, name in enumerate(quarters):
        inside = (t >= 250 * i) & (t < 250 * (i + 1))
        assert abs(int(inside.sum()) - len(t) / 4) < 1
        assert metrics[name] == pytest.approx(losses[inside].mean().item(), rel=1e-3 if len(t) % 4 == 0 else 0.05)
    assert metrics["held_out_loss_t1"] < metrics["held_out_loss_t4"]


def test_nothing_held_out(workshop: Any) -> None:
    made = task(workshop)
    made.held_out = np.array([], dtype=np.int64)
    assert made.evaluate() == {}


def test_trained_weights(trained: Any, tmp_path: Path) -> None:
    ema = trained_weights(trained.run / "vae")
    (tmp_path / "model.safetensors").write_bytes((trained.run / "vae" / "model.safetensors").read_bytes())
    raw = trained_weights(tmp_path)
    assert ema.keys() == raw.keys()
    assert any(not torch.equal(ema[key], raw[key]) for key in raw)


def test_tokens_that_no_caption_has_say_nothing(trained: Any) -> None:
    """Their embeddings are zero after training, and theirs alone; how often the others stand there is counted."""
    tokenizer = Tokenizer.from_file(str(trained.run / "text" / "tokenizer.json"))
    pictures = np.arange(20)
    said = [*((trained.folder / "pictures" / f"{i:02d}.txt").read_text() for i in pictures), ""]
    expected = Counter(token for encoding in tokenizer.encode_batch(said) for token in encoding.ids)
    counts = TextSet(trained.run / "text").token_counts(pictures, tokenizer.get_vocab_size())
    assert {int(token): int(counts[token]) for token in np.flatnonzero(counts)} == expected
    embedding = trained_weights(trained.run / "t2i")["text_encoder.token_embedding.weight"]
    assert torch.equal(embedding.abs().sum(dim=1) > 0, torch.from_numpy(counts > 0))
    assert 0 < len(expected) < tokenizer.get_vocab_size()


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
