"""Decoded pictures in batches, in an order that the caller owns."""

import signal
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch.utils.data import DataLoader

from ldmkit.components.protocols import Picture
from ldmkit.data.decode import prepare
from ldmkit.recipe.sections import Data

AHEAD = 2
"""batches that the thread decodes while the network is at one"""

Batch = Sequence[int] | np.ndarray


class _Prepared(torch.utils.data.Dataset[torch.Tensor]):
    def __init__(self, pictures: Sequence[Picture], data: Data) -> None:
        self.pictures = pictures
        self.size, self.crop = data.size, data.crop

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor(prepare(self.pictures[index].load(), self.size, self.crop))


def picture_batches(pictures: Sequence[Picture], data: Data, batches: Iterable[Batch]) -> Iterator[torch.Tensor]:
    """(B, 3, size, size) float pixels in [-1, 1] for each batch of positions in `pictures`; see `uint8_batches`."""
    for batch in uint8_batches(pictures, data, batches):
        yield to_pixels(batch)


def uint8_batches(pictures: Sequence[Picture], data: Data, batches: Iterable[Batch]) -> Iterator[torch.Tensor]:
    """(B, size, size, 3) uint8 for each batch of positions in `pictures`.

    Decoded ahead of their use: by `num_workers` processes, or by a thread where there are to be none.
    """
    if data.num_workers == 0:
        loaded = _by_thread(pictures, data, batches)
    else:
        loaded = iter(
            DataLoader(
                _Prepared(pictures, data),
                batch_sampler=([int(i) for i in batch] for batch in batches),
                num_workers=data.num_workers,
                worker_init_fn=_ignore_interrupt,
                generator=torch.Generator(),  # its own: a worker's seed must not come out of the global stream
                pin_memory=torch.cuda.is_available(),
            )
        )
    try:
        yield from loaded
    except (ConnectionError, EOFError) as error:
        if data.num_workers == 0 or "in DataLoader worker process" in str(error):
            raise  # a picture's own, as torch passes it on
        # The pipe of a process that was killed this moment. torch raises a RuntimeError that says so wherever the
        # program is when the signal of it comes: here, then, and not in the middle of telling the user.
        time.sleep(1)
        raise RuntimeError("DataLoader worker (pid unknown) exited unexpectedly.") from error


def _by_thread(pictures: Sequence[Picture], data: Data, batches: Iterable[Batch]) -> Iterator[torch.Tensor]:
    """(B, size, size, 3) uint8. Pillow decodes without the interpreter's lock, and torch computes without it."""

    def load(batch: Batch) -> torch.Tensor:
        pixels = np.stack([prepare(pictures[int(i)].load(), data.size, data.crop) for i in batch])
        tensor = torch.from_numpy(pixels)
        return tensor.pin_memory() if torch.cuda.is_available() else tensor

    pool = ThreadPoolExecutor(1, thread_name_prefix="decode")
    waiting: deque[Future[torch.Tensor]] = deque()
    try:
        for batch in batches:
            waiting.append(pool.submit(load, batch))
            if len(waiting) > AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:  # reached as well when whoever iterates stops halfway
        pool.shutdown(cancel_futures=True)


def to_pixels(uint8: torch.Tensor) -> torch.Tensor:
    """(B, H, W, 3) uint8 to (B, 3, H, W) float in [-1, 1]."""
    return uint8.permute(0, 3, 1, 2).float() / 127.5 - 1


def _ignore_interrupt(_worker: int) -> None:
    # Ctrl-C reaches the whole process group; the main process decides when the workers end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
