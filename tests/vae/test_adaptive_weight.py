"""The adaptive weight against numbers worked out by hand."""

import pytest
import torch

from ldmkit.vae.adaptive_weight import adaptive_weight


@pytest.mark.parametrize(
    ("reconstruction", "generator", "max_weight", "expected"),
    [
        # gradients of c * sum(w * (3, 4)) have norm 5 c
        (2.0, 4.0, 1e4, 10 / (20 + 1e-4)),
        (2.0, 4.0, 0.25, 0.25),
        (1.0, 0.0, 1e9, 5 / 1e-4),
        (0.0, 1.0, 1.0, 0.0),
    ],
)
def test_ratio_of_gradient_norms(reconstruction: float, generator: float, max_weight: float, expected: float) -> None:
    weight = torch.nn.Parameter(torch.tensor([0.5, -1.0], dtype=torch.float64))
    output = weight * torch.tensor([3.0, 4.0], dtype=torch.float64)  # both losses are factors of its sum
    gradients = [torch.full_like(output, factor) for factor in (reconstruction, generator)]
    found = adaptive_weight(output, *gradients, weight, max_weight)
    assert found.shape == ()
    assert not found.requires_grad
    assert found.item() == pytest.approx(expected, rel=1e-6)
    output.sum().backward()  # its graph is still there
    assert weight.grad is not None
    assert torch.equal(weight.grad, torch.tensor([3.0, 4.0], dtype=torch.float64))
