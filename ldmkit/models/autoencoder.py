"""A KL-regularised autoencoder, Rombach et al. 2021, app. G."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
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


class Autoencoder(nn.Module):
    """Pixels <-> z, by networks of any kind."""

    encoder: nn.Module
    """(B, 3, H, W) pixels in [-1, 1] -> moments (B, 2 * latent_channels, H / f, W / f)"""
    decoder: nn.Module
    """(B, latent_channels, h, w) z -> (B, 3, h * f, w * f) pixels, unbounded"""
    latent_channels: int
    downsample: int
    """the factor f"""

    @property
    def last_layer(self) -> nn.Parameter:
        """The decoder's last weight, at which losses are balanced."""
        return [parameter for parameter in self.decoder.parameters() if parameter.ndim > 1][-1]

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


class AutoencoderKL(Autoencoder):
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

        def residual(width_in: int, width_out: int) -> ResidualBlock:
            return ResidualBlock(width_in, width_out, norm_groups=norm_groups, dropout=dropout)

        def attention(width: int) -> AttentionBlock:
            return AttentionBlock(width, norm_groups=norm_groups)

        def level(number: int, width_in: int, width_out: int, resample: nn.Module) -> nn.Sequential:
            widths = [width_in] + [width_out] * num_res_blocks
            return _chain(
                residuals=nn.Sequential(*(residual(a, b) for a, b in pairwise(widths))),
                attention=attention(width_out) if number in attention_levels else nn.Identity(),
                resample=resample,
            )

        def middle() -> nn.Sequential:
            width = channels[-1]
            return _chain(
                residual1=residual(width, width), attention=attention(width), residual2=residual(width, width)
            )

        levels = range(1, len(channels))
        self.encoder = _chain(
            fold=nn.PixelUnshuffle(patch_size),
            stem=nn.Conv2d(3 * patch_size**2, channels[0], 3, padding=1),
            levels=nn.Sequential(
                *(
                    level(i, channels[i - 1], channels[i], nn.Conv2d(channels[i], channels[i], 3, stride=2, padding=1))
                    for i in levels
                )
            ),
            middle=middle(),
            norm_out=nn.GroupNorm(norm_groups, channels[-1]),
            activation=nn.SiLU(),
            conv_out=_moments(channels[-1], latent_channels),
        )
        # The encoder's levels walked backwards: each starts at that level's width and ends at the one above.
        self.decoder = _chain(
            stem=nn.Conv2d(latent_channels, channels[-1], 3, padding=1),
            middle=middle(),
            levels=nn.Sequential(
                *(level(i, channels[i], channels[i - 1], Upsample(channels[i - 1])) for i in reversed(levels))
            ),
            norm_out=nn.GroupNorm(norm_groups, channels[0]),
            activation=nn.SiLU(),
            conv_out=nn.Conv2d(channels[0], 3 * patch_size**2, 3, padding=1),
            unfold=nn.PixelShuffle(patch_size),
        )
        # Each residual block starts as its shortcut, which converges faster (Zhang et al. 2019).
        for module in self.modules():
            if isinstance(module, ResidualBlock):
                nn.init.zeros_(module.conv2.weight)


def _chain(**parts: nn.Module) -> nn.Sequential:
    """The parts one after another, under their names."""
    return nn.Sequential(OrderedDict(parts))


def _moments(width: int, latent_channels: int) -> nn.Conv2d:
    """The encoder's last convolution. A std of 0.05 to begin with: at 1 the noise drowns the mean while it is small."""
    conv = nn.Conv2d(width, 2 * latent_channels, 1)
    with torch.no_grad():
        assert conv.bias is not None
        conv.weight[latent_channels:] *= 0.1
        conv.bias[latent_channels:] = -6.0
    return conv
