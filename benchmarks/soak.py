"""A stage that is killed again and again for as long as you like: memory and open files stay flat, the loss is equal.

python benchmarks/soak.py [--minutes 60] [--kill-every 60] [--steps 3000] [--stage train-unet]

The tiny recipe of `tiny_recipe.py`: trained once undisturbed, then killed (SIGKILL) every so many seconds and resumed
until it is done, over and over. Growth is that within each process after its first seconds, from the median of the
first third of its samples to that of the last, a minute; plots and previews make memory swing by tens of MiB.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from tiny_recipe import tiny_recipe

from ldmkit.run.parts import PARTS, trained_parts
from ldmkit.verify_resume import ResumeCheck, cut

WARM_UP = 20.0
"""seconds of a process before its samples count: it is loading"""
EVERY = 0.5


class Soak(ResumeCheck):
    """Kills by the clock, and looks at each process while it lives."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.kill_every = float("inf")
        self.risk = 0.0
        self.samples: list[list[tuple[float, int, int]]] = []
        """of each process: (seconds, bytes held, open files)"""

    def _wait(self, process: Any) -> None:
        began, seen = time.monotonic(), []
        looked = psutil.Process(process.pid)
        while process.is_alive():
            process.join(EVERY)
            age = time.monotonic() - began
            try:
                if age > WARM_UP:
                    seen.append((age, looked.memory_info().rss, looked.num_fds()))
            except psutil.NoSuchProcess:
                break
            if age > self.kill_every:
                process.kill()
                process.join()
        self.samples.append(seen)


def growth(samples: list[list[tuple[float, int, int]]], which: int) -> list[float]:
    """A minute, of each process that was looked at long enough."""
    found = []
    for seen in samples:
        third = len(seen) // 3
        if third >= 3:
            first, last = seen[:third], seen[-third:]
            ends = [statistics.median(sample[which] for sample in part) for part in (first, last)]
            minutes = (statistics.median(s[0] for s in last) - statistics.median(s[0] for s in first)) / 60
            found.append((ends[1] - ends[0]) / minutes)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--kill-every", type=float, default=60, help="seconds")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--stage", choices=[PARTS[part].stage for part in trained_parts()], default="train-unet")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ldmkit-soak-") as name:
        scratch = Path(name).resolve()
        recipe = cut(tiny_recipe(), steps=options.steps, pictures=scratch / "none", scratch=scratch)
        part = {"train-vae": "vae", "train-unet": "unet", "train-t2i": "t2i"}[options.stage]
        seldom = {"checkpoint_every": 50, "eval_every": 500, "log_every": 10}
        recipe = recipe.model_copy(update={part: getattr(recipe, part).model_copy(update=seldom)})
        soak = Soak(recipe, scratch)
        began = time.monotonic()
        verdict = soak.undisturbed(options.stage)
        soak.kill_every = options.kill_every
        while time.monotonic() - began < options.minutes * 60 or not verdict.runs:
            soak.run_to_the_end(verdict, sys.maxsize)
    memory, files = growth(soak.samples, 1), growth(soak.samples, 2)
    print(f"{(time.monotonic() - began) / 60:.1f} minutes, {verdict.kills} kills, {verdict.runs} runs to the end")
    print(f"steps and weights compared: {verdict.compared}, different: {len(verdict.different)}")
    if memory:
        print(f"memory: {statistics.median(memory) / 2**20:+.2f} MiB a minute (worst {max(memory) / 2**20:+.2f})")
        held = [sample[1] / 2**20 for sample in max(soak.samples, key=len)]
        print(f"  between {min(held):.0f} and {max(held):.0f} MiB in the process that lived longest")
        print(f"open files: {statistics.median(files):+.2f} a minute (worst {max(files):+.2f})")
    return int(bool(verdict.different))


if __name__ == "__main__":
    sys.exit(main())
