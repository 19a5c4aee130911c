"""Whole commands in fresh processes, timed in turns, with the most memory that each took."""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Cold:
    """One command's runs, in the order of the rounds."""

    seconds: Sequence[float]
    peak_mib: Sequence[float]
    """largest resident memory of the process"""

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def peak(self) -> float:
        return max(self.peak_mib)

    def ratio(self, other: "Cold") -> float:
        """Median over the rounds of its time as a multiple of the other's."""
        return statistics.median(own / theirs for own, theirs in zip(self.seconds, other.seconds, strict=True))


def in_turns(commands: Mapping[str, Sequence[str]], runs: int) -> dict[str, Cold]:
    """`runs` rounds of all commands after one that warms the disk cache, every other one the other way round.

    Raises RuntimeError with what a command wrote where it fails.
    """
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for number in range(runs + 1):
        for name in list(commands)[:: 1 if number % 2 else -1]:
            result = _once(name, commands[name])
            if number:
                found[name].append(result)
    return {name: Cold([s for s, _ in results], [m for _, m in results]) for name, results in found.items()}


def _once(name: str, command: Sequence[str]) -> tuple[float, float]:
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert process.stdout is not None
        words = process.stdout.read()
        # By itself, since the usage of all children at once knows only the largest of them.
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{name} failed:\n{words.decode(errors='replace')}")
    return seconds, usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def print_table(results: Mapping[str, Cold]) -> None:
    """A line for each command."""
    width = max(len(name) for name in results)
    print(f"{'':{width}}  seconds (fastest)  peak MiB")
    for name, cold in results.items():
        print(f"{name:{width}}  {cold.median:7.2f}  ({min(cold.seconds):7.2f})  {cold.peak:8.0f}")
