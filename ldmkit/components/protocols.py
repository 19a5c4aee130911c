"""What a component of each kind must offer. Imports neither torch nor any plugin.

Arrays are `Any` here: torch tensors while training, numpy arrays in the runtime.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from ldmkit.components.files import Folder

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL import Image
    from tokenizers import Tokenizer

Array = Any


class Files(Protocol):
    """The files of a data set, in a folder or an archive, by key: the path from `path`, `/`-separated."""

    @property
    def path(self) -> Path:
        """What data.path names."""
        ...

    def names(self, folder: str) -> list[str]:
        """Of the files right in this folder, "" being the whole."""
        ...

    def read(self, key: str, most: int) -> bytes:
        """At most `most` + 1 bytes. Raises LdmkitError for a link that is not followed, OSError where it cannot."""
        ...

    def walk(self) -> Iterator[str]:
        """Keys of all files."""
        ...


@dataclass(frozen=True)
class Picture:
    """One picture of the data set, decoded only when asked for."""

    path: Path
    """absolute path of the file; of an archive's member the archive's path and the member's"""
    key: str
    """its path relative to the data folder, with ending, `/`-separated: the picture's identity"""
    load: Callable[[], "Image.Image"]
    """decodes the whole file to sRGB: EXIF applied, alpha composited, 16-bit scaled"""
    source: Files | None = None
    """the files it lies among; None: those of the folder that `key` is relative to"""

    @property
    def files(self) -> Files:
        """The files it lies among."""
        return self.source or Folder(self.path.parents[len(PurePosixPath(self.key).parts) - 1])


@dataclass(frozen=True)
class Reconstruction:
    """One batch through the autoencoder: all that a loss sees."""

    target: Array
    """(B, 3, H, W) float pixels in [-1, 1]"""
    output: Array
    """(B, 3, H, W) the decoder's pixels, unbounded"""
    mean: Array
    """(B, C, h, w) mean of the posterior"""
    logvar: Array
    """(B, C, h, w) log-variance of the posterior, clamped to [-30, 20]"""


@dataclass(frozen=True)
class DiscriminatorLoss:
    """What a discriminator makes of one batch; all scalars."""

    loss: Array
    """to be minimised by the discriminator, its penalty left out; near 0: it tells everything apart"""
    real: Array
    """mean logit of the targets, high where they are taken for pictures"""
    fake: Array
    """mean logit of the reconstructions"""
    penalty: Array | None = None
    """its regularisation, weighted, to be minimised along with the loss"""


@runtime_checkable
class Captioner(Protocol):
    """Writes captions for pictures."""

    def caption(self, pictures: Sequence[Picture]) -> list[str | None]:
        """One caption a picture, None where it has none; "" is a caption of no words. Several captions of a picture
        are lines of the text: training takes another one each time, everything else the first."""
        ...


@runtime_checkable
class PromptReader(Captioner, Protocol):
    """A captioner that can tell whether a drawn picture shows what its prompt asked for."""

    def shows(self, images: Sequence["Image.Image"], prompts: Sequence[str]) -> list[dict[str, bool]]:
        """For each RGB picture, of each thing that its prompt names and the rule can read, whether it is right."""
        ...


@runtime_checkable
class TextEncoder(Protocol):
    """Turns captions into the U-Net's context."""

    @property
    def trainable(self) -> bool:
        """True: trained together with the U-Net; False: frozen, its states are cached."""
        ...

    @property
    def context_dim(self) -> int:
        """D, the width of one state."""
        ...

    @property
    def max_tokens(self) -> int:
        """L, every caption is padded or cut to this many tokens."""
        ...

    def build_tokenizer(self, captions: Sequence[str]) -> "Tokenizer":
        """A `tokenizers.Tokenizer` that pads and cuts to `max_tokens`; `captions` are there to train it on."""
        ...

    def load_module(self, tokenizer: "Tokenizer") -> "torch.nn.Module":
        """forward(ids (B, L) int64, mask (B, L) int64, 1 = token) -> context (B, L, D) float."""
        ...


@runtime_checkable
class StartsFromCaptions(Protocol):
    """A trained text encoder whose first weights depend on what the captions say."""

    def start_module(self, module: "torch.nn.Module", token_counts: "np.ndarray") -> None:
        """Sets up what `load_module` made, before a new training: `token_counts` (V,) int64 says how often each token
        stands in the captions that are trained on, padding included."""
        ...


@runtime_checkable
class Loss(Protocol):
    """One term of the autoencoder's loss, unweighted. The recipe holds the weight."""

    def __call__(self, reconstruction: Reconstruction) -> Array:
        """A scalar."""
        ...


@runtime_checkable
class AdversarialLoss(Loss, Protocol):
    """A loss with a discriminator of its own; the trainer owns its optimizer and the adaptive weight."""

    discriminator: "torch.nn.Module"

    def discriminator_loss(self, reconstruction: Reconstruction) -> DiscriminatorLoss:
        """The discriminator's own loss, once for each part of a training batch; `reconstruction.output` is detached
        in it. What it remembers from call to call belongs into buffers of the discriminator: a resumed run gets
        those back."""
        ...


class Schedule(Protocol):
    """A noise schedule: x_t = alpha(t) * x0 + sigma(t) * noise."""

    @property
    def num_timesteps(self) -> int:
        """T; timesteps that a U-Net sees lie in [0, T]."""
        ...

    def grid(self, steps: int) -> "tuple[np.ndarray, np.ndarray, np.ndarray]":
        """Sampling grid: t (steps,), alpha (steps + 1,), sigma (steps + 1,), float64.

        Descending in noise; the last alpha is 1 and the last sigma 0 (the clean picture, which has no t).
        """
        ...


Denoise = Callable[[Array, float], Array]
"""denoise(x_t, t) -> x0, guidance applied; t is one timestep for the whole batch"""


@runtime_checkable
class Sampler(Protocol):
    """Walks from noise to x0 with operators only: the same code runs on torch and on numpy."""

    @property
    def steps(self) -> int:
        """Number of steps of the grid."""
        ...

    def sample(self, denoise: Denoise, x_T: Array, schedule: Schedule, randn_like: Callable[[Array], Array]) -> Array:  # noqa: N803 - the field's name
        """x0, shaped like x_T. `x_T` is unit Gaussian noise; randomness comes from `randn_like` alone."""
        ...
