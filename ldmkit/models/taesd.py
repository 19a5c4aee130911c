"""The tiny autoencoders of Ollin Boer Bohan's TAESD (github.com/madebyollin/taesd, MIT), built from their weights.

Their files are state dicts of two plain stacks of layers, whose keys are the layers' numbers. What a layer is follows
from its tensors; layers without any stand where a number is missing.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from ldmkit.errors import LdmkitError

Shapes = Mapping[str, Sequence[int]]


class Block(nn.Module):
    """Three convolutions beside a shortcut; with `pool_width`, what global statistics say is added to the input."""

    def __init__(self, width_in: int, width_out: int, pool_width: int | None) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(width_in, width_out, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width_out, width_out, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width_out, width_out, 3, padding=1),
        )
        self.skip = nn.Conv2d(width_in, width_out, 1, bias=False) if width_in != width_out else nn.Identity()
        self.pool = None
        if pool_width is not None:
            self.pool = nn.Sequential(
                nn.Conv2d(width_in, pool_width, 1, bias=False),
                nn.GroupNorm(4, pool_width),
                nn.ReLU(),
                nn.Conv2d(pool_width, width_in, 1, bias=False),
            )

    def forward(self, x: Tensor) -> Tensor:
        if self.pool is not None:
            x = x + self.pool(x)
        return torch.relu(self.conv(x) + self.skip(x))


class _Clamp(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / 3) * 3


class Encoder(nn.Sequential):
    """(B, 3, H, W) pixels in [-1, 1] -> z (B, C, H / f, W / f). Raises LdmkitError for weights of another kind."""

    def __init__(self, shapes: Shapes) -> None:
        super().__init__(*_layers(shapes, decoder=False))

    def forward(self, pixels: Tensor) -> Tensor:
        return super().forward((pixels + 1) / 2)  # type: ignore[no-any-return,no-untyped-call]


class Decoder(nn.Sequential):
    """z (B, C, h, w) -> pixels (B, 3, h * f, w * f). Raises LdmkitError for weights of another kind."""

    def __init__(self, shapes: Shapes) -> None:
        super().__init__(*_layers(shapes, decoder=True))

    def forward(self, z: Tensor) -> Tensor:
        return super().forward(z) * 2 - 1  # type: ignore[no-any-return,no-untyped-call]


def _layers(shapes: Shapes, *, decoder: bool) -> Iterator[nn.Module]:
    """A convolution without bias halves the size in the encoder and follows an upsampling in the decoder."""
    try:
        last = max(int(key.split(".")[0]) for key in shapes)
        if last > 1000:
            raise ValueError
        for i in range(last + 1):
            if f"{i}.conv.0.weight" in shapes:
                width_out, width_in = shapes[f"{i}.conv.0.weight"][:2]
                pool = shapes.get(f"{i}.pool.0.weight")
                yield Block(width_in, width_out, None if pool is None else pool[0])
            elif f"{i}.weight" in shapes:
                width_out, width_in, size, _ = shapes[f"{i}.weight"]
                bias = f"{i}.bias" in shapes
                stride = 1 if bias or decoder else 2
                yield nn.Conv2d(width_in, width_out, size, stride=stride, padding=size // 2, bias=bias)
            elif not decoder:
                raise ValueError
            elif i == 0:
                yield _Clamp()
            elif i == 2:
                yield nn.ReLU()
            else:
                yield nn.Upsample(scale_factor=2)
    except (ValueError, TypeError):
        raise LdmkitError("not the weights of an autoencoder of TAESD's form") from None
