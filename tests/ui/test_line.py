"""The line in which drawings wait for each other."""

import threading
import time

import pytest

from ldmkit.errors import LdmkitError
from ldmkit.ui.line import MAX_WAITING, Line, Stopped


class Drawing(threading.Thread):
    """Stands in the line once it is made."""

    def __init__(self, line: Line, order: list["Drawing"]) -> None:
        super().__init__()
        self.line, self.order = line, order
        self.stop = threading.Event()
        self.told: list[int] = []
        self.left = False
        before = len(line)
        self.start()
        while len(line) == before and self.is_alive():
            time.sleep(0.001)

    def run(self) -> None:
        try:
            with self.line.turn(self.stop, self.told.append):
                self.order.append(self)
        except Stopped:
            self.left = True


def test_they_come_in_their_order_and_know_how_many_are_before_them() -> None:
    line, order = Line(), []
    with line.turn(threading.Event(), pytest.fail):
        drawings = [Drawing(line, order) for _ in range(3)]
        assert order == [], "none begins before this one has ended"
    for drawing in drawings:
        drawing.join()
    assert order == drawings
    assert [drawing.told[0] for drawing in drawings] == [1, 2, 3]
    assert all(drawing.told == sorted(set(drawing.told), reverse=True) for drawing in drawings)
    assert len(line) == 0


def test_one_that_is_stopped_leaves_while_the_others_wait_on() -> None:
    line, order = Line(), []
    with line.turn(threading.Event(), pytest.fail):
        first, second = Drawing(line, order), Drawing(line, order)
        first.stop.set()
        first.join()
        assert first.left
        while second.told != [2, 1]:
            time.sleep(0.001)
    second.join()
    assert order == [second]


def test_too_many_are_refused_at_once() -> None:
    line, order = Line(), []
    with line.turn(threading.Event(), pytest.fail):
        drawings = [Drawing(line, order) for _ in range(MAX_WAITING)]
        with (
            pytest.raises(LdmkitError, match=f"^{MAX_WAITING} drawings wait already"),
            line.turn(threading.Event(), pytest.fail),
        ):
            pass
        assert len(line) == 1 + MAX_WAITING
    for drawing in drawings:
        drawing.join()
    assert order == drawings


def test_an_error_gives_the_turn_on() -> None:
    line = Line()
    with pytest.raises(ZeroDivisionError), line.turn(threading.Event(), pytest.fail):
        raise ZeroDivisionError
    assert len(line) == 0
