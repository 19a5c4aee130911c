"""Building blocks that the autoencoder and the U-Net share. Features are (B, C, H, W) throughout."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812 - the name that every torch user knows
from torch import Tensor, nn

from ldmkit.errors import LdmkitError


def timestep_embedding(t: Tensor, dim: int) -> Tensor:
    """Sinusoidal embedding, Vaswani et al. 2017, sec. 3.5, laid out [sin, cos] instead of interleaved.

    t (B,) may be fractional; returns (B, dim): sin and cos of t / 10000^(2i/dim) for i < dim/2.
    Computed in float32 at least: half precision cannot tell t = 999 from t = 999.3.
    """
    if t.dtype != torch.float64:
        t = t.float()
    half = dim // 2
    exponents = torch.arange(half, dtype=t.dtype, device=t.device) / half
    angles = t[:, None] * 10000.0**-exponents  # (B, dim/2)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


class TimeEmbedding(nn.Module):
    """Sinusoids of the timestep, then Linear, SiLU, Linear: t (B,) -> (B, dim)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.linear1 = nn.Linear(dim, dim)
        self.linear2 = nn.Linear(dim, dim)

    def forward(self, t: Tensor) -> Tensor:
        h: Tensor = self.linear1(timestep_embedding(t, self.dim).to(self.linear1.weight.dtype))
        return self.linear2(F.silu(h))  # type: ignore[no-any-return]


