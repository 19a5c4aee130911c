"""A small diffusion transformer: Peebles & Xie 2023, with the changes that made it train fast on few tokens.

here                 in Peebles & Xie 2023     from
normalised q and k   none                      Dehghani et al. 2023, sec. 2.2
gated MLP (SwiGLU)   GELU                      Shazeer 2020, eq. 6
overlapping patches  linear on each patch      Xiao et al. 2021: a convolution as the stem
cross-attention      none (classes)            Chen et al. 2023 (PixArt-alpha), sec. 2.3
"""

import torch
import torch.nn.functional as F  # noqa: N812 - the name that every torch user knows
from torch import Tensor, nn

from ldmkit.errors import LdmkitError
from ldmkit.models.blocks import TimeEmbedding, check_size, timestep_embedding


class NormalizedAttention(nn.Module):
    """Multi-head attention with RMS-normalised queries and keys, which keeps the logits bounded.

    x (B, N, width) attends to `context` (B, L, context_dim), or to itself. `mask` (B, L) bool, True = attend to it; a
    row that is all False gets zeros (before the output projection's bias).
    """

    def __init__(self, width: int, *, num_heads: int, context_dim: int | None = None) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_kv = nn.Linear(context_dim or width, 2 * width, bias=False)
        self.norm_q = nn.RMSNorm(width // num_heads, eps=1e-6)
        self.norm_k = nn.RMSNorm(width // num_heads, eps=1e-6)
        self.to_out = nn.Linear(width, width)

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        k, v = self.to_kv(x if context is None else context).chunk(2, dim=-1)
        q, k, v = (h.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for h in (self.to_q(x), k, v))
        q, k = self.norm_q(q), self.norm_k(k)  # (B, heads, N or L, width / heads)
        if mask is None:
            h = F.scaled_dot_product_attention(q, k, v)
        else:
            mask = mask[:, None, None, :]  # (B, 1, 1, L)
            has_token = mask.any(dim=-1, keepdim=True)
            # As in `blocks.Attention`: a softmax over nothing is not the same everywhere.
            h = F.scaled_dot_product_attention(q, k, v, attn_mask=mask | ~has_token) * has_token.to(v.dtype)
        return self.to_out(h.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class GatedMLP(nn.Module):
    """SwiGLU, Shazeer 2020, eq. 6: (B, N, width) -> (B, N, width)."""

    def __init__(self, width: int, hidden: int, *, dropout: float) -> None:
        super().__init__()
        self.linear1 = nn.Linear(width, 2 * hidden)
        self.dropout = nn.Dropout(dropout)
        self.linear2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        gate, h = self.linear1(x).chunk(2, dim=-1)
        return self.linear2(self.dropout(F.silu(gate) * h))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Self-attention, cross-attention where there is a context, MLP; each with a residual.

    The first and the last are scaled, shifted and gated by the time (adaLN-zero, Peebles & Xie 2023, sec. 3.2).
    """

    def __init__(self, width: int, *, num_heads: int, mlp_width: int, context_dim: int | None, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attention = NormalizedAttention(width, num_heads=num_heads)
        if context_dim is not None:
            self.norm_context = nn.LayerNorm(width)
            self.cross_attention = NormalizedAttention(width, num_heads=num_heads, context_dim=context_dim)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.mlp = GatedMLP(width, mlp_width, dropout=dropout)
        self.modulation = nn.Linear(width, 6 * width)

    def forward(self, x: Tensor, time: Tensor, context: Tensor | None, mask: Tensor | None) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(time)[:, None].chunk(6, dim=-1)  # (B, 1, width)
        x = x + gate1 * self.attention(self.norm1(x) * (1 + scale1) + shift1)
        if context is not None:
            x = x + self.cross_attention(self.norm_context(x), context, mask)
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)


class DiT(nn.Module):
    """Predicts eps, x0, v or flow from noisy latents: which, its training decides.

    A token is a patch of `patch_size` x `patch_size` latents and a border of one around it; a last convolution evens
    out the seams between patches. Height and width must be multiples of `downsample` = `patch_size`. With
    `context_dim` each block attends to a context (B, L, context_dim); with `mask_padding` not to its padding.
    Raises LdmkitError for widths that do not fit.
    """

    def __init__(
        self,
        in_channels: int = 4,
        patch_size: int = 2,
        width: int = 256,
        depth: int = 8,
        num_heads: int = 4,
        mlp_ratio: float = 2.75,
        context_dim: int | None = None,
        dropout: float = 0.0,
        mask_padding: bool = True,
    ) -> None:
        super().__init__()
        if width % num_heads or width % 4:
            raise LdmkitError(f"dit: width = {width} must be a multiple of num_heads = {num_heads}, and of 4")
        self.downsample = self.patch_size = patch_size
        self.context_dim = context_dim
        self.mask_padding = mask_padding
        self.width = width
        self.time_embedding = TimeEmbedding(width)
        self.patches = nn.Conv2d(in_channels, width, patch_size + 2, stride=patch_size, padding=1)
        self.positions = nn.Linear(width, width, bias=False)
        self.blocks = nn.ModuleList(
            Block(
                width,
                num_heads=num_heads,
                mlp_width=round(mlp_ratio * width),
                context_dim=context_dim,
                dropout=dropout,
            )
            for _ in range(depth)
        )
        self.norm_out = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.modulation_out = nn.Linear(width, 2 * width)
        self.linear_out = nn.Linear(width, patch_size**2 * in_channels)
        self.seams = nn.Conv2d(in_channels, in_channels, 3, padding=1)

        # Zero: each block starts as its shortcut and the network predicts 0 (Peebles & Xie 2023, sec. 3.2).
        zeros = [block.modulation for block in self.blocks] + [self.modulation_out, self.linear_out]
        zeros += [block.cross_attention.to_out for block in self.blocks if context_dim is not None]
        for module in (*zeros, self.seams):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)

    def forward(
        self, x_t: Tensor, t: Tensor, context: Tensor | None = None, context_mask: Tensor | None = None
    ) -> Tensor:
        """x_t (B, C, H, W), t (B,) in [0, T], context (B, L, D), context_mask (B, L) 1 = token -> (B, C, H, W).

        Raises LdmkitError for a size that is no multiple of `downsample`, and for a context that is missing or
        that this network was not built for.
        """
        check_size("dit", x_t, self.downsample)
        if (context is None) != (self.context_dim is None):
            wanted = "no context" if self.context_dim is None else f"a context (B, L, {self.context_dim})"
            raise LdmkitError(f"dit: this network was built with context_dim = {self.context_dim}: it takes {wanted}")
        mask = context_mask.bool() if self.mask_padding and context_mask is not None else None
        time = F.silu(self.time_embedding(t))
        x = self.patches(x_t)  # (B, width, H / p, W / p)
        height, width = x.shape[-2:]
        x = x.flatten(2).transpose(1, 2) + self.positions(self._positions(height, width, x))  # (B, N, width)
        for block in self.blocks:
            x = block(x, time, context, mask)
        shift, scale = self.modulation_out(time)[:, None].chunk(2, dim=-1)
        x = self.linear_out(self.norm_out(x) * (1 + scale) + shift)  # (B, N, p * p * C)
        x = F.pixel_shuffle(x.transpose(1, 2).unflatten(2, (height, width)), self.patch_size)  # (B, C, H, W)
        return x + self.seams(x)  # type: ignore[no-any-return]

    def _positions(self, height: int, width: int, like: Tensor) -> Tensor:
        """(N, width) sinusoids of each token's row and column, for any number of rows and columns."""
        rows, columns = (torch.arange(n, device=like.device) for n in (height, width))
        # Tokens are few: 16 wavelengths from a quarter of a turn a token on tell them apart.
        row = timestep_embedding(rows * 100, self.width // 2)[:, None].expand(height, width, -1)
        column = timestep_embedding(columns * 100, self.width // 2)[None].expand(height, width, -1)
        return torch.cat([row, column], dim=-1).flatten(0, 1).to(like.dtype)
