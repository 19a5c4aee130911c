"""patchgan in both forms, against the losses of torch and of the hinge papers."""

import math
from typing import Any

import pytest
import torch
from ldmkit_patchgan import PatchGAN
from torch import nn
from torch.nn import functional

from ldmkit import AdversarialLoss, LdmkitError, PatchDiscriminator, Reconstruction


def small(form: str, **options: Any) -> PatchGAN:
    torch.manual_seed(0)
    return PatchGAN(form=form, channels=(4, 8), norm_groups=2, **options)


@pytest.fixture
def reconstruction() -> Reconstruction:
    generator = torch.Generator().manual_seed(1)
    target, output = torch.randn(2, 3, 3, 16, 16, generator=generator)
    latents = torch.zeros(3, 4, 2, 2)
    return Reconstruction(target, output.requires_grad_(), latents, latents)


def test_seed_form_is_binary_cross_entropy(reconstruction: Reconstruction) -> None:
    loss = small("seed")
    real, fake = loss.discriminator(reconstruction.target), loss.discriminator(reconstruction.output)
    bce = functional.binary_cross_entropy_with_logits
    torch.testing.assert_close(loss(reconstruction), bce(fake, torch.ones_like(fake)))
    expected = (bce(real, torch.ones_like(real)) + bce(fake, torch.zeros_like(fake))) / 2
    found = loss.discriminator_loss(reconstruction)
    torch.testing.assert_close(found.loss, expected)
    torch.testing.assert_close((found.real, found.fake), (real.mean(), fake.mean()))
    assert found.penalty is None
    assert not found.real.requires_grad


def test_hinge_form_by_hand(reconstruction: Reconstruction) -> None:
    class Given(nn.Module):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return torch.tensor([3.0, 0.5] if pixels is reconstruction.target else [-2.0, 0.25])

    loss = small("hinge")
    loss.discriminator = Given()  # as a trainer that wraps it would
    assert loss(reconstruction).item() == pytest.approx(0.875)  # -(-2 + 0.25) / 2
    # real: (0 + 0.5) / 2; fake: (0 + 1.25) / 2; halved
    assert loss.discriminator_loss(reconstruction).loss.item() == pytest.approx((0.25 + 0.625) / 2)


@pytest.mark.parametrize("form", ["seed", "hinge"])
def test_gradients_go_where_they_belong(reconstruction: Reconstruction, form: str) -> None:
    loss = small(form)
    loss.discriminator_loss(reconstruction).loss.backward()
    assert reconstruction.output.grad is None
    assert all(parameter.grad is not None for parameter in loss.discriminator.parameters())
    loss(reconstruction).backward()
    assert reconstruction.output.grad.abs().sum() > 0


@pytest.mark.parametrize("form", ["seed", "hinge"])
def test_discriminator_learns_to_tell_and_the_generator_feels_it(reconstruction: Reconstruction, form: str) -> None:
    loss = small(form)
    optimizer = torch.optim.Adam(loss.discriminator.parameters(), lr=1e-2)
    first, generator_first = loss.discriminator_loss(reconstruction).loss.item(), loss(reconstruction).item()
    for _ in range(60):
        optimizer.zero_grad()
        loss.discriminator_loss(reconstruction).loss.backward()
        optimizer.step()
    assert loss.discriminator_loss(reconstruction).loss.item() < 0.3 * first
    assert loss(reconstruction).item() > generator_first


def test_default_is_the_seeds_discriminator_and_follows_the_seeded_generator() -> None:
    torch.manual_seed(3)
    one = PatchGAN()
    torch.manual_seed(3)
    other = PatchDiscriminator()
    assert isinstance(one, AdversarialLoss)
    assert sum(parameter.numel() for parameter in one.discriminator.parameters()) == 1_557_377
    pairs = zip(one.discriminator.parameters(), other.parameters(), strict=True)
    assert all(torch.equal(left, right) for left, right in pairs)


