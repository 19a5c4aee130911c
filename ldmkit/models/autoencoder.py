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
    counts levels from 1; the decoder mirrors it. With `linear_shortcut` both only add to a linear map of patches of
    f x f pixels: see `Shortcut`. Raises LdmkitError for widths that do not fit.
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
        linear_shortcut: bool = False,
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
        if linear_shortcut:  # to which, as each block to its own, the network adds nothing at first
            for network, width in ((self.encoder, latent_channels), (self.decoder, 3 * patch_size**2)):
                last = network.get_submodule("conv_out")
                nn.init.zeros_(last.get_parameter("weight"))
                nn.init.zeros_(last.get_parameter("bias")[:width])  # not of the log-variances
            encode, decode = _block_transform(self.downsample, latent_channels)
            self.encoder, self.decoder = Shortcut(encode, self.encoder), Shortcut(decode, self.decoder)


def _chain(**parts: nn.Module) -> nn.Sequential:
    """The parts one after another, under their names."""
    return nn.Sequential(OrderedDict(parts))


class Shortcut(nn.Module):
    """A network beside a linear map from its input to its output, whose sum it gives.

    As the residual autoencoding of Chen et al. 2024 (DC-AE), but learned, and over the whole network: a group
    normalisation otherwise takes brightness and contrast away, which the layers behind it must learn to tell again.
    """

    def __init__(self, linear: nn.Module, network: nn.Module) -> None:
        super().__init__()
        self.linear = linear
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + self.network(x)  # type: ignore[no-any-return]


def _block_transform(side: int, latent_channels: int) -> tuple[nn.Sequential, nn.Sequential]:
    """Linear maps from patches to latents and back: at first the components in which patches vary most, at std 1."""
    basis, std = largest_components(side, latent_channels)
    into, back = nn.Conv2d(3 * side**2, 2 * latent_channels, 1, bias=False), nn.Conv2d(latent_channels, 3 * side**2, 1)
    with torch.no_grad():
        for parameter in (*into.parameters(), *back.parameters()):
            parameter.zero_()
        into.weight[: len(basis), :, 0, 0] = basis / std[:, None]
        back.weight[:, : len(basis), 0, 0] = (basis * std[:, None]).T
    return _chain(fold=nn.PixelUnshuffle(side), conv=into), _chain(conv=back, unfold=nn.PixelShuffle(side))


def largest_components(side: int, count: int) -> tuple[Tensor, Tensor]:
    """The directions in which patches of photographs vary most, (K, 3 * side ** 2), and each one's std in [-1, 1].

    K = min(count, 3 * side ** 2). Pixels are laid out as a pixel unshuffle does. Products of the DCT of rows and
    columns (Ahmed et al. 1974), which is nearly the principal components of a first-order Markov process, with
    luminance and two colour differences, whose shares are roughly those of photographs.
    """
    k, n = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    dct = torch.cos(torch.pi * (n + 0.5) * k / side) * (2 / side) ** 0.5
    dct[0] /= 2**0.5
    along = torch.diagonal(dct @ 0.95 ** (k - n).abs().float() @ dct.T)
    colors = torch.tensor([[1.0, 1, 1], [1, 0, -1], [1, -2, 1]])
    colors /= colors.norm(dim=1, keepdim=True)
    variance = torch.einsum("c,u,v->cuv", 0.75 * torch.tensor([0.92, 0.06, 0.02]), along, along).flatten()
    basis = torch.einsum("cr,uy,vx->cuvryx", colors, dct, dct).reshape(3 * side**2, 3 * side**2)
    order = variance.argsort(descending=True, stable=True)[:count]
    return basis[order], variance[order].sqrt()


def _moments(width: int, latent_channels: int) -> nn.Conv2d:
    """The encoder's last convolution. A std of 0.05 to begin with: at 1 the noise drowns the mean while it is small."""
    conv = nn.Conv2d(width, 2 * latent_channels, 1)
    with torch.no_grad():
        assert conv.bias is not None
        conv.weight[latent_channels:] *= 0.1
        conv.bias[latent_channels:] = -6.0
    return conv
