"""What is compared takes turns within one run, and a ratio is taken within a round.

So whatever slows the machine down for a while slows down all sides, and cancels.
"""

import multiprocessing
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from benchmarks.command import print_table

T = TypeVar("T")


def in_turns(sides: Mapping[str, Callable[[], T]], rounds: int, *, warm: int = 1) -> dict[str, list[T]]:
    """What each side returns in each of the rounds, after some that only warm up.

    Every other round goes the other way round, so that none always comes after the same one.
    """
    found: dict[str, list[T]] = {name: [] for name in sides}
    for number in range(-warm, rounds):
        for name in list(sides)[:: 1 if number % 2 else -1]:
            result = sides[name]()
            if number >= 0:
                found[name].append(result)
    return found


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median, and in brackets the least and the most."""
    median, least, most = (f"{value:.{digits}f}" for value in (statistics.median(values), min(values), max(values)))
    return f"{median} ({least} to {most})"


@dataclass(frozen=True)
class Timing:
    """One side's rounds: seconds (of a step, a command), and seconds of them that went into waiting for data."""

    rounds: Sequence[tuple[float, float]]

    @property
    def seconds(self) -> float:
        """Their median."""
        return statistics.median(seconds for seconds, _ in self.rounds)

    @property
    def wait_share(self) -> float:
        """Median share of the time that went into waiting."""
        return statistics.median(waited / seconds for seconds, waited in self.rounds)

    def ratios(self, other: "Timing") -> list[float]:
        """How many times as fast as `other`, round by round."""
        return [theirs[0] / own[0] for own, theirs in zip(self.rounds, other.rounds, strict=True)]


# --- contenders: endless loops in processes of their own -----------------------------------------------------------


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
            if (torch := sys.modules.get("torch")) and torch.cuda.is_initialized():
                torch.cuda.synchronize()
            seconds = time.perf_counter() - self._began
            self._connection.send((seconds / self._steps, self._waited / self._steps))
        if self._taken in (0, self._steps):
            if self._taken == 0:
                self._connection.send(None)  # ready
            self._connection.recv()
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

    def waiting_for(self, loader: Iterable[Any]) -> Iterator[Any]:
        """The batches of `loader`, the time until each counted as waiting for data."""
        items, take, end = iter(loader), self.waiting(next), object()
        while (item := take(items, end)) is not end:
            yield item


Contender = tuple[Callable[..., None], tuple[Any, ...]]
"""(function, args): function(turn, *args) takes steps without end, `turn()` at the head of each"""


def take_turns(
    contenders: Mapping[str, Contender], *, rounds: int, steps: int, preload: Sequence[str]
) -> dict[str, Timing]:
    """Times `rounds` rounds of `steps` steps of each, after one that only warms up; `preload`: modules they share.

    Raises RuntimeError with the traceback of a contender that failed.
    """
    context = multiprocessing.get_context("forkserver")  # it imports everything once, and has neither threads nor a GPU
    context.set_forkserver_preload(list(preload))
    connections: dict[str, Connection] = {}
    processes = []

    def received(name: str) -> Any:
        answer = connections[name].recv()
        if isinstance(answer, str):
            raise RuntimeError(f"{name} failed:\n{answer}")
        return answer

    def turn_of(name: str) -> Callable[[], tuple[float, float]]:
        return lambda: (connections[name].send(None), received(name))[1]

    try:
        for name, contender in contenders.items():
            connections[name], theirs = context.Pipe()
            processes.append(context.Process(target=_contend, args=(theirs, steps, *contender)))
            processes[-1].start()
        for name in contenders:
            received(name)  # ready
        found = in_turns({name: turn_of(name) for name in contenders}, rounds)
    finally:
        for process in processes:
            process.kill()  # it waits for its next turn
            process.join()
    return {name: Timing(results) for name, results in found.items()}


def _contend(connection: Connection, steps: int, contender: Callable[..., None], args: tuple[Any, ...]) -> None:
    try:
        contender(Turn(connection, steps), *args)
    except BaseException:
        connection.send(traceback.format_exc())


def print_timings(timings: Mapping[str, Timing], *, batch: int) -> None:
    """A table with a line for each side; `batch`: pictures that its seconds are for."""
    rows = [("", "seconds", "pictures/s", "waiting for data")]
    for name, each in timings.items():
        rows.append((name, f"{each.seconds:.3f}", f"{batch / each.seconds:.2f}", f"{each.wait_share:.1%}"))
    print_table(*rows)


def print_ratio(timings: Mapping[str, Timing], ours: str, theirs: str) -> None:
    print(f"ratio {ours} to {theirs}: {spread(timings[ours].ratios(timings[theirs]))}")