def test_equal_odds_cost_log_two(reconstruction: Reconstruction) -> None:
    loss = small("seed")
    for parameter in loss.discriminator.parameters():
        nn.init.zeros_(parameter)
    assert loss(reconstruction).item() == pytest.approx(math.log(2))
    assert loss.discriminator_loss(reconstruction).loss.item() == pytest.approx(math.log(2))


def test_widths_that_the_norms_cannot_group() -> None:
    with pytest.raises(LdmkitError, match="norm_groups"):
        PatchGAN(channels=(4, 6), norm_groups=4)


class Linear(nn.Module):
    """One logit a picture, of which gradient and values are known: <weight, pixels>."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.einsum("bchw,chw->b", pixels, self.weight)[:, None, None, None]


def test_r1_of_a_linear_discriminator(reconstruction: Reconstruction) -> None:
    """grad D = weight everywhere, so the penalty is w / 2 |weight|^2 and its own gradient w * weight."""
    weight = torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(2))
    loss = small("seed", regularization="r1", regularization_weight=3.0)
    loss.discriminator = Linear(weight)
    found = loss.discriminator_loss(reconstruction)
    torch.testing.assert_close(found.penalty, 1.5 * weight.square().sum())
    found.penalty.backward()
    torch.testing.assert_close(loss.discriminator.weight.grad, 3 * weight)
    assert reconstruction.output.grad is None
    assert not reconstruction.target.requires_grad


@pytest.mark.parametrize("form", ["seed", "hinge"])
def test_r1_of_patches_is_eq_9(reconstruction: Reconstruction, form: str) -> None:
    """torch.func's own gradient of each picture's mean logit; the paper's weight of 10."""
    loss = small(form, regularization="r1")
    mean = torch.func.grad(lambda picture: loss.discriminator(picture[None]).mean())
    squares = [mean(picture).square().sum() for picture in reconstruction.target]
    found = loss.discriminator_loss(reconstruction)
    torch.testing.assert_close(found.penalty, 10 / 2 * torch.stack(squares).mean())
    torch.testing.assert_close(found.loss, small(form).discriminator_loss(reconstruction).loss)
    found.penalty.backward()
    assert any(parameter.grad.abs().sum() > 0 for parameter in loss.discriminator.parameters())


def test_lecam_is_the_papers_formula(reconstruction: Reconstruction) -> None:
    loss = small("hinge", regularization="lecam", lecam_decay=0.75)
    real, fake = (loss.discriminator(pixels).detach() for pixels in (reconstruction.target, reconstruction.output))
    anchor_real = anchor_fake = 0.0
    for _ in range(3):
        anchor_real = 0.75 * anchor_real + 0.25 * real.mean().item()
        anchor_fake = 0.75 * anchor_fake + 0.25 * fake.mean().item()
        expected = 0.3 * (((real - anchor_fake) ** 2).mean() + ((fake - anchor_real) ** 2).mean())
        found = loss.discriminator_loss(reconstruction)
        torch.testing.assert_close(found.penalty, expected)
    assert abs(anchor_real - anchor_fake) > 1e-3  # or a mix-up would not show
    buffers = {"anchor_real": anchor_real, "anchor_fake": anchor_fake}
    assert {name: value.item() for name, value in loss.discriminator.named_buffers()} == pytest.approx(buffers)
    found.penalty.backward()
    assert any(parameter.grad.abs().sum() > 0 for parameter in loss.discriminator.parameters())


def test_lecams_anchors_are_restored_with_the_discriminator(reconstruction: Reconstruction) -> None:
    loss, other = (small("seed", regularization="lecam") for _ in range(2))
    loss.discriminator_loss(reconstruction)
    other.discriminator.load_state_dict(loss.discriminator.state_dict())
    found, expected = (each.discriminator_loss(reconstruction).penalty for each in (other, loss))
    assert torch.equal(found, expected)
    assert not dict(small("seed", regularization="r1").discriminator.named_buffers())
