"""Decoded pictures in batches, in an order that the caller owns."""

import signal
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import DataLoader

from ldmkit.components import Picture
from ldmkit.data.pictures import prepare
from ldmkit.recipe.sections import Data


class _Prepared(torch.utils.data.Dataset[torch.Tensor]):
    def __init__(self, pictures: Sequence[Picture], data: Data) -> None:
        self.pictures = pictures
        self.size, self.crop = data.size, data.crop

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor(prepare(self.pictures[index].load(), self.size, self.crop))


class _Batches(torch.utils.data.Sampler[list[int]]):
    def __init__(self, batches: Iterable[Sequence[int]]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.batches:
            yield [int(i) for i in batch]


def picture_batches(
    pictures: Sequence[Picture], data: Data, batches: Iterable[Sequence[int] | np.ndarray]
) -> Iterator[torch.Tensor]:
    """(B, 3, size, size) float pixels in [-1, 1] for each batch of positions in `pictures`."""
    loader = DataLoader(
        _Prepared(pictures, data),
        batch_sampler=_Batches(batches),  # type: ignore[arg-type]
        num_workers=data.num_workers,
        worker_init_fn=_ignore_interrupt if data.num_workers else None,
        generator=torch.Generator(),  # its own: a worker's seed must not come out of the global stream
        pin_memory=torch.cuda.is_available(),
    )
    for batch in loader:
        yield to_pixels(batch)


def to_pixels(uint8: torch.Tensor) -> torch.Tensor:
    """(B, H, W, 3) uint8 to (B, 3, H, W) float in [-1, 1]."""
    return uint8.permute(0, 3, 1, 2).float() / 127.5 - 1


def _ignore_interrupt(_worker: int) -> None:
    # Ctrl-C reaches the whole process group; the main process decides when the workers end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
