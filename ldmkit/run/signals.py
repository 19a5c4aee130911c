"""Ctrl-C and SIGTERM while a stage is at work."""

import os
import signal
import time
from types import FrameType, TracebackType
from typing import Any

from ldmkit.errors import Interrupted

_ECHO = 1.0
"""seconds in which a second signal is the launcher passing on the first one, where there is a launcher"""


class StopSignals:
    """Within the block SIGINT and SIGTERM are noted, and a second one leaves at once (KeyboardInterrupt).

    Only the main thread of a process gets signals: in any other the block changes nothing.
    """

    def __init__(self, name: str, *, quiet: bool = False) -> None:
        self.name = name
        self.quiet = quiet
        self.launched = int(os.environ.get("WORLD_SIZE", "1")) > 1
        self.number = 0
        """the signal's number, 0 until one came"""
        self._first = 0.0
        self._old: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopSignals":
        try:
            self._old = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not the main thread
            self._old = {}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.number:
            if self.launched and now - self._first < _ECHO:
                return
            raise KeyboardInterrupt
        self.number, self._first = number, now
        if not self.quiet:
            # Not print: the signal may have come in the middle of one.
            os.write(2, f"{self.name}: stopping after this step; once more leaves without saving\n".encode())


def stopped(message: str, number: int) -> Interrupted:
    """To be raised once all is saved after signal `number`: its exit code is the shell's for that signal."""
    error = Interrupted(message)
    error.exit_code = 128 + number
    return error
