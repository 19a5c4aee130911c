"""Autoencoders in the form of TAESD (Bohan 2023), read from their weights alone: the keys tell the layers."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ldmkit.errors import LdmkitError


class TinyBlock(nn.Module):
    """Three convolutions beside a shortcut, then ReLU; with `pool`, a bottleneck over all positions is added first."""

    def __init__(self, in_channels: int, out_channels: int, *, pool: int | None) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(out_channels, out_channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(out_channels, out_channels, 3, padding=1),
        )
        changes = in_channels != out_channels
        self.skip = nn.Conv2d(in_channels, out_channels, 1, bias=False) if changes else nn.Identity()
        self.pool = None
        if pool is not None:
            self.pool = nn.Sequential(
                nn.Conv2d(in_channels, pool, 1, bias=False),
                nn.GroupNorm(4, pool),
                nn.ReLU(),
                nn.Conv2d(pool, in_channels, 1, bias=False),
            )

    def forward(self, x: Tensor) -> Tensor:
        if self.pool is not None:
            x = x + self.pool(x)
        return torch.relu(self.conv(x) + self.skip(x))


class Clamp(nn.Module):
    """Latents softly to [-3, 3]."""

    def forward(self, z: Tensor) -> Tensor:
        return torch.tanh(z / 3) * 3


class TinyEncoder(nn.Module):
    """(B, 3, H, W) pixels in [-1, 1] -> moments (B, 2 * C, H / f, W / f) of a posterior without spread."""

    def __init__(self, layers: nn.Sequential) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, pixels: Tensor) -> Tensor:
        z = self.layers((pixels + 1) / 2)
        return torch.cat([z, torch.full_like(z, -30.0)], dim=1)


class TinyDecoder(nn.Module):
    """(B, C, h, w) z -> (B, 3, h * f, w * f) pixels, unbounded."""

    def __init__(self, layers: nn.Sequential) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(z) * 2 - 1  # type: ignore[no-any-return]


def tiny_layers(shapes: Mapping[str, tuple[int, ...]], *, decoder: bool) -> nn.Sequential:
    """The layers of a TAESD-form encoder or decoder whose state dict has these keys and shapes.

    A layer without weights is no key: in a decoder the first is the clamp, the third a ReLU and every other one an
    upsampling. A convolution without bias changes the resolution.

    Raises LdmkitError for keys of another form.
    """
    indices = {int(key.partition(".")[0]) for key in shapes if key.partition(".")[0].isdecimal()}
    if not indices or max(indices) > 999:
        raise LdmkitError("no autoencoder in TAESD's form: its keys are the layers' numbers, such as 1.conv.0.weight")
    layers: list[nn.Module] = []
    for i in range(max(indices) + 1):
        if f"{i}.conv.0.weight" in shapes:
            out_channels, in_channels = shapes[f"{i}.conv.0.weight"][:2]
            pool = shapes.get(f"{i}.pool.0.weight")
            layers.append(TinyBlock(in_channels, out_channels, pool=pool[0] if pool else None))
        elif len(shapes.get(f"{i}.weight", ())) == 4:
            out_channels, in_channels = shapes[f"{i}.weight"][:2]
            bias = f"{i}.bias" in shapes
            stride = 1 if bias or decoder else 2
            layers.append(nn.Conv2d(in_channels, out_channels, 3, padding=1, stride=stride, bias=bias))
        elif decoder and i not in indices:
            layers.append(Clamp() if i == 0 else nn.ReLU() if i == 2 else nn.Upsample(scale_factor=2))
        else:
            raise LdmkitError(f"no autoencoder in TAESD's form: layer {i} is neither a block nor a convolution")
    made = nn.Sequential(*layers)
    expected = {name: tuple(tensor.shape) for name, tensor in made.state_dict().items()}
    if expected != dict(shapes):
        other = sorted(name for name in expected.keys() | shapes.keys() if expected.get(name) != shapes.get(name))
        raise LdmkitError(f"no autoencoder in TAESD's form: {', '.join(other[:3])} ({len(other)} in all) do not fit")
    return made


def shrinks_by(layers: nn.Sequential) -> int:
    """f, by how much an encoder's layers shrink a picture."""
    return 2 ** sum(isinstance(layer, nn.Conv2d) and layer.stride == (2, 2) for layer in layers)
