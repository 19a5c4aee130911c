"""The queue in which drawings wait for each other."""

import threading
import time

import pytest

from ldmkit.errors import LdmkitError
from ldmkit.ui.queue import MAX_WAITING, DrawQueue, Stopped


class Drawing(threading.Thread):
    """Stands in the queue once it is made."""

    def __init__(self, turns: DrawQueue, order: list["Drawing"]) -> None:
        super().__init__()
        self.turns, self.order = turns, order
        self.stop = threading.Event()
        self.told: list[int] = []
        self.left = False
        before = len(turns)
        self.start()
        while len(turns) == before and self.is_alive():
            time.sleep(0.001)

    def run(self) -> None:
        try:
            with self.turns.turn(self.stop, self.told.append):
                self.order.append(self)
        except Stopped:
            self.left = True


def test_they_come_in_their_order_and_know_how_many_are_before_them() -> None:
    turns, order = DrawQueue(), []
    with turns.turn(threading.Event(), pytest.fail):
        drawings = [Drawing(turns, order) for _ in range(3)]
        assert order == [], "none begins before this one has ended"
    for drawing in drawings:
        drawing.join()
    assert order == drawings
    assert [drawing.told[0] for drawing in drawings] == [1, 2, 3]
    assert all(drawing.told == sorted(set(drawing.told), reverse=True) for drawing in drawings)
    assert len(turns) == 0


def test_one_that_is_stopped_leaves_while_the_others_wait_on() -> None:
    turns, order = DrawQueue(), []
    with turns.turn(threading.Event(), pytest.fail):
        first, second = Drawing(turns, order), Drawing(turns, order)
        first.stop.set()
        first.join()
        assert first.left
        while second.told != [2, 1]:
            time.sleep(0.001)
    second.join()
    assert order == [second]


def test_too_many_are_refused_at_once() -> None:
    turns, order = DrawQueue(), []
    with turns.turn(threading.Event(), pytest.fail):
        drawings = [Drawing(turns, order) for _ in range(MAX_WAITING)]
        with (
            pytest.raises(LdmkitError, match=f"^{MAX_WAITING} drawings wait already"),
            turns.turn(threading.Event(), pytest.fail),
        ):
            pass
        assert len(turns) == 1 + MAX_WAITING
    for drawing in drawings:
        drawing.join()
    assert order == drawings


def test_an_error_gives_the_turn_on() -> None:
    turns = DrawQueue()
    with pytest.raises(ZeroDivisionError), turns.turn(threading.Event(), pytest.fail):
        raise ZeroDivisionError
    assert len(turns) == 0
