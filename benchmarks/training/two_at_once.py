"""Two trainings on one machine: steps a second of one alone and of two at once, by how their threads wait.

python -m benchmarks.training.two_at_once [--recipe photos-64] [--seconds 20]

The network and its optimizer alone (see `transformer`), each in a process with as many threads as torch takes, not
compiled. What is set in the environment stands in the first column; the first row is what the command line sets.
"""

import os
import subprocess
import sys
import time

from benchmarks.command import print_table, run

WAITS = ("GOMP_SPINCOUNT=1000", "", "GOMP_SPINCOUNT=10000", "GOMP_SPINCOUNT=100000", "OMP_WAIT_POLICY=PASSIVE")
"""GNU's OpenMP, which torch brings along on Linux: how often a thread looks before it sleeps, 300,000 times if unset"""


def rate(recipe: str, seconds: float) -> float:
    """Steps a second, in this process, begun when a line comes in."""
    from benchmarks.training.transformer import side

    take = side(recipe, 1, compiled=False, fused=False)
    take()
    print("ready", flush=True)
    sys.stdin.readline()
    began, steps = time.perf_counter(), 0
    while time.perf_counter() < began + seconds:
        take()
        steps += 1
    return steps / (time.perf_counter() - began)


def rates(num: int, wait: str, recipe: str, seconds: float) -> list[float]:
    """Of so many processes at once."""
    kept = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    given = dict([wait.split("=")]) if wait else {}
    command = [sys.executable, "-m", __spec__.name, "--recipe", recipe, "--seconds", str(seconds), "--child"]
    children = [
        subprocess.Popen(command, env=kept | given, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(num)
    ]
    for child in children:
        assert child.stdout is not None
        child.stdout.readline()
    return [float(child.communicate("go\n")[0]) for child in children]


def main(*, recipe: str = "photos-64", seconds: float = 20, child: bool = False) -> None:
    if child:
        print(rate(recipe, seconds))
        return
    rows = []
    for wait in WAITS:
        alone, both = rates(1, wait, recipe, seconds), rates(2, wait, recipe, seconds)
        rows.append((wait or "nothing", *(f"{each:.2f}" for each in (*alone, *both)), f"{sum(both) / alone[0]:.2f}"))
    print_table(("set", "alone, steps/s", "one of two", "the other", "both, of one alone"), *rows)


if __name__ == "__main__":
    run(main)
