"""How long a newcomer waits: cold processes, median of several, and what they load.

python benchmarks/cold_start.py [--runs 7] [--bundle DIR]
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WATCHED = ("torch", "transformers", "pydantic", "numpy")


def seconds(command: list[str], runs: int) -> float:
    """Median wall time of `command` in fresh processes, after one that warms the disk cache."""
    times = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def loaded(arguments: list[str]) -> list[str]:
    """Which of the watched packages a command loads."""
    script = (
        "import sys\nfrom ldmkit.cli import main\n"
        f"sys.argv = ['ldmkit', *{arguments!r}]\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        f"print('LOADED', *[name for name in {WATCHED!r} if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    return next(line for line in done.stdout.splitlines() if line.startswith("LOADED")).split()[1:]


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--bundle", type=Path, help="default: the one that `ldmkit generate` takes")
    chosen = parser.parse_args()
    bundle = ["--bundle", str(chosen.bundle)] if chosen.bundle else []
    with tempfile.TemporaryDirectory() as folder:
        commands = {
            "ldmkit --help": ["--help"],
            "ldmkit recipe check toy-cats": ["recipe", "check", "toy-cats"],
            "ldmkit generate, one picture": ["generate", "a cute orange cat", *bundle, "--out", folder],
        }
        for name, arguments in commands.items():
            wall = seconds([sys.executable, "-m", "ldmkit", *arguments], chosen.runs)
            print(f"{name:<32} {wall:6.2f} s   loads: {', '.join(loaded(arguments)) or 'none'} of {', '.join(WATCHED)}")


if __name__ == "__main__":
    main()
