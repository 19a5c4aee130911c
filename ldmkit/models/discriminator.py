"""A discriminator of patches, Isola et al. 2017, sec. 3.2.2, with GroupNorm and SiLU."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from ldmkit.errors import LdmkitError


class PatchDiscriminator(nn.Module):
    """(B, 3, H, W) pixels -> logits (B, 1, h, w), one a patch, real = high.

    Each entry of `channels` is one stride-2 convolution (sizes round up); all but the first are normalised.
    Raises LdmkitError where a normalised width is not a multiple of norm_groups.
    """

    def __init__(self, channels: Sequence[int] = (64, 128, 256, 512), norm_groups: int = 32) -> None:
        super().__init__()
        if not channels or any(width % norm_groups for width in channels[1:]):
            raise LdmkitError(
                f"discriminator: channels = {list(channels)} must hold at least one width, all after the first "
                f"multiples of norm_groups = {norm_groups}"
            )
        layers: list[nn.Module] = [nn.Conv2d(3, channels[0], 3, stride=2, padding=1), nn.SiLU()]
        for in_channels, out_channels in pairwise(channels):
            layers += [
                nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1),
                nn.GroupNorm(norm_groups, out_channels),
                nn.SiLU(),
            ]
        layers.append(nn.Conv2d(channels[-1], 1, 3, padding=1))
        self.layers = nn.Sequential(*layers)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.layers(pixels)  # type: ignore[no-any-return]
