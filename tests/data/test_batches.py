"""Pictures decoded ahead of the network: the same ones in the same order, and an end that is clean whatever happens."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ldmkit.components.protocols import Picture
from ldmkit.data.batches import AHEAD, picture_batches
from ldmkit.recipe.data import Data

DATA = Data(path="pictures", size=8, num_workers=0)


class Shelf:
    """Pictures of one grey each that note when they are decoded."""

    def __init__(self, count: int) -> None:
        self.decoded: list[int] = []
        self.pictures = [Picture(Path(f"{i}.png"), f"{i}.png", lambda i=i: self.load(i)) for i in range(count)]

    def load(self, number: int) -> Image.Image:
        self.decoded.append(number)
        if number == 13:
            raise EOFError("13.png is cut short")
        return Image.new("RGB", (8, 8), (number, number, number))


EARLIER: set[threading.Thread] = set()


@pytest.fixture(autouse=True)
def earlier_threads() -> None:
    """Those of tests before: a task that waits for the garbage collector may still hold one."""
    EARLIER.update(threading.enumerate())


def decoding() -> list[str]:
    return [thread.name for thread in set(threading.enumerate()) - EARLIER if thread.name.startswith("decode")]


def greys(pixels: torch.Tensor) -> list[int]:
    return [round(float(value + 1) * 127.5) for value in pixels[:, 0, 0, 0]]


def test_order_and_how_far_ahead() -> None:
    shelf = Shelf(12)
    asked = []

    def batches() -> Iterator[np.ndarray]:
        for i in range(6):
            asked.append(i)
            yield np.array([2 * i + 1, 2 * i])

    found = picture_batches(shelf.pictures, DATA, batches())
    for i in range(6):
        assert greys(next(found)) == [2 * i + 1, 2 * i]
        assert asked == list(range(min(6, i + 1 + AHEAD)))  # the caller's order is asked for in the caller's thread
    assert next(found, None) is None
    assert shelf.decoded == [1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10]
    assert decoding() == []


def test_decodes_while_the_network_is_busy() -> None:
    """What is asked for next is there before it is asked for: each side waits for the other, so no time is measured."""
    ready = threading.Event()
    shelf = Shelf(4)
    load = shelf.load

    def told(number: int) -> Image.Image:
        if number == 1:
            ready.set()
        return load(number)

    shelf.load = told  # type: ignore[method-assign]
    found = picture_batches(shelf.pictures, DATA, [[0], [1], [2], [3]])
    next(found)
    assert ready.wait(timeout=600)
    found.close()  # type: ignore[attr-defined]
    assert decoding() == []


def test_broken_picture_is_raised_as_itself_in_its_turn() -> None:
    shelf = Shelf(20)
    found = picture_batches(shelf.pictures, DATA, [[0], [1], [13], [2], [3]])
    assert [greys(next(found)), greys(next(found))] == [[0], [1]]
    with pytest.raises(EOFError, match=r"13\.png is cut short"):
        next(found)
    assert decoding() == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_whoever_iterates_stops_halfway(error: type[BaseException]) -> None:
    shelf = Shelf(12)

    def consume() -> None:
        for _ in picture_batches(shelf.pictures, DATA, [[i] for i in range(12)]):
            raise error

    with pytest.raises(error):
        consume()
    assert decoding() == []
    assert len(shelf.decoded) <= 2 + AHEAD


def test_error_in_the_order_of_samples() -> None:
    def batches() -> Iterator[list[int]]:
        yield [0]
        raise LookupError("no such step")

    found: Any = picture_batches(Shelf(2).pictures, DATA, batches())
    with pytest.raises(LookupError, match="no such step"):
        list(found)
    assert decoding() == []
