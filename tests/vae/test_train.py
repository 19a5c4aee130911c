"""The autoencoder's stage: its held-out metrics, and an adversarial term that starts, ruins and is taken back."""

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.fft import dctn
from scipy.ndimage import gaussian_filter

from ldmkit.components.protocols import Reconstruction
from ldmkit.errors import LdmkitError
from ldmkit.models.autoencoder import AutoencoderKL
from ldmkit.recipe.training import VaeLoss
from ldmkit.vae.metrics import dct_energy, reconstruction_metrics
from ldmkit.vae.train import train_vae

# Starts at the second evaluation and drowns the other terms, so that PSNR falls.
RUINOUS = (
    "vae.eval_every=1",
    "vae.checkpoint_every=1",
    "vae.keep_checkpoints=20",
    "vae.steps=12",
    "vae.learning_rate=3e-2",
    "vae.lr_schedule='constant'",
    "vae.losses.gan.start_step=0",
    "vae.losses.gan.start_on_plateau=true",
    "vae.losses.gan.weight=1000.0",
    "vae.losses.gan.ramp_steps=1",
    "vae.losses.gan.regularization='lecam'",
    "vae.guard.plateau_evaluations=1",
    "vae.guard.plateau_psnr=100.0",
    "vae.guard.max_psnr_drop=0.2",
)


def command(*overrides: str) -> tuple[str, ...]:
    return ("train-vae", "tiny.toml", *(word for override in overrides for word in ("--set", override)))


def rows(part: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (part / "metrics.jsonl").read_text().splitlines()]


