"""The seed's networks as a notebook writes them: its layers under its own keys, attention as softmax(q k^T) v.

Written from the seed's description, not fast and not slow: NCHW, eager, plain torch modules. `ldmkit convert` reads
their state dicts, which is how the tests check them.
"""

import math
from collections import OrderedDict

import torch
import torch.nn.functional as F  # noqa: N812 - the name that every torch user knows
from torch import Tensor, nn

TIME, TEXT = 256, 768
"""widths of the time embedding and of CLIP's states"""


def tokens_of(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H * W, C)."""
    return x.flatten(2).permute(0, 2, 1)


def image_of(tokens: Tensor, like: Tensor) -> Tensor:
    """The way back, to the shape of `like`."""
    return tokens.permute(0, 2, 1).reshape(like.shape)


def named(**modules: nn.Module) -> nn.Sequential:
    """One after the other, by name."""
    return nn.Sequential(OrderedDict(modules))


def up(channels: int) -> nn.Sequential:
    """Nearest x2 and a conv."""
    return nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(channels, channels, 3, padding=1))


def down(channels: int) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, 3, stride=2, padding=1)


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
            h = h + self.time_proj(F.silu(time))[:, :, None, None]
        return self.shortcut(x) + self.conv2(self.dropout(F.silu(self.norm2(h))))


class SelfAttention(nn.Module):
    """The VAE's: one head over all positions, with a norm and a residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(32, channels)
        self.to_q, self.to_k, self.to_v, self.to_out = (nn.Linear(channels, channels) for _ in range(4))
        self.scale = channels**-0.5

    def forward(self, x: Tensor) -> Tensor:
        tokens = tokens_of(self.norm(x))
        q, k, v = self.to_q(tokens), self.to_k(tokens), self.to_v(tokens)
        weights = torch.softmax(torch.bmm(q, k.transpose(1, 2)) * self.scale, dim=-1)
        return x + image_of(self.to_out(torch.bmm(weights, v)), x)


class MultiHeadAttention(nn.Module):
    """q, k, v without bias; keys and values from the context."""

    def __init__(self, channels: int, context_dim: int, heads: int = 8) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k, self.to_v = (nn.Linear(context_dim, channels, bias=False) for _ in range(2))
        self.to_out = nn.Linear(channels, channels)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = (
            part.view(b, -1, self.heads, c // self.heads).transpose(1, 2)  # (B, heads, L, C / heads)
            for part in (self.to_q(x), self.to_k(context), self.to_v(context))
        )
        weights = torch.softmax(q @ k.transpose(-2, -1) * (c // self.heads) ** -0.5, dim=-1)
        return self.to_out((weights @ v).transpose(1, 2).reshape(b, n, c))


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention, feed-forward, each with a norm and a residual."""

    def __init__(self, channels: int, context_dim: int) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.GroupNorm(32, channels) for _ in range(3))
        self.self_attn = MultiHeadAttention(channels, channels)
        self.cross_attn = MultiHeadAttention(channels, context_dim)
        wide = nn.Conv2d(channels, channels * 4, 1), nn.SiLU(), nn.Conv2d(channels * 4, channels, 1)
        self.ff = named(net=nn.Sequential(*wide))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        tokens = tokens_of(self.norm1(x))
        x = x + image_of(self.self_attn(tokens, tokens), x)
        x = x + image_of(self.cross_attn(tokens_of(self.norm2(x)), context), x)
        return x + self.ff(self.norm3(x))


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
        return self.net(torch.cat([angles.sin(), angles.cos()], dim=1))


class Level(nn.Module):
    """Two residual blocks, then attention where there is some; a change of size, which the U-Net calls."""

    def __init__(self, width_in: int, width: int, *, attends: bool, **size: nn.Module) -> None:
        super().__init__()
        self.res1, self.res2 = ResBlock(width_in, width, TIME), ResBlock(width, width, TIME)
        self.attn = TransformerBlock(width, TEXT) if attends else None
        for name, module in size.items():
            self.add_module(name, module)

    def forward(self, x: Tensor, time: Tensor, context: Tensor) -> Tensor:
        x = self.res2(self.res1(x, time), time)
        return x if self.attn is None else self.attn(x, context)


class TextUNet(nn.Module):
    """The seed's text U-Net, 14,586,052 parameters: (B, 4, 32, 32), t (B,), context (B, 77, 768) -> eps."""

    def __init__(self) -> None:
        super().__init__()
        self.time_embedding = TimeEmbedding(TIME)
        self.init_conv = nn.Conv2d(4, 64, 3, padding=1)
        for i, (width_in, width) in enumerate(((64, 64), (64, 128), (128, 128), (128, 256)), 1):
            self.add_module(f"down{i}", Level(width_in, width, attends=i > 2, down=down(width)))
        self.mid = Level(256, 256, attends=True)
        for i, (width_in, width) in enumerate(((256, 128), (128, 128), (128, 64), (64, 64)), 1):
            self.add_module(f"up{i}", Level(2 * width_in, width, attends=i < 3, up=up(width_in)))
        self.out = nn.Sequential(nn.GroupNorm(32, 64), nn.SiLU(), nn.Conv2d(64, 4, 3, padding=1))

    def forward(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        time = self.time_embedding(t)
        x = self.init_conv(x)
        skips = []
        for level in (self.down1, self.down2, self.down3, self.down4):
            skips.append(level(x, time, context))
            x = level.down(skips[-1])
        x = self.mid.res1(x, time)
        x = self.mid.res2(self.mid.attn(x, context), time)
        for level in (self.up1, self.up2, self.up3, self.up4):
            x = torch.cat([level.up(x), skips.pop()], dim=1)
            x = level(x, time, context)
        return self.out(x)


def bottle(channels: int) -> nn.Sequential:
    """Residual, attention, residual."""
    first, last = ResBlock(channels, channels), ResBlock(channels, channels)
    return named(res1=first, attn1=SelfAttention(channels), res2=last)


def vae_level(width_in: int, width: int, *, attends: bool, **size: nn.Module) -> nn.Sequential:
    """Two residual blocks, attention where there is some, a change of size."""
    attn = {"attn": SelfAttention(width)} if attends else {}
    return named(res1=ResBlock(width_in, width), res2=ResBlock(width, width), **attn, **size)


def encoder() -> nn.Sequential:
    """Pixels -> mean and log-variance, one under the other."""
    levels = [vae_level(width // 2, width, attends=width == 512, down=down(width)) for width in (128, 256, 512)]
    out = nn.Sequential(nn.GroupNorm(32, 512), nn.SiLU(), nn.Conv2d(512, 8, 1))
    return named(inp=nn.Conv2d(3, 64, 3, padding=1), down_block=nn.Sequential(*levels), bottle=bottle(512), out=out)


def decoder() -> nn.Sequential:
    """z -> pixels, unbounded."""
    levels = [vae_level(2 * width, width, attends=width == 256, up=up(width)) for width in (256, 128, 64)]
    out = nn.Sequential(nn.GroupNorm(32, 64), nn.SiLU(), nn.Conv2d(64, 3, 3, padding=1))
    return named(inp=nn.Conv2d(4, 512, 3, padding=1), bottle=bottle(512), up_block=nn.Sequential(*levels), out=out)


class VAE(nn.Module):
    """The seed's VAE, 41,275,339 parameters: (B, 3, H, W) -> reconstruction, mean, log-variance."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder(), decoder()

    @property
    def last_layer(self) -> Tensor:
        """Weight of the decoder's last convolution."""
        return self.decoder.out[-1].weight

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
        return self.model(pixels)
