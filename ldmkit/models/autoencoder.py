"""A KL-regularised autoencoder, Rombach et al. 2021, app. G."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - the name that every torch user knows
from torch import Tensor, nn

from ldmkit.models.blocks import AttentionBlock, ResidualBlock, Upsample, check_levels, check_size


@dataclass(frozen=True)
class Posterior:
    """The diagonal Gaussian that the encoder gives: mean and log-variance, each (B, C, h, w)."""

    mean: Tensor
    logvar: Tensor

    @property
    def std(self) -> Tensor:
        return torch.exp(0.5 * self.logvar)

    def sample(self, noise: Tensor) -> Tensor:
        """z = mean + std * noise; `noise` is unit Gaussian, shaped like the mean."""
        return self.mean + self.std * noise


class Middle(nn.Module):
    """Residual, attention, residual at the lowest resolution."""

    def __init__(self, channels: int, *, norm_groups: int, dropout: float) -> None:
        super().__init__()
        self.residual1 = ResidualBlock(channels, channels, norm_groups=norm_groups, dropout=dropout)
        self.attention = AttentionBlock(channels, norm_groups=norm_groups)
        self.residual2 = ResidualBlock(channels, channels, norm_groups=norm_groups, dropout=dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.residual2(self.attention(self.residual1(x)))  # type: ignore[no-any-return]


class Level(nn.Module):
    """Residual blocks, attention where asked for, then a change of resolution. Serves both directions."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        num_res_blocks: int,
        attention: bool,
        resample: nn.Module,
        norm_groups: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.residuals = nn.ModuleList(
            ResidualBlock(
                in_channels if i == 0 else out_channels, out_channels, norm_groups=norm_groups, dropout=dropout
            )
            for i in range(num_res_blocks)
        )
        self.attention = AttentionBlock(out_channels, norm_groups=norm_groups) if attention else nn.Identity()
        self.resample = resample

    def forward(self, x: Tensor) -> Tensor:
        for residual in self.residuals:
            x = residual(x)
        return self.resample(self.attention(x))  # type: ignore[no-any-return]


