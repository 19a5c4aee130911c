"""What a command shows: lines, and of long work a rich progress bar on a terminal, plain lines anywhere else."""

import errno
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress

PATIENCE = 2.0
"""seconds of work that need no display"""


def printable(text: str) -> str:
    """The text with control characters, line breaks and turns of the writing direction as escapes.

    A file's name or a stranger's file may hold them: so shown, they neither steer a terminal nor add a line.
    """
    return "".join(c if c.isprintable() else _escape(ord(c)) for c in text)


def _escape(code: int) -> str:
    """Above ASCII one that JSON and TOML know too."""
    if code < 0x7F:
        return chr(code).encode("unicode_escape").decode()
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def tell(*lines: str, err: bool = False) -> None:
    """Writes each of these as one line, `printable`: nothing else writes to stdout, or to stderr with `err`.

    Where nobody reads any more, behind `| head -1` or when the terminal was closed, the command goes on in silence.
    """
    stream = sys.stderr if err else sys.stdout
    try:
        stream.write("".join(f"{printable(line)}\n" for line in lines))
        stream.flush()
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.EIO):
            raise
        drop_output(stream.fileno())


def command(*words: object) -> str:
    """`ldmkit WORDS`, to be pasted into a shell: whatever a name holds, it is one word there."""
    return shlex.join(["ldmkit", *map(str, words)])


def drop_output(*handles: int) -> None:
    """What is written to these from now on leads nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for handle in handles:
        os.dup2(nowhere, handle)
    os.close(nowhere)


class Bar:
    """One running task; `advance` is called for each unit of work."""

    def __init__(self, title: str, total: int, done: int) -> None:
        self.title = title
        self.total = total
        self.done = done
        self._first = done
        self._start = time.monotonic()

    def advance(self, count: int = 1, metrics: Mapping[str, float] | None = None) -> None:
        """Moves on by `count` units and shows the newest metrics."""
        self.done += count

    def _speed(self) -> str:
        """The rate since the bar began, units done before left out, and the time left; empty before there is a rate."""
        rate = (self.done - self._first) / max(time.monotonic() - self._start, 1e-9)
        if not rate:
            return ""
        left = self.total - self.done
        return f"{_per_time(rate)}  {duration(left / rate)} left" if left > 0 else _per_time(rate)

    def _text(self, metrics: Mapping[str, float] | None) -> str:
        return "  ".join(f"{key} {value:.4g}" for key, value in (metrics or {}).items())


class PlainBar(Bar):
    """A line every ten seconds and at the end."""

    def __init__(self, title: str, total: int, done: int, err: bool) -> None:
        super().__init__(title, total, done)
        self._err = err
        self._last = self._start

    def advance(self, count: int = 1, metrics: Mapping[str, float] | None = None) -> None:
        super().advance(count)
        now = time.monotonic()
        if self.done < self.total and now - self._last < 10:
            return
        self._last = now
        words = [self.title, f"{self.done}/{self.total}", self._speed(), self._text(metrics)]
        tell("  ".join(word for word in words if word), err=self._err)


class RichBar(Bar):
    """A bar with rate, time left and the newest metrics."""

    def __init__(self, title: str, total: int, done: int, progress: "Progress") -> None:
        super().__init__(title, total, done)
        self._progress = progress
        self._task = progress.add_task(printable(title), total=total, completed=done, speed="", metrics="")

    def advance(self, count: int = 1, metrics: Mapping[str, float] | None = None) -> None:
        super().advance(count)
        fields: dict[str, Any] = {"metrics": printable(self._text(metrics))} if metrics else {}
        self._progress.update(self._task, advance=count, speed=self._speed(), **fields)


class Reporter:
    """Prints what happens; silent in all processes but the first."""

    def __init__(self, *, quiet: bool = False, err: bool = False) -> None:
        """`err`: on stderr, where stdout is for the result."""
        self.quiet = quiet
        self.err = err

    def line(self, text: str) -> None:
        """One plain line."""
        if not self.quiet:
            tell(text, err=self.err)

    @contextmanager
    def bar(self, title: str, total: int, done: int = 0) -> Iterator[Bar]:
        """A progress display for the block."""
        if self.quiet:
            yield Bar(title, total, done)
        elif not (sys.stderr if self.err else sys.stdout).isatty():
            yield PlainBar(title, total, done, self.err)
        else:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[speed]}", markup=False),
                TextColumn("{task.fields[metrics]}", markup=False),
            )
            with Progress(*columns, refresh_per_second=4, console=Console(stderr=self.err)) as progress:
                yield RichBar(title, total, done, progress)

    @contextmanager
    def counter(self, title: str) -> Iterator[Callable[[int, int], None]]:
        """`progress(done, total)` for work that learns its total on the way; what is done soon shows nothing."""
        with ExitStack() as display:
            began, bar = time.monotonic(), None

            def progress(done: int, total: int) -> None:
                nonlocal bar
                if bar is not None:
                    bar.advance(done - bar.done)
                elif time.monotonic() - began >= PATIENCE:
                    bar = display.enter_context(self.bar(title, total, done))

            yield progress


def duration(seconds: float) -> str:
    """`12 ms`, `1.2 s`, `45 s`, `2 min 5 s`, `8 h 2 min`, `2 d 3 h`."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.3g} ms"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    for (large, size), (small, part) in pairwise(units):
        count, rest = divmod(round(seconds / part), size // part)
        if count:
            return f"{count} {large} {rest} {small}"
    return f"{seconds:.0f} s"


def megabytes(count: float) -> str:
    """Bytes in MiB, of which small ones are told apart: `0.012 MiB`, `3.5 MiB`, `1240 MiB`."""
    mib = count / 2**20
    return f"{mib:.2g} MiB" if mib < 10 else f"{mib:.0f} MiB"


def _per_time(rate: float) -> str:
    """A rate in units a second: `1.5/s`, `4.0/min`, `0.2/h`."""
    unit, seconds = next((each for each in (("s", 1), ("min", 60)) if rate * each[1] >= 1), ("h", 3600))
    return f"{rate * seconds:.1f}/{unit}"
