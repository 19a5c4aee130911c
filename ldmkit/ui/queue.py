"""The queue of drawings: first come, first served, and each knows how many come before it."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ldmkit.errors import LdmkitError

MAX_WAITING = 8
"""behind the drawing in work; one more is refused"""
_LOOK_EVERY = 0.1
"""seconds, at whether a drawing that waits was stopped"""


class Stopped(BaseException):
    """Leaves a drawing that was told to stop; no error, so that nothing on the way takes it for one."""


class DrawQueue:
    """One drawing at a time, so that two of them do not share the processor."""

    def __init__(self) -> None:
        self._drawings: list[object] = []
        """the first is in work"""
        self._moved = threading.Condition()

    def __len__(self) -> int:
        """How many are in work and wait."""
        return len(self._drawings)

    @contextmanager
    def turn(self, stop: threading.Event, tell: Callable[[int], None]) -> Iterator[None]:
        """Waits for its turn, and has it until it is left. `tell` gets how many come first, whenever that changes.

        Raises LdmkitError where too many wait already, and Stopped soon after `stop` is set while it waits.
        """
        mine, told = object(), 0
        with self._moved:
            if len(self._drawings) > MAX_WAITING:
                raise LdmkitError(f"{MAX_WAITING} drawings wait already; try again in a while")
            self._drawings.append(mine)
        try:
            with self._moved:
                while ahead := self._drawings.index(mine):
                    if ahead != told:
                        tell(ahead)
                        told = ahead
                    if stop.is_set():
                        raise Stopped
                    self._moved.wait(_LOOK_EVERY)
            yield
        finally:
            with self._moved:
                self._drawings.remove(mine)
                self._moved.notify_all()
