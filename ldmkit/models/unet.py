"""The diffusion U-Net, Ho et al. 2020, with Rombach et al. 2021's cross-attention where there is text."""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F  # noqa: N812 - the name that every torch user knows
from torch import Tensor, nn

from ldmkit.errors import LdmkitError
from ldmkit.models.blocks import (
    AttentionBlock,
    ResidualBlock,
    TimeEmbedding,
    TransformerBlock,
    Upsample,
    check_levels,
)
from ldmkit.models.denoiser import Denoiser


class Stack(nn.Module):
    """The residual blocks of one level, then its attention where it has one."""

    def __init__(self, residuals: Sequence[ResidualBlock], attention: nn.Module | None) -> None:
        super().__init__()
        self.residuals = nn.ModuleList(residuals)
        self.attention = attention

    def forward(self, x: Tensor, time: Tensor, context: Tensor | None, mask: Tensor | None) -> Tensor:
        for residual in self.residuals:
            x = residual(x, time)
        return x if self.attention is None else self.attention(x, context, mask)


class UNet(Denoiser):
    """Levels of residual blocks, each at half the resolution of the one before.

    channels[0] is the width of the stem; each further entry is one level, which halves the resolution, so that
    height and width must be multiples of `downsample` = 2 ** (len(channels) - 1). `attention_levels` counts levels
    from 1; the upward path mirrors it, and the middle always attends. Without `context_dim` the attention is
    single-head self-attention; with it, a transformer block of `num_heads` heads that also attends to a context.
    Raises LdmkitError for widths that do not fit.
    """

    name = "unet"

    def __init__(
        self,
        in_channels: int = 4,
        channels: Sequence[int] = (64, 64, 128, 128, 256),
        num_res_blocks: int = 2,
        attention_levels: Sequence[int] = (3, 4),
        context_dim: int | None = None,
        num_heads: int = 8,
        time_dim: int = 256,
        norm_groups: int = 32,
        dropout: float = 0.0,
        mask_padding: bool = True,
    ) -> None:
        super().__init__()
        check_levels("unet", channels, attention_levels, norm_groups)
        if time_dim % 2:
            raise LdmkitError(f"unet: time_dim = {time_dim} must be even, half for sines and half for cosines")
        self.downsample = 2 ** (len(channels) - 1)
        self.context_dim = context_dim
        self.mask_padding = mask_padding

        def residual(width_in: int, width_out: int) -> ResidualBlock:
            return ResidualBlock(width_in, width_out, norm_groups=norm_groups, dropout=dropout, time_dim=time_dim)

        def attention(width: int) -> AttentionBlock | TransformerBlock:
            if context_dim is None:
                return AttentionBlock(width, norm_groups=norm_groups)
            if width % num_heads:
                raise LdmkitError(f"unet: a level with attention is {width} wide, no multiple of num_heads={num_heads}")
            return TransformerBlock(width, context_dim=context_dim, num_heads=num_heads, norm_groups=norm_groups)

        def stack(width_in: int, width_out: int, level: int) -> Stack:
            widths = [width_in] + [width_out] * num_res_blocks
            residuals = [residual(a, b) for a, b in pairwise(widths)]
            return Stack(residuals, attention(width_out) if level in attention_levels else None)

        levels = range(1, len(channels))
        self.time_embedding = TimeEmbedding(time_dim)
        self.stem = nn.Conv2d(in_channels, channels[0], 3, padding=1)
        self.down = nn.ModuleList(stack(channels[level - 1], channels[level], level) for level in levels)
        self.downsamples = nn.ModuleList(
            nn.Conv2d(channels[level], channels[level], 3, stride=2, padding=1) for level in levels
        )
        self.middle1 = Stack([residual(channels[-1], channels[-1])], attention(channels[-1]))
        self.middle2 = residual(channels[-1], channels[-1])
        # The levels walked backwards. A level's skip is as wide as what comes up to it: the input is doubled.
        self.upsamples = nn.ModuleList(Upsample(channels[level]) for level in reversed(levels))
        self.up = nn.ModuleList(stack(2 * channels[level], channels[level - 1], level) for level in reversed(levels))
        self.norm_out = nn.GroupNorm(norm_groups, channels[0])
        self.conv_out = nn.Conv2d(channels[0], in_channels, 3, padding=1)

        # Zero: each residual block starts as its shortcut and the network predicts 0 (Ho et al. 2020's code).
        convs = [module.conv2 for module in self.modules() if isinstance(module, ResidualBlock)]
        for conv in (*convs, self.conv_out):
            nn.init.zeros_(conv.weight)
            assert conv.bias is not None
            nn.init.zeros_(conv.bias)

    def forward(
        self, x_t: Tensor, t: Tensor, context: Tensor | None = None, context_mask: Tensor | None = None
    ) -> Tensor:
        """As `Denoiser` says."""
        mask = self.checked_mask(x_t, context, context_mask)
        time = F.silu(self.time_embedding(t))  # once for all blocks
        h = self.stem(x_t)
        skips = []
        for stack, downsample in zip(self.down, self.downsamples, strict=True):
            h = stack(h, time, context, mask)
            skips.append(h)
            h = downsample(h)
        h = self.middle2(self.middle1(h, time, context, mask), time)
        for upsample, stack, skip in zip(self.upsamples, self.up, reversed(skips), strict=True):
            h = stack(torch.cat([upsample(h), skip], dim=1), time, context, mask)
        return self.conv_out(F.silu(self.norm_out(h)))  # type: ignore[no-any-return]
