"""What the gate lets through, what it says, and that a run stops at it."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from scipy.ndimage import gaussian_filter

from ldmkit.errors import LdmkitError
from ldmkit.recipe.sections import Gate
from ldmkit.run import gate
from ldmkit.run.networks import load_autoencoder

QUALITY: dict[str, Any] = {
    "held_out": {"num_pictures": 4, "psnr": 20.0, "ssim": 0.75, "lpips": 0.3, "high_frequency": 0.25},
    "channels": [
        {"mean": 0.5, "std": 2.0, "kurtosis": 1.5, "signal": 0.9},
        {"mean": -0.25, "std": 1.0, "kurtosis": 30.0, "signal": 0.01},
    ],
}
LIMITS = {"min_psnr": 19.0, "min_ssim": 0.7, "max_lpips": 0.4, "min_latent_signal": 0.005, "max_latent_kurtosis": 40.0}


def failing(quality: dict[str, Any] = QUALITY, **limits: float) -> list[tuple[str, str]]:
    return [(row.name, row.key) for row in gate.check(quality, Gate(**{**LIMITS, **limits})) if not row.passed]


@pytest.mark.parametrize(
    ("key", "limit", "name"),
    [
        ("min_psnr", 20.5, "psnr"),
        ("min_ssim", 0.76, "ssim"),
        ("max_lpips", 0.29, "lpips"),
        ("max_high_frequency", 0.2, "high_frequency"),
        ("min_latent_signal", 0.02, "signal of channel 1"),
        ("max_latent_kurtosis", 29.0, "kurtosis of channel 1"),
    ],
)
def test_each_limit(key: str, limit: float, name: str) -> None:
    assert failing() == []
    assert failing(**{key: limit}) == [(name, key)]
    rows = gate.check(QUALITY, Gate(**{**LIMITS, key: limit}))
    with pytest.raises(LdmkitError, match=rf"{name} is .*, \[gate\] {key} = {limit:g}\. .*--force"):
        gate.require(rows)
    (line,) = [line for line in gate.table(QUALITY, rows) if "fail" in line]
    assert line.split()[: len(name.split()[-2:])] == name.split()[-2:]
    assert failing(**{key: 0.0}) == []  # not looked at


def test_what_is_no_number_does_not_pass() -> None:
    quality = json.loads(json.dumps(QUALITY | {"held_out": {"num_pictures": 4, "psnr": math.nan}}))
    assert failing(quality) == [("psnr", "min_psnr")]


def test_table() -> None:
    lines = gate.table(QUALITY, gate.check(QUALITY, Gate(**{**LIMITS, "min_ssim": 0.0, "max_lpips": 0.2})))
    assert [" ".join(line.split()) for line in lines] == [
        "gate: the autoencoder, on 4 held-out pictures",
        "psnr 20 at least 19 pass",
        "ssim 0.75 any -",
        "lpips 0.3 at most 0.2 fail",
        "high_frequency 0.25 any -",
        "latents mean std signal (at least 0.005) kurtosis (at most 40)",
        "channel 0 0.5 2 0.9 1.5 pass",
        "channel 1 -0.25 1 0.01 30 pass",
    ]


def test_latents_from_before_a_figure_was_measured() -> None:
    quality = QUALITY | {"held_out": {"num_pictures": 4, "psnr": 20.0, "ssim": 0.75}}
    assert failing(quality, max_high_frequency=1e-9) == []


def test_without_held_out_pictures() -> None:
    quality = QUALITY | {"held_out": {"num_pictures": 0}}
    assert failing(quality, min_psnr=99.0) == []
    assert "no picture is held out: PSNR, SSIM, LPIPS not measured" in gate.table(quality, [])[0]


def test_latents_moments_against_draws(trained: Any) -> None:
    """scipy over a thousand draws of every latent; the share of signal from numpy's variances."""
    folder = trained.run / "latents"
    channels = gate.read_quality(folder)["channels"]
    mean, std = (np.load(folder / f"{name}.npy").astype(np.float64) for name in ("mean", "std"))
    rng = np.random.default_rng(0)
    for i, channel in enumerate(channels):
        m, s = mean[:, :, i], std[:, :, i]
        draws = m + s * rng.standard_normal((1000, *m.shape))
        assert channel["mean"] == pytest.approx(m.mean(), abs=1e-6)
        assert channel["std"] == pytest.approx(draws.std(), rel=2e-3)
        assert channel["kurtosis"] == pytest.approx(stats.kurtosis(draws, axis=None), abs=0.02)
        assert channel["signal"] == pytest.approx(m.var() / draws.var(), rel=4e-3)
    assert max(abs(channel["kurtosis"]) for channel in channels) > 0.05
    assert all(0.01 < channel["signal"] < 0.999 for channel in channels)


def published_ssim(x: np.ndarray, y: np.ndarray) -> float:
    """SSIM of two (H, W) pictures in [0, 1], Wang et al. 2004, eq. 13; mirrored at the borders."""

    def mean(values: np.ndarray) -> np.ndarray:
        found: np.ndarray = gaussian_filter(values, 1.5, radius=5, mode="mirror")
        return found

    c1, c2 = 0.01**2, 0.03**2
    x_mean, y_mean = mean(x), mean(y)
    x_var, y_var, both = mean(x * x) - x_mean**2, mean(y * y) - y_mean**2, mean(x * y) - x_mean * y_mean
    likeness = (2 * x_mean * y_mean + c1) * (2 * both + c2) / ((x_mean**2 + y_mean**2 + c1) * (x_var + y_var + c2))
    return float(likeness.mean())


def test_held_out_reconstructions(trained: Any) -> None:
    pipeline = trained.pipeline()
    autoencoder = load_autoencoder(pipeline.recipe, trained.run / "vae")
    _, held_out = pipeline.index.split(pipeline.recipe.data.held_out, pipeline.recipe.seed)
    psnr, ssim = [], []
    for i in held_out:
        with Image.open(pipeline.index.pictures()[i].path) as picture:
            target = np.asarray(picture.convert("RGB")) / 255.0
        with torch.no_grad():
            pixels = torch.tensor(target * 2 - 1, dtype=torch.float32).permute(2, 0, 1)[None]
            output = autoencoder.decode(autoencoder.encode(pixels).mean)[0].permute(1, 2, 0).numpy()
        shown = (output.clip(-1, 1).astype(np.float64) + 1) / 2
        psnr.append(-10 * np.log10(((target - shown) ** 2).mean()))
        ssim.append(np.mean([published_ssim(target[..., c], shown[..., c]) for c in range(3)]))
    found = gate.read_quality(trained.run / "latents")["held_out"]
    assert found["num_pictures"] == len(held_out) > 1
    assert found["psnr"] == pytest.approx(np.mean(psnr), rel=1e-4)
    assert found["ssim"] == pytest.approx(np.mean(ssim), rel=1e-3)
    assert "lpips" not in found  # the recipe has no such loss


def test_quality_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(LdmkitError, match=r"quality\.json: missing or damaged; `ldmkit encode RECIPE --again`"):
        gate.read_quality(tmp_path)