def result(part: Path) -> tuple[list[dict[str, float]], dict[str, str], Any]:
    """Every logged number but the times, the hash of every weight file of the last step, what the guard remembers."""
    curve = [{key: row[key] for key in row if key not in ("seconds", "loader_wait")} for row in rows(part)]
    files = [*part.glob("*.safetensors"), *part.glob("checkpoints/step_00000012/*.safetensors")]
    hashes = {str(f.relative_to(part)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}
    state = json.loads((part / "checkpoints" / "step_00000012" / "state.json").read_text())
    return curve, hashes, state["memory"]


def without_vae(trained: Any, folder: Path) -> Path:
    """A copy of the pictures and captions; returns where the part will be."""
    shutil.copytree(trained.folder, folder)
    shutil.rmtree(folder / "runs" / "tiny" / "vae")
    return folder / "runs" / "tiny" / "vae"


@pytest.fixture(scope="module")
def ruined(trained: Any, processes: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """(part, output) of a training that went back at least twice."""
    folder = tmp_path_factory.mktemp("ruined") / "w"
    part = without_vae(trained, folder)
    code, output = processes.run(folder, command(*RUINOUS))
    assert code == 0, output
    return part, output


def test_goes_back_to_the_best_weights(ruined: tuple[Path, str]) -> None:
    part, output = ruined
    assert "vae: step 2: gan starts: held-out PSNR gained" in output
    told = re.findall(
        r"step (\d+): held-out PSNR is ([\d.]+) dB, ([\d.]+) below the best: back to the weights of step (\d+); "
        r"the weight of gan is now (\d+)",
        output,
    )
    assert [int(weight) for *_, weight in told] == [1000 // 2**n for n in range(1, len(told) + 1)]
    assert len(told) >= 2
    log = {int(row["step"]): row for row in rows(part)}
    for line in told:
        step, best = int(line[0]), int(line[3])
        assert float(line[1]) == pytest.approx(log[step]["held_out_psnr"], abs=0.006)
        assert float(line[2]) == pytest.approx(log[best]["held_out_psnr"] - log[step]["held_out_psnr"], abs=0.011)
        assert best == max(range(1, step + 1), key=lambda n: log[n]["held_out_psnr"])
        before, after = (part / "checkpoints" / f"step_{n:08d}" for n in (best, step))
        restored = load_file(before / "model.safetensors")
        for name in ("model", "best", "ema", "ema_0.8"):
            found = load_file(after / f"{name}.safetensors")
            assert all(torch.equal(found[key], value) for key, value in restored.items()), name
        assert not load_file(after / "optimizer_model.safetensors")  # the moments are gone
        assert load_file(after / "optimizer_discriminator_gan.safetensors")  # but not the discriminator's
    weights = [log[step].get("gan_weight") for step in range(1, int(told[0][0]) + 3)]
    # None until the plateau, from 0 to 1000 in one step, then again from 0 to the half.
    assert weights == [None, None, 0.0, *[1000.0] * (len(weights) - 5), 0.0, 500.0]


def test_killed_after_it_went_back(ruined: tuple[Path, str], trained: Any, processes: Any, tmp_path: Path) -> None:
    """First before its checkpoint, so that it has to go back once more, then right after."""
    oracle, output = ruined
    back = int(re.findall(r"step (\d+): held-out PSNR is", output)[0])
    part = without_vae(trained, tmp_path / "w")
    for step in (back, back + 1):
        code, output = processes.run(tmp_path / "w", command(*RUINOUS), strike=1, at=f"step_{step:08d}")
        assert code == -9
        assert f"step {back}: held-out PSNR is" in output or step > back
    code, output = processes.run(tmp_path / "w", command(*RUINOUS))
    assert code == 0, output
    assert f"going on from step {back} of 12" in output
    assert result(part) == result(oracle)
    assert load_file(part / "discriminator_gan.safetensors")["anchor_real"].item() != 0


def test_goes_back_at_the_last_step(ruined: tuple[Path, str], trained: Any, processes: Any, tmp_path: Path) -> None:
    """The metrics that the run keeps are those of the weights that it keeps."""
    oracle, output = ruined
    back, best = map(int, re.findall(r"step (\d+): held-out PSNR is.* to the weights of step (\d+)", output)[0])
    part = without_vae(trained, tmp_path / "w")
    code, output = processes.run(tmp_path / "w", command(*RUINOUS, f"vae.steps={back}"))
    assert code == 0, output
    facts = json.loads((part / "record.json").read_text())["facts"]
    assert rows(part)[-1]["held_out_psnr"] < facts["held_out_psnr"] == rows(oracle)[best - 1]["held_out_psnr"]
    assert facts["held_out_psnr_ema"] == facts["held_out_psnr"]


def test_regularised_discriminators_of_two_processes(trained: Any, processes: Any, tmp_path: Path) -> None:
    import socket

    part = without_vae(trained, tmp_path / "w")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    env = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "LOCAL_WORLD_SIZE": "2"}
    options = [*RUINOUS, "vae.batch_size=8", "vae.grad_accumulation=2", "vae.steps=6"]
    options += ["vae.losses.other.use='patchgan'", "vae.losses.other.channels=[4]"]
    options += ["vae.losses.other.regularization='r1'", "vae.losses.other.start_step=1"]
    started = [
        processes.start(
            tmp_path / "w",
            command(*options),
            env={**env, "RANK": rank, "LOCAL_RANK": rank, "ACCELERATE_USE_CPU": "true"},
        )
        for rank in "01"
    ]
    found = [(each.wait(), each.output.read_text()) for each in started]
    assert [code for code, _ in found] == [0, 0], found
    assert "back to the weights" in found[0][1]
    assert "back to the weights" not in found[1][1]  # the second one is quiet
    assert all(row["other_penalty"] > 0 for row in rows(part)[1:])
    assert all(row["gan_penalty"] >= 0 for row in rows(part)[2:])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["vae.losses.l1.start_on_plateau=true", "vae.losses.kl.weight=0.0"],
            "[vae.losses] needs a loss that counts from the first step",
        ),
        (
            ["vae.losses.kl.start_on_plateau=true"],
            "[vae.losses.kl] start_on_plateau = true is for adversarial losses, and kl is none; give it a start_step",
        ),
        (
            ["vae.losses.gan.start_on_plateau=true", "data.held_out=0.0"],
            "[vae.losses.gan] start_on_plateau = true judges by pictures held out: [data] held_out = 0.0 must be",
        ),
    ],
)
def test_starts_that_nothing_could_decide(overrides: list[str], message: str, workshop: Any) -> None:
    with pytest.raises(LdmkitError) as raised:
        train(workshop, *overrides)
    assert message in str(raised.value)


def test_adversarial_loss_alone(workshop: Any) -> None:
    recipe = workshop.folder / "tiny.toml"
    text = re.sub(r'\[vae\.losses\.(l1|kl)\]\nuse = "\w+"\n(weight = \S+\n)?', "", recipe.read_text())
    recipe.write_text(text)
    with pytest.raises(LdmkitError, match=r"\[vae\.losses\] needs a loss beside the adversarial one"):
        train(workshop, "vae.losses.gan.start_step=0")


def train(workshop: Any, *overrides: str) -> None:
    from ldmkit.run.workspace import Workspace

    pipeline = workshop.pipeline(*overrides)
    train_vae(
        Workspace(
            pipeline.recipe, pipeline.registry, pipeline.index, pipeline.run_dir, pipeline.parts(), pipeline.reporter
        )
    )


class Distance:
    """Stands in for LPIPS: what it is asked is written down."""

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, reconstruction: Reconstruction) -> torch.Tensor:
        self.seen += len(reconstruction.target)
        return (reconstruction.output - reconstruction.target).abs().amax((1, 2, 3)).mean()


