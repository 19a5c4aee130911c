"""What a user or a machine stops a command with: Ctrl-C, SIGTERM, and SIGHUP where nobody has it ignored."""

import os
import signal
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread
from types import FrameType
from typing import Any

from ldmkit.errors import Interrupted
from ldmkit.report import drop_output

STOPS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
_ECHO = 1.0
"""seconds in which a second signal is the launcher passing on the first one, where there is a launcher"""
_PATIENCE = 2.0
"""seconds that a library's call may keep a command from ending"""


class Stopped(KeyboardInterrupt):
    """SIGTERM or SIGHUP outside of a stage: what is half done is cleaned up on the way out, as at Ctrl-C."""

    def __init__(self, number: int) -> None:
        self.number = number


@contextmanager
def raising_at_stops() -> Iterator[None]:
    """SIGTERM and SIGHUP end the block as Ctrl-C does, by an exception."""

    def leave(number: int, _frame: FrameType | None) -> None:
        raise Stopped(number)

    before = _handle(leave, STOPS[1:])
    try:
        yield
    finally:
        _restore(before)


class StopSignals:
    """Within the block a stop signal is noted, and a second one leaves at once (KeyboardInterrupt).

    Only the main thread of a process gets signals: in any other the block changes nothing.
    """

    def __init__(self, name: str, *, quiet: bool = False) -> None:
        self.name = name
        self.quiet = quiet
        self.launched = int(os.environ.get("WORLD_SIZE", "1")) > 1
        self.number = 0
        """the signal's number, 0 until one came"""
        self._first = 0.0
        self._old: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        self._old = _handle(self._note, STOPS)
        return self

    def __exit__(self, *_error: object) -> None:
        _restore(self._old)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.number:
            if self.launched and now - self._first < _ECHO:
                return
            raise KeyboardInterrupt
        self.number, self._first = number, now
        if not self.quiet:
            try:
                # Not print: the signal may have come in the middle of one.
                os.write(2, f"{self.name}: stopping after this step; once more leaves without saving\n".encode())
            except OSError:  # SIGHUP tells that the terminal is gone: what is told until all is saved goes nowhere
                drop_output(*(handle for handle in (1, 2) if stat.S_ISCHR(os.fstat(handle).st_mode)))


def stopped(message: str, number: int) -> Interrupted:
    """To be raised once all is saved after signal `number`: its exit code is the shell's for that signal."""
    error = Interrupted(message)
    error.exit_code = 128 + number
    return error


@contextmanager
def kept_from_children() -> Iterator[None]:
    """A stop signal waits for the block's end; processes that start in it never get one.

    It reaches a whole group at once (`kill -- -PGID`, systemd, Slurm), and it is the parent that decides when they end.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore_stops() -> None:
    """For a process that has a parent to decide when it ends."""
    for number in STOPS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def ending_soon() -> Iterator[None]:
    """A stop signal within the block ends the process in two seconds, whatever call a library is in.

    Python raises KeyboardInterrupt when the call returns, and a stranger's graph may be made never to: then the process
    leaves without cleaning up.
    """
    readable, writable = os.pipe()
    os.set_blocking(writable, False)
    try:
        before = signal.set_wakeup_fd(writable, warn_on_full_buffer=False)
    except ValueError:  # not the main thread, which alone gets signals
        os.close(readable)
        os.close(writable)
        yield
        return

    def watch() -> None:
        for number in iter(lambda: os.read(readable, 1), b""):
            if number[0] in STOPS:
                time.sleep(_PATIENCE)  # who leaves in time takes this thread along
                os._exit(128 + number[0])
        os.close(readable)

    Thread(target=watch, name="stop signals", daemon=True).start()
    interrupted = False
    try:
        yield
    except KeyboardInterrupt:
        interrupted = True  # other threads may still be inside the library: the watch goes on
        raise
    finally:
        signal.set_wakeup_fd(before)
        if not interrupted:
            os.close(writable)


def _handle(handler: Any, numbers: tuple[int, ...]) -> dict[int, Any]:
    """The handlers before; none where this is not the main thread."""
    try:
        # Whoever is started by nohup has SIGHUP ignored: it is to outlive its terminal.
        wanted = [each for each in numbers if signal.getsignal(each) != signal.SIG_IGN or each == signal.SIGINT]
        return {number: signal.signal(number, handler) for number in wanted}
    except ValueError:
        return {}


def _restore(handlers: dict[int, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)
