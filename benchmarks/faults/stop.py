"""Training that is stopped at random moments, again and again: steps lost, seconds until it is gone, memory and files.

python -m benchmarks.faults.stop [--stops 10] [--apart 5] [--recipe toy-cats] [--stage train-vae] [--overrides A.B=C]
python -m benchmarks.faults.stop --stops 60 --apart 60        an hour; 60 seconds at most in each process

SIGTERM, to a process that is `ldmkit STAGE RECIPE` itself; each one resumes where the one before was stopped. Growth is
the slope of memory and of open files within each process after its first seconds; plots and previews make memory swing
by tens of MiB.
"""

import json
import random
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil

from benchmarks.command import run
from benchmarks.runs import ANY_QUALITY, PARTS, STAGES, Stage, finish, start
from ldmkit.recipe import find_recipe, load_recipe
from ldmkit.run.checkpoint import checkpoints
from ldmkit.run.folder import read_metrics

WARM_UP = 20.0
"""seconds of a process before its samples count: it is loading"""
Samples = list[tuple[float, int, int]]
"""of one process: (seconds, bytes held, open files)"""


def growth(samples: list[Samples], which: int) -> list[float]:
    """Slope a minute of each process that was looked at long enough."""
    long = [np.array(seen, dtype=float) for seen in samples if seen and seen[-1][0] - seen[0][0] > 20]
    return [float(np.polyfit(seen[:, 0] / 60, seen[:, which], 1)[0]) for seen in long]


def main(
    *,
    stops: int = 10,
    apart: float = 5.0,
    recipe: str = "toy-cats",
    stage: Stage = "train-vae",
    seed: int = 0,
    overrides: list[str] = [],  # noqa: B006 - read only
) -> None:
    part, rng = PARTS[stage], random.Random(seed)
    lengths = [f"{each}.steps={1_000_000 if each == part else 3}" for each in PARTS.values()]
    overrides = [*overrides, *lengths, *ANY_QUALITY, "data.num_pictures=200", f"{part}.log_every=1"]
    lost, took, codes, samples = 0, [], set(), list[Samples]()
    with tempfile.TemporaryDirectory(prefix="ldmkit-stop-") as name:
        scratch = Path(name)
        for before in STAGES[: STAGES.index(stage)]:
            finish(scratch, before, recipe, overrides=overrides)
        folder = scratch / "runs" / load_recipe(find_recipe(recipe)).name / part
        log = folder / "metrics.jsonl"
        for _ in range(stops):
            rows = len(read_metrics(log)) if log.is_file() else 0
            process, began = start(scratch, stage, recipe, overrides=overrides), time.monotonic()
            until, looked = began + 1e9, psutil.Process(process.pid)
            samples.append([])
            while (now := time.monotonic()) < until:
                if process.poll() is not None:
                    sys.exit(f"it ended by itself\n{process.communicate()[0]}")
                if until > now + 1e6 and log.is_file() and len(read_metrics(log)) > rows:  # it takes steps
                    until = now + rng.uniform(0, apart)
                if now - began > WARM_UP:
                    samples[-1].append((now, looked.memory_info().rss, looked.num_fds()))
                time.sleep(0.2)
            process.send_signal(signal.SIGTERM)
            process.communicate()
            took.append(time.monotonic() - now)
            codes.add(process.returncode)
            state = json.loads((checkpoints(folder / "checkpoints")[0] / "state.json").read_text())
            lost += int(read_metrics(log)[-1]["step"]) - int(state["step"])
    print(f"{stops} times SIGTERM: exit codes {codes}, steps lost {lost}, gone within {max(took):.1f} s")
    for what, which, unit in (("MiB of memory", 1, 2**20), ("open files", 2, 1)):
        if slopes := [slope / unit for slope in growth(samples, which)]:
            print(f"{what} a minute: {statistics.median(slopes):+.2f} (worst {max(slopes):+.2f})")
    sys.exit(codes != {143} or lost > 0)


if __name__ == "__main__":
    run(main)
