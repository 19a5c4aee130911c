"""Which memory layout a network gets, and that the layout changes its numbers by rounding alone."""

import pytest
import torch

from ldmkit.models.autoencoder import AutoencoderKL
from ldmkit.training.engine import memory_format


@pytest.mark.parametrize(
    ("device", "half", "size", "expected"),
    [
        ("cpu", False, 32, torch.channels_last),
        ("cpu", False, 64, torch.channels_last),
        ("cpu", False, 65, torch.contiguous_format),
        ("cpu", True, 256, torch.channels_last),
        ("cuda", False, 256, torch.channels_last),
    ],
)
def test_layout_by_device_precision_and_size(device: str, half: bool, size: int, expected: torch.memory_format) -> None:
    assert memory_format(torch.device(device), half=half, size=size) is expected


def test_a_layout_changes_nothing_but_rounding() -> None:
    torch.manual_seed(0)
    network = AutoencoderKL(channels=(8, 8, 16), latent_channels=2, norm_groups=4).double().eval()
    pixels = torch.rand(2, 3, 16, 16, dtype=torch.float64) * 2 - 1
    with torch.no_grad():
        expected = network.decode(network.encode(pixels).mean)
        found = network.to(memory_format=torch.channels_last)
        laid_out = found.decode(found.encode(pixels.to(memory_format=torch.channels_last)).mean)
    assert found.decoder.conv_out.weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(laid_out, expected, rtol=1e-12, atol=1e-12)
