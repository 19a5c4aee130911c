"""Decoded pictures in batches, in an order that the caller owns."""

import atexit
import signal
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import current_thread, main_thread
from weakref import WeakSet

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from ldmkit.components.protocols import Picture
from ldmkit.data.decode import prepare
from ldmkit.errors import LostWorker
from ldmkit.recipe.data import Data
from ldmkit.signals import ignore_stops, kept_from_children

AHEAD = 2
"""batches that the thread decodes while the network is at one"""

Batch = Sequence[int] | np.ndarray
_running: "WeakSet[Iterator[torch.Tensor]]" = WeakSet()
"""what still decodes; it has to end before Python, on its way out, waits for all processes: no signal ends these"""


@atexit.register
def _end_all() -> None:
    for loaded in list(_running):
        loaded.close()  # type: ignore[attr-defined] # a generator


class _Prepared(torch.utils.data.Dataset[torch.Tensor]):
    def __init__(self, pictures: Sequence[Picture], data: Data) -> None:
        self.pictures = pictures
        self.data = data

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor(_working(self.pictures[index], self.data))


def _working(picture: Picture, data: Data) -> NDArray[np.uint8]:
    image = picture.load()
    return prepare(image, data.shapes[data.bucket(*image.size)], data.crop)


def picture_batches(pictures: Sequence[Picture], data: Data, batches: Iterable[Batch]) -> Iterator[torch.Tensor]:
    """(B, 3, H, W) float pixels in [-1, 1] for each batch of positions in `pictures`; see `uint8_batches`."""
    for batch in uint8_batches(pictures, data, batches):
        yield to_pixels(batch)


def uint8_batches(pictures: Sequence[Picture], data: Data, batches: Iterable[Batch]) -> Iterator[torch.Tensor]:
    """(B, H, W, 3) uint8 for each batch of positions in `pictures`, those of a batch all of one bucket.

    Decoded ahead of their use: by `num_workers` processes, or by a thread where there are to be none. Raises LostWorker
    where one of these processes has ended.
    """
    loaded = (_by_processes if data.num_workers else _by_thread)(pictures, data, batches)
    _running.add(loaded)
    yield from loaded


def _by_processes(pictures: Sequence[Picture], data: Data, batches: Iterable[Batch]) -> Iterator[torch.Tensor]:
    """(B, H, W, 3) uint8. The processes end when this one does, and at no signal."""
    loader = DataLoader(
        _Prepared(pictures, data),
        batch_sampler=([int(i) for i in batch] for batch in batches),
        num_workers=data.num_workers,
        worker_init_fn=_begin_worker,
        generator=torch.Generator(),  # its own: a worker's seed must not come out of the global stream
        pin_memory=torch.cuda.is_available(),
    )
    child_ends = getattr(signal, "SIGCHLD", None) if current_thread() is main_thread() else None
    before = signal.getsignal(child_ends) if child_ends else None
    with kept_from_children():
        loaded = iter(loader)
    if child_ends and before is not None:
        # torch's own handler would raise wherever the program is, in the middle of an update too. Without it a lost
        # worker is noticed where its batch is missing.
        signal.signal(child_ends, before)
    try:
        yield from loaded
    except (RuntimeError, ConnectionError, EOFError) as error:
        told = str(error).partition("\n")[0].rstrip(". ")
        broken_pipe = not isinstance(error, RuntimeError)
        # A picture's own error comes from "DataLoader worker process N".
        if "in DataLoader worker process" in told or not (broken_pipe or told.startswith("DataLoader worker")):
            raise
        raise LostWorker(
            f"a process that decodes pictures has ended: {'its pipe broke' if broken_pipe else told}. Nothing that "
            "was saved is lost: run the same command again; where memory is short, a lower data.num_workers helps"
        ) from None
    finally:
        del loaded  # with it the processes end


def _by_thread(pictures: Sequence[Picture], data: Data, batches: Iterable[Batch]) -> Iterator[torch.Tensor]:
    """(B, H, W, 3) uint8. Pillow decodes without the interpreter's lock, and torch computes without it."""

    def load(batch: Batch) -> torch.Tensor:
        pixels = np.stack([_working(pictures[int(i)], data) for i in batch])
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


def _begin_worker(_worker: int) -> None:
    ignore_stops()
