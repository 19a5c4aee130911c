"""The seed's side of the step benchmarks computes what ldmkit computes under the seed's settings; the scripts run."""

import os
import re
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ldmkit.components.protocols import Reconstruction
from ldmkit.components.registry import Registry
from ldmkit.denoising.task import DenoisingLoss
from ldmkit.diffusion.process import make_schedule
from ldmkit.models.autoencoder import AutoencoderKL
from ldmkit.models.convert import SEED_DISCRIMINATOR, SEED_UNET_T2I, SEED_VAE, convert_checkpoint
from ldmkit.models.discriminator import PatchDiscriminator
from ldmkit.models.unet import UNet
from ldmkit.recipe import load_recipe
from ldmkit.vae.adversarial import adaptive_weight

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _benchmarks_import_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")


def draw(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_text_unet_and_its_loss(tmp_path: Path) -> None:
    """Equal weights, latents, states, noise and timesteps: the loss under the recipe `cats-seed`, and its gradient."""
    from seed_loop import alphas_cumprod, eps_loss
    from seed_networks import TextUNet

    torch.manual_seed(0)
    theirs, ours = TextUNet(), UNet(**SEED_UNET_T2I)
    torch.save(theirs.state_dict(), tmp_path / "unet.pth")
    (converted,) = convert_checkpoint(tmp_path / "unet.pth", tmp_path)
    ours.load_state_dict(load_file(converted))
    x0, noise, context, t = draw(3, 4, 16, 16), draw(3, 4, 16, 16, seed=2), draw(3, 77, 768, seed=3), [0, 400, 999]

    diffusion = load_recipe(REPOSITORY / "recipes" / "cats-seed.toml").diffusion
    loss = DenoisingLoss(diffusion, make_schedule(**diffusion.schedule_options()), nullcontext)
    expected = loss(ours, x0, np.array(t, dtype=np.float64), noise, (context,)).mean()
    found = eps_loss(theirs, x0, context, torch.tensor(t), noise, alphas_cumprod())
    assert found.item() == pytest.approx(expected.item(), abs=1e-5)
    assert abs(found.item() - 1) > 0.01, "an output near zero would prove nothing"

    found.backward()  # type: ignore[no-untyped-call]
    expected.backward()  # type: ignore[no-untyped-call]
    for one, other in ((theirs.init_conv, ours.stem), (theirs.out[-1], ours.conv_out)):
        torch.testing.assert_close(one.weight.grad, other.weight.grad, rtol=1e-3, atol=1e-5)


def test_vae_discriminator_and_their_losses(tmp_path: Path) -> None:
    from seed_loop import adaptive_weight as seed_weight
    from seed_loop import discriminator_loss, generator_loss, reconstruction_loss
    from seed_networks import VAE, PatchGAN

    torch.manual_seed(0)
    vae, gan = VAE(), PatchGAN()
    checkpoint = {"vae_state_dict": vae.state_dict(), "gan_state_dict": gan.state_dict()}
    torch.save(checkpoint, tmp_path / "checkpoint.pth")
    files = convert_checkpoint(tmp_path / "checkpoint.pth", tmp_path)
    ours, discriminator = AutoencoderKL(**SEED_VAE), PatchDiscriminator(**SEED_DISCRIMINATOR)
    for network, file in zip((ours, discriminator), files, strict=True):
        network.load_state_dict(load_file(file))

    pixels = draw(2, 3, 32, 32).tanh()
    torch.manual_seed(7)
    output, mean, logvar = vae(pixels)
    torch.manual_seed(7)
    expected_output, posterior = ours(pixels, torch.randn(2, 4, 4, 4))
    torch.testing.assert_close(output, expected_output, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logvar, posterior.logvar, rtol=1e-4, atol=1e-5)

    def squares(output: Tensor, target: Tensor) -> Tensor:
        return (output - target).square().mean((1, 2, 3))  # any distance serves: LPIPS is the same object in both

    registry = Registry.load()
    terms = {
        name: registry.build("loss", {"use": name, **options}, where=name)
        for name, options in (("l1", {}), ("kl", {"reduction": "sum"}), ("patchgan", {"form": "seed"}))
    }
    terms["patchgan"].discriminator = discriminator
    reconstruction = Reconstruction(pixels, expected_output, posterior.mean, posterior.logvar)
    expected = terms["l1"](reconstruction) + 1e-6 * terms["kl"](reconstruction)
    expected = expected + squares(expected_output, pixels).mean()
    found = reconstruction_loss(pixels, output, mean, logvar, squares)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(generator_loss(gan(output)), terms["patchgan"](reconstruction))
    torch.testing.assert_close(
        discriminator_loss(gan(pixels), gan(output.detach())), terms["patchgan"].discriminator_loss(reconstruction).loss
    )
    weight = seed_weight(found, 100 * generator_loss(gan(output)), vae.last_layer)
    last = ours.decoder.conv_out.weight
    gradients = [
        torch.autograd.grad(loss, expected_output, retain_graph=True)[0]
        for loss in (expected, 100 * terms["patchgan"](reconstruction))
    ]
    torch.testing.assert_close(weight, adaptive_weight(expected_output, *gradients, last, 1.0), rtol=1e-3, atol=0)
    assert 0 < weight < 1, "clamped, it would prove nothing"


def test_loop_reads_pairs_file_by_file_and_learns(tmp_path: Path) -> None:
    from seed_loop import LatentFiles, batches, text_unet_loop

    latents = torch.arange(12.0).mul(1e-3).reshape(12, 1, 1, 1).expand(12, 4, 2, 2)
    LatentFiles.write(tmp_path, latents, latents.reshape(12, 16) + 100)
    files = LatentFiles(tmp_path)
    assert len(files) == 12
    assert all(torch.equal(state, latent.reshape(16) + 100) for latent, state in (files[i] for i in range(12)))

    class Half(nn.Module):
        """Predicts a learned share of x_t, of which more than all is best where x_t is sigma * noise alone."""

        def __init__(self) -> None:
            super().__init__()
            self.share = nn.Parameter(torch.tensor(0.5))

        def forward(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
            assert t.shape == (4,)
            assert torch.equal(context, context[:, :1].expand(4, 16))
            return self.share * x

    network = Half()
    losses = text_unet_loop(network, batches(files, 4), device=torch.device("cpu"))
    for _ in range(7):  # over the end of the data
        assert np.isfinite(next(losses))
    # AdamW's first steps go by the learning rate each, here upwards.
    assert float(network.share.detach()) == pytest.approx(0.5 + 7e-4, abs=1e-4)


def test_ratio_is_taken_within_rounds(capsys: pytest.CaptureFixture[str]) -> None:
    from turns import Timing, print_ratio, print_table

    ours, theirs = Timing([(1.0, 0.1), (4.0, 0.2), (2.0, 0.1)]), Timing([(2.0, 0.0), (6.0, 0.0), (6.0, 0.0)])
    print_ratio("", ours, theirs)
    print_table({"ours": ours}, batch=8)
    printed = capsys.readouterr().out
    assert "2.00 (rounds: 1.50 to 3.00)" in printed
    assert printed.splitlines()[-1].split() == ["ours", "2.000", "4.00", "5.0%"]


@pytest.mark.parametrize(
    ("script", "arguments", "ratios"),
    [("train_step.py", [], 2), ("vae_step.py", ["--size", "32", "--phase", "after"], 1)],
)
def test_benchmark_runs(script: str, arguments: list[str], ratios: int) -> None:
    pytest.importorskip("diffusers")
    tiniest = ["--pictures=2", "--batch=2", "--rounds=1", "--steps=1", "--device=cpu", "--precision=fp32"]
    done = subprocess.run(
        [sys.executable, REPOSITORY / "benchmarks" / script, *tiniest, *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"^ratio .*: \d+\.\d\d \(rounds", done.stdout, re.MULTILINE)) == ratios
