"""The seed's networks as a notebook writes them: its layers under its own keys, attention as softmax(q k^T) v.

Written from the seed's description, not fast and not slow: NCHW, eager, plain torch modules. `ldmkit convert` reads
their state dicts, which is how the tests check them.
"""

import math
from collections.abc import Iterable
from typing import cast

import torch
import torch.nn.functional as F  # noqa: N812 - the name that every torch user knows
from torch import Tensor, nn


class ResBlock(nn.Module):
    """Norm, SiLU, conv, (+ time), norm, SiLU, dropout 0, conv; 1x1 shortcut where channels change."""

    def __init__(self, in_channels: int, out_channels: int, time_dim: int | None = None) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(32, in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_proj = nn.Linear(time_dim, out_channels) if time_dim else None
        self.norm2 = nn.GroupNorm(32, out_channels)
        self.dropout = nn.Dropout(0.0)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        if self.time_proj is not None:
            assert time is not None
            h = h + self.time_proj(F.silu(time))[:, :, None, None]
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return self.shortcut(x) + h  # type: ignore[no-any-return] # a module's call is Any


class SelfAttention(nn.Module):
    """The VAE's: one head over all positions, with a norm and a residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(32, channels)
        self.to_q, self.to_k, self.to_v, self.to_out = (nn.Linear(channels, channels) for _ in range(4))
        self.scale = channels**-0.5

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        tokens = self.norm(x).view(b, c, h * w).permute(0, 2, 1)
        q, k, v = self.to_q(tokens), self.to_k(tokens), self.to_v(tokens)
        weights = torch.softmax(torch.bmm(q, k.transpose(1, 2)) * self.scale, dim=-1)
        out = self.to_out(torch.bmm(weights, v))
        return x + out.permute(0, 2, 1).reshape(b, c, h, w)  # type: ignore[no-any-return] # a module's call is Any


class MultiHeadAttention(nn.Module):
    """q, k, v without bias; keys and values from the context."""

    def __init__(self, channels: int, context_dim: int, heads: int = 8) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(context_dim, channels, bias=False)
        self.to_v = nn.Linear(context_dim, channels, bias=False)
        self.to_out = nn.Linear(channels, channels)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = (
            part.view(b, -1, self.heads, c // self.heads).transpose(1, 2)
            for part in (self.to_q(x), self.to_k(context), self.to_v(context))
        )
        weights = torch.softmax(q @ k.transpose(-2, -1) * (c // self.heads) ** -0.5, dim=-1)
        return self.to_out((weights @ v).transpose(1, 2).reshape(b, n, c))  # type: ignore[no-any-return] # a module's call is Any


class FeedForward(nn.Module):
    """1x1 conv to four times the channels, SiLU, and back."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(channels, channels * 4, 1), nn.SiLU(), nn.Conv2d(channels * 4, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)  # type: ignore[no-any-return] # a module's call is Any


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention, feed-forward, each with a norm and a residual."""

    def __init__(self, channels: int, context_dim: int) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.GroupNorm(32, channels) for _ in range(3))
        self.self_attn = MultiHeadAttention(channels, channels)
        self.cross_attn = MultiHeadAttention(channels, context_dim)
        self.ff = FeedForward(channels)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        b, c, h, w = x.shape
        tokens = self.norm1(x).view(b, c, h * w).permute(0, 2, 1)
        x = x + self.self_attn(tokens, tokens).permute(0, 2, 1).reshape(b, c, h, w)
        tokens = self.norm2(x).view(b, c, h * w).permute(0, 2, 1)
        x = x + self.cross_attn(tokens, context).permute(0, 2, 1).reshape(b, c, h, w)
        return x + self.ff(self.norm3(x))  # type: ignore[no-any-return] # a module's call is Any


class TimeEmbedding(nn.Module):
    """[sin, cos] of t / 10000^(2i/256), then Linear, SiLU, Linear."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.net = nn.Sequential(nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, t: Tensor) -> Tensor:
        half = self.dim // 2
        frequencies = torch.exp(-math.log(10000) * torch.arange(half, device=t.device) / half)
        angles = t[:, None].float() * frequencies
        return self.net(torch.cat([angles.sin(), angles.cos()], dim=1))  # type: ignore[no-any-return] # a module's call is Any


def up(channels: int) -> nn.Sequential:
    """Nearest x2 and a conv."""
    return nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(channels, channels, 3, padding=1))


class Part(nn.Module):
    """Two residual blocks, attention where there is some, and a change of size, all optional but the first."""

    down: nn.Module
    up: nn.Module

    def __init__(self, first: ResBlock, second: ResBlock, attn: nn.Module | None, **size: nn.Module) -> None:
        super().__init__()
        self.res1, self.res2, self.attn = first, second, attn
        for name, module in size.items():
            self.add_module(name, module)