class ResidualBlock(nn.Module):
    """Pre-activation residual block, He et al. 2016, with GroupNorm and SiLU, as in DDPM (Ho et al. 2020).

    With `time_dim` a projection of `time` (B, time_dim), the activated time embedding, is added after the first
    convolution. (B, in_channels, H, W) -> (B, out_channels, H, W).
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, norm_groups: int, dropout: float, time_dim: int | None = None
    ) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(norm_groups, in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_proj = None if time_dim is None else nn.Linear(time_dim, out_channels)
        self.norm2 = nn.GroupNorm(norm_groups, out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.shortcut = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        h: Tensor = self.conv1(F.silu(self.norm1(x)))
        if self.time_proj is not None:
            assert time is not None, "this block was built with time_dim"
            h = h + self.time_proj(time)[:, :, None, None]
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return self.shortcut(x) + h  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Scaled dot-product attention, Vaswani et al. 2017, sec. 3.2, with an output projection.

    x (B, N, channels) attends to `context` (B, L, context_dim), or to itself. `mask` (B, L) bool, True = attend to
    it; a row that is all False attends to nothing and gets zeros (before the output projection's bias).
    With `qk_norm` each head's queries and keys are RMS-normalised, so that no logit can grow without bound
    (Esser et al. 2024, sec. 4.3).
    """

    def __init__(
        self,
        channels: int,
        *,
        num_heads: int = 1,
        context_dim: int | None = None,
        qkv_bias: bool = True,
        qk_norm: bool = False,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.to_q = nn.Linear(channels, channels, bias=qkv_bias)
        self.to_k = nn.Linear(context_dim or channels, channels, bias=qkv_bias)
        self.to_v = nn.Linear(context_dim or channels, channels, bias=qkv_bias)
        self.to_out = nn.Linear(channels, channels)
        self.qk_norm = qk_norm
        if qk_norm:
            self.norm_q, self.norm_k = (nn.RMSNorm(channels // num_heads, eps=1e-6) for _ in range(2))

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        context = x if context is None else context
        q, k, v = (
            h.unflatten(-1, (self.num_heads, -1))  # (B, N or L, heads, channels / heads)
            for h in (self.to_q(x), self.to_k(context), self.to_v(context))
        )
        if self.qk_norm:
            # In the weights' own precision, whatever autocast computes in. Before heads and tokens change places: torch
            # 2.14 compiles the gradient of the norm of transposed keys to nan at 256 tokens (CPU, 16 bits).
            q, k = (norm(h.to(norm.weight.dtype)).to(v.dtype) for norm, h in ((self.norm_q, q), (self.norm_k, k)))
        q, k, v = (h.transpose(1, 2) for h in (q, k, v))
        attend = _products_attention if _products_are_faster(q, k) else F.scaled_dot_product_attention
        if mask is None:
            h = attend(q, k, v)
        else:
            mask = mask[:, None, None, :]  # (B, 1, 1, L)
            has_token = mask.any(dim=-1, keepdim=True)
            # A softmax over nothing is zeros in torch but not in an exported graph: such a row attends to everything
            # first and is then set to zero, which is the same everywhere.
            h = attend(q, k, v, attn_mask=mask | ~has_token) * has_token.to(v.dtype)
        return self.to_out(h.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class AttentionBlock(nn.Module):
    """GroupNorm, single-head self-attention over all positions, residual. It takes no context."""

    def __init__(self, channels: int, *, norm_groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(norm_groups, channels)
        self.attention = Attention(channels)

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        return x + _to_map(self.attention(_to_tokens(self.norm(x))), x)


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention to the context, feed-forward, each after a GroupNorm and with a residual.

    x (B, channels, H, W), context (B, L, context_dim), mask (B, L) bool or None.
    """

    def __init__(self, channels: int, *, context_dim: int, num_heads: int, norm_groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(norm_groups, channels)
        self.self_attention = Attention(channels, num_heads=num_heads, qkv_bias=False)
        self.norm2 = nn.GroupNorm(norm_groups, channels)
        self.cross_attention = Attention(channels, num_heads=num_heads, context_dim=context_dim, qkv_bias=False)
        self.norm3 = nn.GroupNorm(norm_groups, channels)
        self.conv1 = nn.Conv2d(channels, 4 * channels, 1)
        self.conv2 = nn.Conv2d(4 * channels, channels, 1)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        x = x + _to_map(self.self_attention(_to_tokens(self.norm1(x))), x)
        x = x + _to_map(self.cross_attention(_to_tokens(self.norm2(x)), context, mask), x)
        return x + self.conv2(F.silu(self.conv1(self.norm3(x))))  # type: ignore[no-any-return]


class Upsample(nn.Module):
    """Nearest neighbour x2, then a convolution: no checkerboard (Odena et al. 2016)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))  # type: ignore[no-any-return]


def check_levels(network: str, channels: Sequence[int], attention_levels: Sequence[int], norm_groups: int) -> None:
    """LdmkitError for widths that the network cannot be built from."""
    if len(channels) < 2:
        raise LdmkitError(f"{network}: channels = {list(channels)} needs at least two entries: the stem and one level")
    for width in channels:
        if width <= 0 or width % norm_groups:
            raise LdmkitError(
                f"{network}: channels = {list(channels)} must be positive multiples of norm_groups = {norm_groups}"
            )
    for level in attention_levels:
        if not 1 <= level < len(channels):
            raise LdmkitError(
                f"{network}: attention_levels = {list(attention_levels)} must lie between 1 and {len(channels) - 1}, "
                "the number of levels that channels gives"
            )


def check_size(network: str, x: Tensor, downsample: int) -> None:
    """LdmkitError where height or width is not a multiple of `downsample`."""
    height, width = x.shape[-2:]
    if height % downsample or width % downsample:
        raise LdmkitError(
            f"{network}: a {height}x{width} input does not fit; height and width must be multiples of {downsample}"
        )


def _products_are_faster(q: Tensor, k: Tensor) -> bool:
    """Whether `_products_attention` beats torch's fused kernel on q (..., N, d) and k (..., L, d).

    Measured with torch 2.14: on a CPU in 16 bits the fused kernel's backward pass takes 8 times as long at N = L = 16,
    twice at 256, and as long at 1024, where all the products would need much memory.
    """
    needs_gradient = torch.is_grad_enabled() and q.requires_grad
    return needs_gradient and q.device.type == "cpu" and q.element_size() == 2 and q.shape[-2] * k.shape[-2] <= 512**2


def _products_attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    """As torch's scaled_dot_product_attention with a mask of bool, in plain products."""
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if attn_mask is not None:
        logits = logits.masked_fill(~attn_mask, -math.inf)
    h: Tensor = logits.softmax(-1) @ v
    return h


def _to_tokens(x: Tensor) -> Tensor:
    # Contiguous here and not in each of q, k and v; where x is channels_last it is so already.
    return x.flatten(2).transpose(1, 2).contiguous()  # (B, H * W, C)


def _to_map(tokens: Tensor, like: Tensor) -> Tensor:
    return tokens.transpose(1, 2).reshape(like.shape)  # (B, C, H, W)
