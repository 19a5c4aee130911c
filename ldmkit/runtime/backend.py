"""What drawing needs of a model, whatever runs its networks: a bundle under onnxruntime, or a run under torch."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ldmkit.diffusion.process import Prediction
from ldmkit.runtime.manifest import Defaults, Latent, Manifest, PictureSizes, Schedule

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True)
class Description(PictureSizes):
    """The part of a bundle's manifest that drawing needs, of a model that has no manifest."""

    name: str
    schedule: Schedule
    prediction: Prediction
    latent: Latent
    picture_size: int | tuple[int, int]
    defaults: Defaults
    sizes: tuple[tuple[int, int], ...] = ()
    """width and height of the pictures that it was trained on, where they have several"""


class Backend(Protocol):
    """Networks by the names of a bundle's graphs."""

    @property
    def folder(self) -> Path:
        """Where it was read from."""

    @property
    def manifest(self) -> Manifest | Description: ...

    @property
    def provider(self) -> str:
        """What computes, for people."""

    @property
    def identity(self) -> Mapping[str, str]:
        """Which networks these are, for the pictures' metadata."""

    @property
    def draws_text(self) -> bool:
        """Whether it can follow a prompt."""

    @property
    def draws_unconditionally(self) -> bool:
        """Whether it has a U-Net of its own for no prompt."""

    @property
    def tokenizer(self) -> "Tokenizer":
        """Pads and truncates to the tokens that the text encoder reads."""

    def check_encodes(self) -> None:
        """Raises LdmkitError, saying what to do, where it cannot turn a picture into latents."""

    def prepare(self, prompts: Sequence[str], negative_prompt: str = "") -> None:
        """Tells what will be drawn soon."""

    def run(self, name: str, **inputs: np.ndarray) -> np.ndarray:
        """The only output of network `name`."""

    def bind(self, name: str, **fixed: np.ndarray) -> Callable[..., np.ndarray]:
        """Network `name` with inputs that stay the same from call to call; the result holds until the next call."""