class TextUNet(nn.Module):
    """The seed's text U-Net, 14,586,052 parameters: (B, 4, 32, 32), t (B,), context (B, 77, 768) -> eps."""

    def __init__(self) -> None:
        super().__init__()
        time, text = 256, 768
        self.time_embedding = TimeEmbedding(time)
        self.init_conv = nn.Conv2d(4, 64, 3, padding=1)

        def down(width_in: int, width: int, attends: bool) -> Part:
            attn = TransformerBlock(width, text) if attends else None
            blocks = ResBlock(width_in, width, time), ResBlock(width, width, time)
            return Part(*blocks, attn, down=nn.Conv2d(width, width, 3, stride=2, padding=1))

        def rise(width_in: int, width: int, attends: bool) -> Part:
            attn = TransformerBlock(width, text) if attends else None
            blocks = ResBlock(2 * width_in, width, time), ResBlock(width, width, time)
            return Part(*blocks, attn, up=up(width_in))

        self.down1, self.down2 = down(64, 64, False), down(64, 128, False)
        self.down3, self.down4 = down(128, 128, True), down(128, 256, True)
        self.mid = Part(ResBlock(256, 256, time), ResBlock(256, 256, time), TransformerBlock(256, text))
        self.up1, self.up2 = rise(256, 128, True), rise(128, 128, True)
        self.up3, self.up4 = rise(128, 64, False), rise(64, 64, False)
        self.out = nn.Sequential(nn.GroupNorm(32, 64), nn.SiLU(), nn.Conv2d(64, 4, 3, padding=1))

    def forward(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        time = self.time_embedding(t)
        x = self.init_conv(x)
        skips = []
        for part in (self.down1, self.down2, self.down3, self.down4):
            x = part.res2(part.res1(x, time), time)
            if part.attn is not None:
                x = part.attn(x, context)
            skips.append(x)
            x = part.down(x)
        x = self.mid.res1(x, time)
        assert self.mid.attn is not None
        x = self.mid.res2(self.mid.attn(x, context), time)
        for part in (self.up1, self.up2, self.up3, self.up4):
            x = torch.cat([part.up(x), skips.pop()], dim=1)
            x = part.res2(part.res1(x, time), time)
            if part.attn is not None:
                x = part.attn(x, context)
        return self.out(x)  # type: ignore[no-any-return] # a module's call is Any


class Bottle(nn.Module):
    """Residual, attention, residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.res1, self.res2 = ResBlock(channels, channels), ResBlock(channels, channels)
        self.attn1 = SelfAttention(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.res2(self.attn1(self.res1(x)))  # type: ignore[no-any-return] # a module's call is Any


class Encoder(nn.Module):
    """Pixels -> mean and log-variance, one under the other."""

    def __init__(self) -> None:
        super().__init__()
        self.inp = nn.Conv2d(3, 64, 3, padding=1)
        self.down_block = nn.ModuleList(
            Part(
                ResBlock(width // 2, width),
                ResBlock(width, width),
                SelfAttention(width) if width == 512 else None,
                down=nn.Conv2d(width, width, 3, stride=2, padding=1),
            )
            for width in (128, 256, 512)
        )
        self.bottle = Bottle(512)
        self.out = nn.Sequential(nn.GroupNorm(32, 512), nn.SiLU(), nn.Conv2d(512, 8, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.inp(x)
        for part in cast(Iterable[Part], self.down_block):
            x = part.res2(part.res1(x))
            if part.attn is not None:
                x = part.attn(x)
            x = part.down(x)
        return self.out(self.bottle(x))  # type: ignore[no-any-return] # a module's call is Any


class Decoder(nn.Module):
    """z -> pixels, unbounded."""

    def __init__(self) -> None:
        super().__init__()
        self.inp = nn.Conv2d(4, 512, 3, padding=1)
        self.bottle = Bottle(512)
        self.up_block = nn.ModuleList(
            Part(
                ResBlock(2 * width, width),
                ResBlock(width, width),
                SelfAttention(width) if width == 256 else None,
                up=up(width),
            )
            for width in (256, 128, 64)
        )
        self.out = nn.Sequential(nn.GroupNorm(32, 64), nn.SiLU(), nn.Conv2d(64, 3, 3, padding=1))

    def forward(self, z: Tensor) -> Tensor:
        x = self.bottle(self.inp(z))
        for part in cast(Iterable[Part], self.up_block):
            x = part.res2(part.res1(x))
            if part.attn is not None:
                x = part.attn(x)
            x = part.up(x)
        return self.out(x)  # type: ignore[no-any-return] # a module's call is Any


class VAE(nn.Module):
    """The seed's VAE, 41,275,339 parameters: (B, 3, H, W) -> reconstruction, mean, log-variance."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = Encoder(), Decoder()

    @property
    def last_layer(self) -> Tensor:
        """Weight of the decoder's last convolution."""
        return self.decoder.out[-1].weight  # type: ignore[return-value] # a Sequential's items are any Module

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, logvar = torch.chunk(self.encoder(pixels), 2, dim=1)
        logvar = torch.clamp(logvar, -30, 20)
        z = mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)
        return self.decoder(z), mean, logvar


class PatchGAN(nn.Module):
    """The seed's discriminator, 1,557,377 parameters: pixels -> logits, one a patch."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, stride=2, padding=1), nn.SiLU()]
        for width in (64, 128, 256):
            conv = nn.Conv2d(width, width * 2, 3, stride=2, padding=1)
            layers += [conv, nn.GroupNorm(32, width * 2), nn.SiLU()]
        self.model = nn.Sequential(*layers, nn.Conv2d(512, 1, 3, padding=1))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model(pixels)  # type: ignore[no-any-return] # a module's call is Any
