"""l1, mse and kl against torch's own losses and distributions."""

from typing import Any

import pytest
import torch
from ldmkit_losses import KL, L1, MSE
from torch.distributions import Normal, kl_divergence
from torch.nn import functional

from ldmkit import Loss, Reconstruction


@pytest.fixture
def reconstruction() -> Reconstruction:
    generator = torch.Generator().manual_seed(0)
    target, output = torch.randn(2, 5, 3, 8, 8, generator=generator)
    mean, logvar = torch.randn(2, 5, 4, 2, 2, generator=generator)
    return Reconstruction(target, output.requires_grad_(), mean.requires_grad_(), logvar.requires_grad_())


@pytest.mark.parametrize(("loss", "oracle"), [(L1(), functional.l1_loss), (MSE(), functional.mse_loss)])
def test_pixel_losses_are_torchs(reconstruction: Reconstruction, loss: Loss, oracle: object) -> None:
    torch.testing.assert_close(loss(reconstruction), oracle(reconstruction.output, reconstruction.target))


def test_kl_is_the_divergence_of_torch_distributions(reconstruction: Reconstruction) -> None:
    posterior = Normal(reconstruction.mean, (0.5 * reconstruction.logvar).exp())
    divergence = kl_divergence(posterior, Normal(0.0, 1.0))  # (B, C, h, w)
    torch.testing.assert_close(KL()(reconstruction), divergence.sum((1, 2, 3)).mean())
    torch.testing.assert_close(KL(reduction="mean")(reconstruction), divergence.mean())


def test_kl_by_hand() -> None:
    # mean 3, variance e: (9 + e - 1 - 1) / 2 a value, 2 values a picture
    mean = torch.full((4, 2, 1, 1), 3.0)
    found = KL()(Reconstruction(mean, mean, mean, torch.ones_like(mean)))
    assert found.item() == pytest.approx(7 + 2.718281828459045, rel=1e-6)


@pytest.mark.parametrize("loss", [L1(), MSE(), KL()])
def test_scalar_in_fp32_with_a_gradient_whatever_the_precision(reconstruction: Reconstruction, loss: Loss) -> None:
    halves = [part.detach().bfloat16().requires_grad_() for part in vars(reconstruction).values()]
    value = loss(Reconstruction(*halves))
    assert value.shape == ()
    assert value.dtype == torch.float32
    value.backward()
    reached = [index for index, part in enumerate(halves) if part.grad is not None]
    assert reached == ([2, 3] if isinstance(loss, KL) else [0, 1])


@pytest.mark.parametrize("kind", [L1, MSE, KL])
def test_sum_is_the_mean_times_the_values_of_a_picture(kind: type[Loss]) -> None:
    """196,608 of them at 256x256: the factor by which a weight is off where the two are mixed up."""
    generator = torch.Generator().manual_seed(0)
    whole = Reconstruction(*torch.randn(4, 2, 3, 256, 256, generator=generator))
    ratio = kind(reduction="sum")(whole) / kind(reduction="mean")(whole)
    assert ratio.item() == pytest.approx(196_608, rel=1e-5)
    twice = Reconstruction(*(torch.cat([part, part]) for part in vars(whole).values()))
    torch.testing.assert_close(kind(reduction="sum")(twice), kind(reduction="sum")(whole))  # whatever the batch


@pytest.mark.parametrize(("loss", "oracle"), [(L1, functional.l1_loss), (MSE, functional.mse_loss)])
def test_pixel_sum_is_torchs(reconstruction: Reconstruction, loss: type[Loss], oracle: Any) -> None:
    expected = oracle(reconstruction.output, reconstruction.target, reduction="sum") / len(reconstruction.target)
    torch.testing.assert_close(loss(reduction="sum")(reconstruction), expected)
