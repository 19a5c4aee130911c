"""Contenders of a benchmark, each in a process of its own, timed in turns within one run.

What slows the machine down for a while slows all of them down, and a ratio is taken within a round, so that it cancels.
"""

import multiprocessing
import statistics
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from typing import Any

Result = tuple[float, float]
"""seconds a step, and seconds of them spent waiting for data"""


class _Over(BaseException):
    """Leaves a contender's endless loop; no `except Exception` on the way out takes it for an error."""


class Turn:
    """What a contender calls at the head of each step."""

    def __init__(self, connection: Connection, steps: int) -> None:
        self._connection = connection
        self._steps = steps
        self._taken = -1
        self._began = self._waited = 0.0

    def __call__(self) -> None:
        """Returns when the next step may begin."""
        self._taken += 1
        if self._taken == self._steps:
            _synchronize()
            seconds = time.perf_counter() - self._began
            self._connection.send((seconds / self._steps, self._waited / self._steps))
        if self._taken in (0, self._steps):
            if self._taken == 0:
                self._connection.send(None)  # ready
            if not self._connection.recv():
                raise _Over
            self._taken, self._waited = 0, 0.0
            self._began = time.perf_counter()

    def waiting(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, its time counted as waiting for data."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            result = function(*args, **kwargs)
            self._waited += time.perf_counter() - began
            return result

        return timed

    def waiting_for(self, loader: Iterable[Any]) -> Iterable[Any]:
        """`loader`, the time until each of its batches counted as waiting for data."""
        return _Waited(loader, self)


class _Waited:
    def __init__(self, loader: Iterable[Any], turn: Turn) -> None:
        self._loader = loader
        self._next = turn.waiting(next)

    def __iter__(self) -> Iterator[Any]:
        items, end = iter(self._loader), object()
        while (item := self._next(items, end)) is not end:
            yield item


@dataclass(frozen=True)
class Timing:
    """One contender's rounds."""

    rounds: Sequence[Result]

    @property
    def seconds(self) -> float:
        """Median seconds a step."""
        return statistics.median(seconds for seconds, _ in self.rounds)

    @property
    def wait_share(self) -> float:
        """Median share of the step spent waiting for data."""
        return statistics.median(waited / seconds for seconds, waited in self.rounds)

    def speedup(self, other: "Timing") -> tuple[float, float, float]:
        """How many times as fast as `other`: median, least and most over the rounds."""
        ratios = [theirs[0] / own[0] for own, theirs in zip(self.rounds, other.rounds, strict=True)]
        return statistics.median(ratios), min(ratios), max(ratios)


Contender = Callable[..., None]
"""contender(turn, *args): steps without end, `turn()` at the head of each"""


def take_turns(
    contenders: Mapping[str, tuple[Contender, tuple[Any, ...]]], *, rounds: int, steps: int, preload: Sequence[str]
) -> dict[str, Timing]:
    """Times `rounds` rounds of `steps` steps of each, after one that only warms up; `preload`: modules they share.

    Raises RuntimeError with the traceback of a contender that failed.
    """
    with _started(contenders, steps, preload) as connections:
        for name, connection in connections.items():
            _receive(name, connection)  # ready
        results: dict[str, list[Result]] = {name: [] for name in contenders}
        for number in range(rounds + 1):
            # The other way round each time, so that none always comes after the same one.
            for name in list(contenders)[:: 1 if number % 2 else -1]:
                connections[name].send(True)
                result = _receive(name, connections[name])
                if number:
                    results[name].append(result)
        for connection in connections.values():
            connection.send(False)
    return {name: Timing(found) for name, found in results.items()}


@contextmanager
def _started(
    contenders: Mapping[str, tuple[Contender, tuple[Any, ...]]], steps: int, preload: Sequence[str]
) -> Iterator[dict[str, Connection]]:
    """The contenders' processes by their connections; they are ended on the way out."""
    context = _fork_server(preload)
    connections: dict[str, Connection] = {}
    processes = []
    try:
        for name, (contender, args) in contenders.items():
            connections[name], theirs = context.Pipe()
            process = context.Process(target=_contend, args=(theirs, steps, contender, args))
            process.start()
            processes.append(process)
            theirs.close()
        yield connections
    finally:
        for connection in connections.values():
            connection.close()  # whoever still waits for its turn ends
        for process in processes:
            process.join()


def apart(function: Callable[..., None], *args: Any, preload: Sequence[str]) -> None:
    """function(*args) in a process of its own, so that this one needs none of its imports."""
    process = _fork_server(preload).Process(target=function, args=args)
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"{function.__name__} failed with exit code {process.exitcode}")


def _fork_server(preload: Sequence[str]) -> ForkServerContext:
    """Processes are forked from a server that imported everything once and has neither threads nor a GPU."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", *preload])
    return context


def _contend(connection: Connection, steps: int, contender: Contender, args: tuple[Any, ...]) -> None:
    try:
        contender(Turn(connection, steps), *args)
    except (_Over, EOFError, BrokenPipeError):
        return
    except BaseException:
        connection.send(traceback.format_exc())


def _receive(name: str, connection: Connection) -> Any:
    received = connection.recv()
    if isinstance(received, str):
        raise RuntimeError(f"{name} failed:\n{received}")
    return received


def _synchronize() -> None:
    import torch

    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call] # torch leaves it untyped
        torch.cuda.synchronize()


def print_table(timings: Mapping[str, Timing], *, batch: int) -> None:
    """A line for each contender."""
    width = max(len(name) for name in timings)
    print(f"{'':{width}}  s/step  pictures/s  waiting for data")
    for name, timing in timings.items():
        seconds = timing.seconds
        print(f"{name:{width}}  {seconds:6.3f}  {batch / seconds:10.2f}  {timing.wait_share:16.1%}")


def print_ratio(label: str, ours: Timing, theirs: Timing) -> None:
    """`ours` as a multiple of the speed of `theirs`, with the rounds' spread."""
    median, least, most = ours.speedup(theirs)
    print(f"ratio {label}: {median:.2f} (rounds: {least:.2f} to {most:.2f})")
