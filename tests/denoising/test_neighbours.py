"""Nearest training pictures against scipy's tree; copies raise the alarm, new pictures do not."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial import cKDTree
from scipy.stats import binom

from ldmkit.caches.sets import LatentSet
from ldmkit.denoising import neighbours
from ldmkit.denoising.conditioning import NoText
from ldmkit.denoising.neighbours import Neighbours
from ldmkit.denoising.task import DenoisingTask
from ldmkit.diffusion.process import make_schedule
from ldmkit.run.metrics import read_metrics
from ldmkit.run.networks import load_autoencoder
from ldmkit.run.workspace import Workspace
from ldmkit.training.engine import Engine

SHAPE = (2, 4, 4)


class Set:
    """Latents in memory, and how many were asked for at a time."""

    def __init__(self, mean: np.ndarray) -> None:
        self.mean = mean
        self.shape = mean.shape[2:]
        self.copies = mean.shape[1]
        self.buckets = np.zeros(1000, dtype=np.int64)
        self.asked: list[np.ndarray] = []

    def batch(self, indices: np.ndarray, mirrored: np.ndarray, noise: None) -> torch.Tensor:
        self.asked.append(indices)
        return torch.from_numpy(self.mean[indices, mirrored.astype(int)])


def gaussian(count: int, copies: int = 2, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, copies, *SHAPE)).astype(np.float32)


def search(latents: Any, train: np.ndarray, held_out: Any = (), seed: int = 0) -> Neighbours:
    return Neighbours(latents, train, np.array(held_out, dtype=np.int64), seed=seed, device=torch.device("cpu"))


@pytest.mark.parametrize("copies", [1, 2])
@pytest.mark.parametrize("chunk", [1, 32 * 7, 2**22])
def test_nearest_is_that_of_a_tree(chunk: int, copies: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "CHUNK", chunk)
    latents, train = Set(gaussian(90, copies)), np.arange(0, 90, 3)
    queries = torch.from_numpy(gaussian(20, 1, seed=1)[:, 0])
    queries[3] = torch.from_numpy(latents.mean[33, -1])  # a copy
    queries[4] = torch.from_numpy(latents.mean[34, -1])  # of a picture that is not trained on
    state = torch.get_rng_state()
    distances, found = search(latents, train).nearest(queries)
    rows = latents.mean[train].reshape(-1, 32).astype(np.float64)
    expected, places = cKDTree(rows).query(queries.reshape(20, 32).double().numpy())
    np.testing.assert_allclose(distances, expected, rtol=1e-12)
    assert distances[3] == 0 < distances[4]
    np.testing.assert_array_equal(found.reshape(20, 32), rows[places])
    assert torch.equal(torch.get_rng_state(), state)
    assert max(map(len, latents.asked)) <= max(1, chunk // 32)
    assert {int(i) for indices in latents.asked for i in indices} == set(train.tolist())


def test_a_part_of_a_large_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "MAX_TRAIN", 10)
    train = np.arange(5, 1000, 2)
    one, same, other = (search(Set(gaussian(1)), train, seed=seed).train for seed in (0, 0, 1))
    assert len(set(one.tolist())) == 10
    assert set(one.tolist()) <= set(train.tolist())
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
    monkeypatch.setattr(neighbours, "MAX_TRAIN", len(train))
    assert np.array_equal(search(Set(gaussian(1)), train).train, train)


@pytest.mark.parametrize("num_held_out", [4, 40])
@pytest.mark.parametrize("num_copies", range(17))
def test_alarm(num_copies: int, num_held_out: int) -> None:
    """Copies with a little noise among new samples; how many are too many is scipy's binomial tail."""
    latents = Set(gaussian(200 + num_held_out))
    made = search(latents, np.arange(200), 200 + np.arange(num_held_out))
    samples = gaussian(16, 1, seed=2)[:, 0]
    samples[:num_copies] = latents.mean[:num_copies, 1] + 0.1 * samples[:num_copies]
    metrics = made.compare(made.nearest(torch.from_numpy(samples))[0])
    assert metrics["neighbour_copies"] == num_copies / 16
    assert metrics["neighbour_copies_held_out"] == 0
    line = made.warning(metrics, 16)
    assert (line is not None) == (binom.sf(num_copies - 1, 16, 1 / (num_held_out + 2)) < 1e-3)
    if num_copies == 0:
        assert metrics["neighbour_ratio"] == pytest.approx(1, abs=0.1)
    if num_copies == 16:
        assert metrics["neighbour_ratio"] < 0.2
        assert line is not None
        assert line.startswith("16 of 16 samples are nearly copies of training pictures")
        assert f"distance is {metrics['neighbour_ratio']:.2f} of theirs" in line


def test_held_out_pictures_that_have_twins_excuse_samples_that_have() -> None:
    mean = gaussian(300)
    mean[200:240] = mean[:40]  # two fifths of the held-out pictures are training pictures
    made = search(Set(mean), np.arange(200), np.arange(200, 300))
    samples = gaussian(16, 1, seed=2)[:, 0]
    samples[:6] = mean[50:56, 0]
    metrics = made.compare(made.nearest(torch.from_numpy(samples))[0])
    assert metrics["neighbour_copies"] == 6 / 16
    assert metrics["neighbour_copies_held_out"] == 0.4
    assert made.warning(metrics, 16) is None


