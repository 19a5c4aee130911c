"""A small diffusion transformer, Peebles & Xie 2023, with cross-attention to the text where there is any."""

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name that every torch user knows
from torch import Tensor, nn

from ldmkit.errors import LdmkitError
from ldmkit.models.blocks import Attention, TimeEmbedding, timestep_embedding
from ldmkit.models.denoiser import Denoiser


class DiT(Denoiser):
    """Tokens are patches of `patch_size` x `patch_size` latents, `width` wide, through `depth` blocks.

    Neighbouring patches overlap by one latent, and a convolution smooths the result: both against seams between them.
    Positions are computed from height and width, which may be any multiples of `downsample` = patch_size.
    It predicts 0 at first. Raises LdmkitError for widths that do not fit.
    """

    name = "dit"

    def __init__(
        self,
        in_channels: int = 4,
        patch_size: int = 2,
        width: int = 256,
        depth: int = 8,
        num_heads: int = 8,
        context_dim: int | None = None,
        dropout: float = 0.0,
        mask_padding: bool = True,
    ) -> None:
        super().__init__()
        if width % 4:
            raise LdmkitError(f"dit: width = {width} must be a multiple of 4: sines and cosines of row and column")
        if width % num_heads:
            raise LdmkitError(f"dit: width = {width} is no multiple of num_heads = {num_heads}")
        self.downsample = patch_size
        self.context_dim = context_dim
        self.mask_padding = mask_padding
        self.width = width
        self.time_embedding = TimeEmbedding(width)
        self.position_embedding = nn.Linear(width, width)
        self.stem = nn.Conv2d(in_channels, width, patch_size + 2, stride=patch_size, padding=1)
        self.blocks = nn.ModuleList(
            DiTBlock(width, num_heads=num_heads, context_dim=context_dim, dropout=dropout) for _ in range(depth)
        )
        self.norm_out = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.modulation = nn.Linear(width, 2 * width)
        self.to_patches = nn.Linear(width, in_channels * patch_size**2)
        self.seams = nn.Conv2d(in_channels, in_channels, 3, padding=1)
        for layer in (self.modulation, self.to_patches, self.seams):
            _zero(layer)

    def forward(
        self, x_t: Tensor, t: Tensor, context: Tensor | None = None, context_mask: Tensor | None = None
    ) -> Tensor:
        """As `Denoiser` says."""
        mask = self.checked_mask(x_t, context, context_mask)
        time = F.silu(self.time_embedding(t))[:, None]  # (B, 1, width), once for all blocks
        h = self.stem(x_t)  # (B, width, rows, columns)
        rows, columns = h.shape[-2:]
        h = h.flatten(2).transpose(1, 2) + self._positions(rows, columns, x_t.device)  # (B, N, width)
        for block in self.blocks:
            h = block(h, time, context, mask)
        shift, scale = self.modulation(time).chunk(2, dim=-1)
        h = self.to_patches(_modulated(self.norm_out(h), shift, scale))  # (B, N, C * patch_size^2)
        x = F.pixel_shuffle(h.transpose(1, 2).unflatten(2, (rows, columns)), self.downsample)
        return x + self.seams(x)  # type: ignore[no-any-return]

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """The blocks alone, in place: one is compiled for all, in a part of the time that the whole would take."""
        for block in self.blocks:
            block.compile(*args, **kwargs)

    def _positions(self, rows: int, columns: int, device: torch.device) -> Tensor:
        """(rows * columns, width): sinusoids of each token's row and column, projected."""
        half = self.width // 2
        row, column = (timestep_embedding(torch.arange(n, device=device), half) for n in (rows, columns))
        both = torch.cat([row[:, None].expand(-1, columns, -1), column[None].expand(rows, -1, -1)], dim=-1)
        return self.position_embedding(both.flatten(0, 1).to(self.position_embedding.weight.dtype))  # type: ignore[no-any-return]


class DiTBlock(nn.Module):
    """Self-attention, cross-attention where there is a context, feed-forward, each after a LayerNorm, with a residual.

    The timestep shifts, scales and gates (adaLN-zero, Peebles & Xie 2023, sec. 3.2); queries and keys are normalised
    (Esser et al. 2024, sec. 4.3); the feed-forward is SwiGLU (Shazeer 2020). At first the block is the identity.
    x (B, N, width), time (B, 1, width), context (B, L, context_dim), mask (B, L) bool or None.
    """

    def __init__(self, width: int, *, num_heads: int, context_dim: int | None, dropout: float) -> None:
        super().__init__()
        hidden = 8 * round(2.75 * width / 8)
        self.modulation = nn.Linear(width, 6 * width)
        self.norm1 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.self_attention = Attention(width, num_heads=num_heads, qk_norm=True)
        self.norm2 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.linear1 = nn.Linear(width, 2 * hidden)
        self.dropout = nn.Dropout(dropout)
        self.linear2 = nn.Linear(hidden, width)
        _zero(self.modulation)
        if context_dim is not None:
            self.norm_cross = nn.LayerNorm(width)
            self.cross_attention = Attention(width, num_heads=num_heads, context_dim=context_dim, qk_norm=True)
            _zero(self.cross_attention.to_out)

    def forward(self, x: Tensor, time: Tensor, context: Tensor | None, mask: Tensor | None) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(time).chunk(6, dim=-1)
        x = x + gate1 * self.self_attention(_modulated(self.norm1(x), shift1, scale1))
        if context is not None:
            x = x + self.cross_attention(self.norm_cross(x), context, mask)
        h, gate = self.linear1(_modulated(self.norm2(x), shift2, scale2)).chunk(2, dim=-1)
        return x + gate2 * self.linear2(self.dropout(h * F.silu(gate)))  # type: ignore[no-any-return]


def _modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale) + shift


def _zero(layer: nn.Linear | nn.Conv2d) -> None:
    nn.init.zeros_(layer.weight)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
