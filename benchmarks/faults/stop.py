"""Training that is stopped at random moments, again and again: steps lost, seconds until it is gone, memory and files.

python -m benchmarks.faults.stop [--stops 10] [--apart 5] [--recipe toy-cats] [--stage train-vae] [--overrides A.B=C]
python -m benchmarks.faults.stop --to group --by SIGHUP   --to process, group, worker or rank; --by SIGTERM, SIGINT, ...
python -m benchmarks.faults.stop --small                       toy-cats by small networks at 16x16: sooner at its steps
python -m benchmarks.faults.stop --stops 60 --apart 60        an hour; 60 seconds at most in each process

The process is `ldmkit STAGE RECIPE` itself, with two workers that decode; each one resumes where the one before was
stopped. A worker is asked to stop, which it ignores, and then killed: training saves what it has, and ends. A rank is
one of two processes that train together, as a launcher starts them; the other one must stop with it. Growth is the
slope of memory and of open files within each process after its first seconds; plots and previews make memory swing by
tens of MiB.
"""

import json
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Literal

import numpy as np
import psutil
from torch.distributed import TCPStore

from benchmarks.command import run
from benchmarks.runs import ANY_QUALITY, PARTS, STAGES, TINY, Stage, finish, start
from ldmkit.recipe import find_recipe, load_recipe
from ldmkit.run.checkpoint import checkpoints
from ldmkit.run.metrics import read_metrics

WARM_UP = 20.0
"""seconds of a process before its samples count: it is loading"""
Target = Literal["process", "group", "worker", "rank"]
Stop = Literal["SIGTERM", "SIGINT", "SIGHUP"]
Samples = list[tuple[float, int, int]]
"""of one process: (seconds, bytes held, open files)"""


def growth(samples: list[Samples], which: int) -> list[float]:
    """Slope a minute of each process that was looked at long enough."""
    long = [np.array(seen, dtype=float) for seen in samples if seen and seen[-1][0] - seen[0][0] > 20]
    return [float(np.polyfit(seen[:, 0] / 60, seen[:, which], 1)[0]) for seen in long]


def ranks(number: int) -> tuple[TCPStore | None, list[dict[str, str]]]:
    """What a launcher gives each of the processes to know; they meet at a port that is taken before they are told."""
    if number == 1:
        return None, [{}]
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    common = {"WORLD_SIZE": str(number), "LOCAL_WORLD_SIZE": str(number), "ACCELERATE_USE_CPU": "true"}
    common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    common |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
    return store, [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(number)]


def main(
    *,
    stops: int = 10,
    apart: float = 5.0,
    recipe: str = "toy-cats",
    stage: Stage = "train-vae",
    to: Target = "process",
    by: Stop = "SIGTERM",
    small: bool = False,
    seed: int = 0,
    overrides: list[str] = [],  # noqa: B006 - read only
) -> None:
    part, rng = PARTS[stage], random.Random(seed)
    lengths = [f"{each}.steps={1_000_000 if each == part else 3}" for each in PARTS.values()]
    overrides = [
        "data.num_workers=2",
        *(TINY if small else ()),
        *overrides,
        *lengths,
        *ANY_QUALITY,
        "data.num_pictures=200",
        f"{part}.log_every=1",
    ]
    lost, took, codes, samples = 0, [], set(), list[Samples]()
    with tempfile.TemporaryDirectory(prefix="ldmkit-stop-") as name:
        scratch = Path(name)
        for before in STAGES[: STAGES.index(stage)]:
            finish(scratch, before, recipe, overrides=overrides)
        folder = scratch / "runs" / load_recipe(find_recipe(recipe)).name / part
        log = folder / "metrics.jsonl"
        for _ in range(stops):
            rows = len(read_metrics(log)) if log.is_file() else 0
            store, environments = ranks(2 if to == "rank" else 1)
            began = time.monotonic()
            processes = [
                start(scratch, stage, recipe, overrides=overrides, own_group=True, env=env) for env in environments
            ]
            process = processes[0]
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
            number = getattr(signal, by)
            if to == "group":
                os.killpg(process.pid, number)
            elif to == "worker":
                worker = next(each for each in looked.children() if each.status() != psutil.STATUS_ZOMBIE)
                worker.send_signal(number)
                time.sleep(0.2)
                assert process.poll() is None
                assert worker.is_running()
                worker.kill()
            else:
                rng.choice(processes).send_signal(number)
            for each in processes:
                each.communicate()
            took.append(time.monotonic() - now)
            codes |= {each.returncode for each in processes}
            del store
            state = json.loads((checkpoints(folder / "checkpoints")[0] / "state.json").read_text())
            lost += int(read_metrics(log)[-1]["step"]) - int(state["step"])
    print(f"{stops} times {by} to the {to}: exit codes {codes}, steps lost {lost}, gone within {max(took):.1f} s")
    for what, which, unit in (("MiB of memory", 1, 2**20), ("open files", 2, 1)):
        if slopes := [slope / unit for slope in growth(samples, which)]:
            print(f"{what} a minute: {statistics.median(slopes):+.2f} (worst {max(slopes):+.2f})")
    sys.exit(codes != {1 if to == "worker" else 128 + getattr(signal, by)} or lost > 0)


if __name__ == "__main__":
    run(main)
