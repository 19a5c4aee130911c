"""The seed's side of the step benchmarks computes what ldmkit computes under the seed's settings; the scripts run."""

import re
import statistics
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from benchmarks.original.loop import (
    LatentFiles,
    alphas_cumprod,
    batches,
    bce,
    discriminator_loss,
    eps_loss,
    reconstruction_loss,
    text_unet_loop,
)
from benchmarks.original.loop import adaptive_weight as seed_weight
from benchmarks.original.networks import VAE, PatchGAN, TextUNet
from benchmarks.training import step
from benchmarks.turns import Contender, Timing, Turn, take_turns
from ldmkit.caches.sets import LatentSet, TextSet
from ldmkit.components.protocols import Reconstruction
from ldmkit.components.registry import Registry
from ldmkit.denoising import train_t2i
from ldmkit.denoising.task import DenoisingLoss
from ldmkit.diffusion.process import make_schedule
from ldmkit.models.autoencoder import AutoencoderKL
from ldmkit.models.convert import SEED_DISCRIMINATOR, SEED_UNET_T2I, SEED_VAE, convert_checkpoint
from ldmkit.models.discriminator import PatchDiscriminator
from ldmkit.models.unet import UNet
from ldmkit.recipe import load_recipe
from ldmkit.training import loop
from ldmkit.vae import train as train_vae
from ldmkit.vae.adversarial import adaptive_weight
from tests.benchmarks import contenders

REPOSITORY = Path(__file__).parents[2]


def draw(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_text_unet_and_its_loss(tmp_path: Path) -> None:
    """Equal weights, latents, states, noise and timesteps: the loss under the recipe `cats-seed`, and its gradient."""

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
    torch.testing.assert_close(bce(gan(output), 1), terms["patchgan"](reconstruction))
    torch.testing.assert_close(
        discriminator_loss(gan(pixels), gan(output.detach())), terms["patchgan"].discriminator_loss(reconstruction).loss
    )
    weight = seed_weight(found, 100 * bce(gan(output), 1), vae.last_layer)
    last = ours.decoder.conv_out.weight
    gradients = [
        torch.autograd.grad(loss, expected_output, retain_graph=True)[0]
        for loss in (expected, 100 * terms["patchgan"](reconstruction))
    ]
    torch.testing.assert_close(weight, adaptive_weight(expected_output, *gradients, last, 1.0), rtol=1e-3, atol=0)
    assert 0 < weight < 1, "clamped, it would prove nothing"


def test_loop_reads_pairs_file_by_file_and_learns(tmp_path: Path) -> None:

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


class Enough(Exception):
    """Ends a contender after its second step."""


def one_after_the_other(contenders: dict[str, Contender], **_: Any) -> dict[str, Timing]:
    """Each takes two steps, in this process."""
    for contender, arguments in contenders.values():
        with pytest.raises(Enough):
            contender(Counted(), *arguments)
    return {name: Timing([(1.0, 0.5)]) for name in contenders}


class Counted(Turn):
    def __init__(self) -> None:
        self.left, self._waited = 3, 0.0

    def __call__(self) -> None:
        self.left -= 1
        if not self.left:
            assert self._waited > 0
            raise Enough


@pytest.mark.parametrize(
    ("network", "options", "ratios"), [("text", {}, 2), ("vae", {"size": 32, "phases": ["after"], "workers": 0}, 1)]
)
def test_contenders_take_steps(
    network: Any, options: Any, ratios: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("diffusers")
    changed = ((loop, "update"), (train_t2i, "build_text_to_image"), (train_vae, "picture_batches"))
    for owner, name in (*changed, (LatentSet, "batch"), (TextSet, "batch")):
        monkeypatch.setattr(owner, name, getattr(owner, name))  # to be put back: a contender leaves them changed
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(step, "take_turns", one_after_the_other)
    step.main(network, batch=2, rounds=1, steps=1, pictures=2, precision="fp32", device="cpu", **options)
    printed = capsys.readouterr().out
    assert len(re.findall(r"^ratio .*: \d+\.\d\d \(", printed, re.MULTILINE)) == ratios, printed


def test_turns_are_timed_in_processes_of_their_own() -> None:
    fast, slow = (contenders.sleeps, (0.02,)), (contenders.sleeps, (0.08,))
    found = take_turns({"fast": fast, "slow": slow}, rounds=2, steps=3, preload=())
    assert 0.08 <= found["slow"].seconds < 0.12
    assert 0.4 < found["slow"].wait_share < 0.6
    assert 2 < statistics.median(found["fast"].ratios(found["slow"])) < 5
    with pytest.raises(RuntimeError, match=r"broken failed:\n(.*\n)*ValueError: only 4 batches"):
        take_turns({"broken": (contenders.reads, (4,))}, rounds=2, steps=3, preload=())