class Encoder(nn.Module):
    """(B, 3, H, W) pixels in [-1, 1] -> moments (B, 2 * latent_channels, H / f, W / f)."""

    def __init__(
        self,
        channels: Sequence[int],
        *,
        latent_channels: int,
        num_res_blocks: int,
        attention_levels: Sequence[int],
        norm_groups: int,
        dropout: float,
        patch_size: int,
    ) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.stem = nn.Conv2d(3 * patch_size**2, channels[0], 3, padding=1)
        self.levels = nn.ModuleList(
            Level(
                channels[level - 1],
                channels[level],
                num_res_blocks=num_res_blocks,
                attention=level in attention_levels,
                resample=nn.Conv2d(channels[level], channels[level], 3, stride=2, padding=1),
                norm_groups=norm_groups,
                dropout=dropout,
            )
            for level in range(1, len(channels))
        )
        self.middle = Middle(channels[-1], norm_groups=norm_groups, dropout=dropout)
        self.norm_out = nn.GroupNorm(norm_groups, channels[-1])
        self.conv_out = nn.Conv2d(channels[-1], 2 * latent_channels, 1)
        # A std of 0.05 to begin with: at 1 the noise drowns the mean for as long as it is small.
        with torch.no_grad():
            assert self.conv_out.bias is not None
            self.conv_out.weight[latent_channels:] *= 0.1
            self.conv_out.bias[latent_channels:] = -6.0

    def forward(self, pixels: Tensor) -> Tensor:
        h = self.stem(F.pixel_unshuffle(pixels, self.patch_size))
        for level in self.levels:
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(self.middle(h))))  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """(B, latent_channels, h, w) z -> (B, 3, h * f, w * f) pixels, unbounded."""

    def __init__(
        self,
        channels: Sequence[int],
        *,
        latent_channels: int,
        num_res_blocks: int,
        attention_levels: Sequence[int],
        norm_groups: int,
        dropout: float,
        patch_size: int,
    ) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.stem = nn.Conv2d(latent_channels, channels[-1], 3, padding=1)
        self.middle = Middle(channels[-1], norm_groups=norm_groups, dropout=dropout)
        # The encoder's levels, walked backwards: each starts at that level's width and ends at the one above.
        self.levels = nn.ModuleList(
            Level(
                channels[level],
                channels[level - 1],
                num_res_blocks=num_res_blocks,
                attention=level in attention_levels,
                resample=Upsample(channels[level - 1]),
                norm_groups=norm_groups,
                dropout=dropout,
            )
            for level in range(len(channels) - 1, 0, -1)
        )
        self.norm_out = nn.GroupNorm(norm_groups, channels[0])
        self.conv_out = nn.Conv2d(channels[0], 3 * patch_size**2, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.middle(self.stem(z))
        for level in self.levels:
            h = level(h)
        return F.pixel_shuffle(self.conv_out(F.silu(self.norm_out(h))), self.patch_size)


class AutoencoderKL(nn.Module):
    """Pixels <-> z, Rombach et al. 2021.

    channels[0] is the width of the stem; each further entry is one level, which halves the resolution. The stem sees
    patches of `patch_size` pixels folded into channels (pixel unshuffle, Shi et al. 2016), which saves the costly work
    at full resolution. The factor f is patch_size * 2 ** (len(channels) - 1), found as `downsample`. `attention_levels`
    counts levels from 1; the decoder mirrors it. Raises LdmkitError for widths that do not fit.
    """

    def __init__(
        self,
        channels: Sequence[int],
        latent_channels: int = 4,
        num_res_blocks: int = 2,
        attention_levels: Sequence[int] = (),
        norm_groups: int = 32,
        dropout: float = 0.0,
        patch_size: int = 1,
    ) -> None:
        super().__init__()
        check_levels("vae", channels, attention_levels, norm_groups)
        self.latent_channels = latent_channels
        self.downsample = patch_size * 2 ** (len(channels) - 1)
        self.encoder = Encoder(
            channels,
            latent_channels=latent_channels,
            num_res_blocks=num_res_blocks,
            attention_levels=attention_levels,
            norm_groups=norm_groups,
            dropout=dropout,
            patch_size=patch_size,
        )
        self.decoder = Decoder(
            channels,
            latent_channels=latent_channels,
            num_res_blocks=num_res_blocks,
            attention_levels=attention_levels,
            norm_groups=norm_groups,
            dropout=dropout,
            patch_size=patch_size,
        )
        # Each residual block starts as its shortcut, which converges faster (Zhang et al. 2019).
        for module in self.modules():
            if isinstance(module, ResidualBlock):
                nn.init.zeros_(module.conv2.weight)

    def encode(self, pixels: Tensor) -> Posterior:
        """(B, 3, H, W) pixels in [-1, 1] -> the posterior of z (B, latent_channels, H / f, W / f).

        Raises LdmkitError where H or W is not a multiple of f.
        """
        check_size("vae", pixels, self.downsample)
        mean, logvar = self.encoder(pixels).chunk(2, dim=1)
        return Posterior(mean=mean, logvar=logvar.clamp(-30.0, 20.0))

    def decode(self, z: Tensor) -> Tensor:
        """z (B, latent_channels, h, w) -> pixels (B, 3, h * f, w * f), not clamped to [-1, 1]."""
        return self.decoder(z)  # type: ignore[no-any-return]

    def forward(self, pixels: Tensor, noise: Tensor) -> tuple[Tensor, Posterior]:
        """Decodes a draw of the posterior; `noise` (B, latent_channels, H / f, W / f) is unit Gaussian."""
        posterior = self.encode(pixels)
        return self.decode(posterior.sample(noise)), posterior