def test_no_yardstick() -> None:
    mean = gaussian(20)
    mean[10:] = mean[:10]
    distances = np.array([0.0, 1.0])
    assert search(Set(mean), np.arange(10)).compare(distances) == {}
    assert search(Set(mean), np.arange(10), np.arange(10, 20)).compare(distances) == {}
    assert search(Set(gaussian(20)), np.arange(10), np.arange(10, 20)).compare(np.array([np.nan, 1.0])) == {}
    assert search(Set(mean), np.arange(10)).warning({}, 16) is None


# --- in training -------------------------------------------------------------------------------------------------


class Parrot(torch.nn.Module):
    """A flow network whose samples are the same whatever the noise: x_t - sigma * (noise - x0) = x0."""

    def __init__(self, x0: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("x0", x0)
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def forward(self, x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return (x_t - self.x0[: len(x_t)]) / (t.reshape(-1, 1, 1, 1) / 1000) + self.weight  # type: ignore[index]


def parrot_task(trained: Any, x0: torch.Tensor) -> DenoisingTask:
    pipeline = trained.pipeline()
    workspace = Workspace(
        pipeline.recipe, pipeline.registry, pipeline.index, pipeline.run_dir, pipeline.parts(), pipeline.reporter
    )
    section = pipeline.recipe.unet.model_copy(update={"precision": "fp32"})
    train, held_out = workspace.split()
    engine = Engine("unet", section, num_samples=len(train), seed=0)
    latents = LatentSet(workspace.folder("latents"), pipeline.recipe.latents, 0)
    recipe = workspace.recipe
    schedule = make_schedule(**recipe.diffusion.schedule_options())
    autoencoder = load_autoencoder(recipe, workspace.folder("vae"))
    return DenoisingTask(
        workspace,
        engine,
        Parrot(x0),
        NoText(),
        latents,
        train,
        held_out,
        schedule=schedule,
        autoencoder=autoencoder,
    )


def test_network_that_memorised_the_set(trained: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    train = trained.pipeline().index.split(0.2, 0)[0]
    latents = LatentSet(trained.run / "latents", trained.pipeline().recipe.latents, 0)
    x0 = latents.batch(np.resize(train, 16), np.arange(16) % 2 == 1, None)
    task = parrot_task(trained, x0.repeat(8, 1, 1, 1))  # an evaluation asks for 128
    assert "neighbour_ratio" not in task.evaluate()
    pictures = task.draw(8)
    assert list(pictures) == ["raw", "ema", "ema_0.8", "neighbours"]
    # Each sample and its neighbour, 18 pixels wide with the gap, are the same picture.
    pairs = pictures["neighbours"][2:, 2:].unfold(0, 16, 18).unfold(1, 16, 18).flatten(2)  # (4, 8, 3 * 16 * 16)
    assert pairs.shape[:2] == (4, 8)
    difference = (pairs[:, 0::2].float() - pairs[:, 1::2].float()).abs()
    assert difference.max() <= 1
    assert pairs.float().std() > 1

    metrics = task.evaluate()
    assert metrics["neighbour_ratio"] < 1e-3
    assert metrics["neighbour_copies"] == 1
    assert json.loads(json.dumps(task.memory)) == task.memory
    (line,) = task.review(8, metrics)
    assert "16 of 16 samples are nearly copies" in line
    assert task.review(12, metrics) == []  # reported once
    assert task.evaluate() == metrics


def test_network_that_draws_something_new(trained: Any) -> None:
    latents = LatentSet(trained.run / "latents", trained.pipeline().recipe.latents, 0)
    x0 = torch.randn((128, *latents.shape), generator=torch.Generator().manual_seed(0))
    task = parrot_task(trained, x0)
    task.draw(8)
    metrics = task.evaluate()
    assert metrics["neighbour_ratio"] > 0.5
    assert task.review(8, metrics) == []


@pytest.mark.parametrize("part", ["unet", "t2i"])
def test_trained_run_shows_neighbours(part: str, trained: Any) -> None:
    folder: Path = trained.run / part
    with Image.open(folder / "samples" / "step_000008_neighbours.png") as sheet:
        assert sheet.size == (8 * 18 + 2, 4 * 18 + 2)
    assert {path.name for path in folder.glob("samples/*.png")} == {
        f"step_000008_{name}.png" for name in ("raw", "ema", "ema_0.8", "neighbours")
    }
    first, last = (row for row in read_metrics(folder / "metrics.jsonl") if "held_out_loss" in row)
    keys = {"held_out_loss", "held_out_loss_ema", "held_out_loss_ema_0.8"} | {
        f"held_out_loss_t{i}" for i in range(1, 5)
    }
    assert keys <= set(first)
    assert not any(key.startswith("neighbour") for key in first)  # no grid yet
    assert {"neighbour_ratio", "neighbour_copies", "neighbour_copies_held_out"} <= set(last)  # of the same step's grid


def test_only_of_a_large_set_a_part_is_reported(trained: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setattr("ldmkit.report.Reporter.line", lambda self, text: lines.append(text))
    parrot_task(trained, torch.zeros(1))
    assert lines == []
    monkeypatch.setattr(neighbours, "MAX_TRAIN", 7)
    parrot_task(trained, torch.zeros(1))
    assert lines == ["unet: samples are compared with 7 of the 18 training pictures, chosen at random"]
