"""A denoising network's inputs beside x_t and t."""

from typing import Protocol

import numpy as np

from ldmkit.caches.sets import TextSet
from ldmkit.diffusion.torch_sampling import Text
from ldmkit.training.engine import Engine


class Conditioning(Protocol):
    """Brings the network's further inputs, (B, ...) tensors, for pictures by their indices (B,)."""

    def batch(self, indices: np.ndarray, step: int | None) -> Text:
        """Of these pictures; with a step as training takes them, with that step's dropout on the whole batch."""

    def previews(self, indices: np.ndarray) -> tuple[Text, Text] | None:
        """(conditioned, unconditioned) inputs of sample grids after these pictures; None where guidance has no say."""


class NoText:
    """An unconditional network."""

    def batch(self, indices: np.ndarray, step: int | None) -> Text:
        return ()

    def previews(self, indices: np.ndarray) -> tuple[Text, Text] | None:
        return None


class Captions:
    """The pictures' captions, one of several at random at each training step, else the first.

    A share of `dropout` is empty, so that guidance has something to guide from.
    """

    def __init__(self, texts: TextSet, engine: Engine, *, dropout: float) -> None:
        self.texts = texts
        self.engine = engine
        self.dropout = dropout

    def batch(self, indices: np.ndarray, step: int | None) -> Text:
        captions = self.texts.index[indices]
        if step is not None:
            if self.texts.numbers.shape[1] > 1:
                captions = self.texts.draw(indices, self.engine.uniform("caption", step))
            captions = np.where(self.engine.uniform("caption-dropout", step) < self.dropout, 0, captions)
        return self.texts.batch(captions, self.engine.device)

    def previews(self, indices: np.ndarray) -> tuple[Text, Text] | None:
        captions, device = self.texts.index[indices], self.engine.device
        return self.texts.batch(captions, device), self.texts.batch(np.zeros_like(captions), device)