@pytest.mark.parametrize("size", [8, 16])
def test_held_out_metrics(size: int) -> None:
    """By their formulas, SSIM after Wang et al. 2004 with scipy's Gaussian; uneven batches weigh by their pictures."""
    torch.manual_seed(0)
    network = AutoencoderKL(channels=[4, 8], latent_channels=2, num_res_blocks=1, norm_groups=4, dropout=0.5)
    batches = [torch.rand(3, 3, size, size) * 2 - 1, torch.rand(2, 3, size, size) * 2 - 1]
    losses = {"l1": VaeLoss(use="l1", weight=2.0), "eye": VaeLoss(use="lpips", weight=0.5)}
    terms = {"l1": lambda r: (r.output - r.target).abs().mean(), "eye": (distance := Distance())}
    found = reconstruction_metrics(network, batches, terms=terms, losses=losses, device=torch.device("cpu"))
    assert distance.seen == 5  # once a picture: no second pass for the metric

    target = torch.cat(batches)
    with torch.no_grad():
        output = network.eval().decode(network.encode(target).mean)
    x, y = target.double().numpy(), output.clamp(-1, 1).double().numpy()
    difference = (output - target).abs().double().numpy()
    lpips = difference.max(axis=(1, 2, 3)).mean()
    expected = {
        "psnr": np.mean(10 * np.log10(4 / ((x - y) ** 2).mean(axis=(1, 2, 3)))),
        "ssim": np.mean([ssim((a + 1) / 2, (b + 1) / 2) for a, b in zip(x, y, strict=True)]),
        "lpips": lpips,
        "loss": 2 * difference.mean() + 0.5 * lpips,
        "high_frequency": high_frequency(network.encode(target).mean.detach().numpy()),
    }
    assert found == pytest.approx(expected, rel=1e-4)


def high_frequency(latents: np.ndarray) -> float:
    """By scipy's DCT, of (B, C, h, w) with even sides."""
    energy = (dctn(latents.astype(np.float64), axes=(2, 3), norm="ortho") ** 2).sum(0)
    energy[:, 0, 0] = 0
    low = energy[:, : energy.shape[1] // 2, : energy.shape[2] // 2].sum((1, 2))
    return float((1 - low / energy.sum((1, 2))).mean())


@pytest.mark.parametrize("sides", [(8, 8), (4, 16), (9, 5), (1, 1)])
def test_energy_of_frequencies(sides: tuple[int, int]) -> None:
    """Of cosines each in its own place; of white noise as many as there are; the whole by Parseval."""
    h, w = sides
    for u, v in np.ndindex(h, w):
        wave = np.outer(np.cos(np.pi / h * (np.arange(h) + 0.5) * u), np.cos(np.pi / w * (np.arange(w) + 0.5) * v))
        high, total = dct_energy(torch.tensor(3 * wave[None, None])).flatten().tolist()
        assert total == pytest.approx(0 if u == v == 0 else 9 * (wave**2).sum(), rel=1e-5)
        assert high == pytest.approx(total if 2 * u >= h or 2 * v >= w else 0, abs=1e-4)
    noise = torch.randn(4000, 1, h, w, generator=torch.Generator().manual_seed(0)) + 5
    high, total = dct_energy(noise).flatten().tolist()
    assert total == pytest.approx(float((noise - noise.mean((2, 3), keepdim=True)).square().sum()), rel=1e-4)
    count = sum(2 * u >= h or 2 * v >= w for u, v in np.ndindex(h, w))
    assert high == pytest.approx(4000 * count * (sides != (1, 1)), rel=0.05)


def ssim(x: np.ndarray, y: np.ndarray) -> float:
    """Of (3, H, W) in [0, 1], the window 11 x 11 with sigma 1.5."""

    def blur(a: np.ndarray) -> np.ndarray:
        return gaussian_filter(a, (0, 1.5, 1.5), radius=(0, 5, 5), mode="mirror")

    c1, c2 = 0.01**2, 0.03**2
    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y, cov = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2, blur(x * y) - mean_x * mean_y
    index = (2 * mean_x * mean_y + c1) * (2 * cov + c2) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return float(index.mean())


def test_each_average_has_its_metrics(trained: Any) -> None:
    row = rows(trained.run / "vae")[-1]
    for suffix in ("", "_ema", "_ema_0.8"):
        assert -1 <= row[f"held_out_ssim{suffix}"] <= 1
        assert row[f"held_out_psnr{suffix}"] > 0
    assert not any("lpips" in key for key in row)
