"""SIGTERM to real training at random moments: steps lost, and seconds until the process is gone.

python benchmarks/stop.py [--stops 10] [--recipe toy-cats] [--stage train-vae] [--seed 0] [--set A.B=C ...]

The stage's process is `ldmkit STAGE RECIPE` itself; each one goes on where the one before was stopped.
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ldmkit.recipe import find_recipe, load_recipe
from ldmkit.run.checkpoint import checkpoints
from ldmkit.run.folder import read_metrics
from ldmkit.run.parts import PARTS, stage_names, stage_parts, trained_parts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stops", type=int, default=10)
    parser.add_argument("--recipe", default="toy-cats")
    parser.add_argument("--stage", choices=[PARTS[part].stage for part in trained_parts()], default="train-vae")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    options = parser.parse_args()
    part = stage_parts(options.stage)[0].name
    overrides = [*options.overrides, "data.num_pictures=200", f"{part}.log_every=1", f"{part}.steps=1000000"]
    recipe = load_recipe(find_recipe(options.recipe), overrides)
    command = [sys.executable, "-m", "ldmkit"]
    settings = [argument for override in overrides for argument in ("--set", override)]
    rng = random.Random(options.seed)
    lost, took, codes = [], [], set()
    with tempfile.TemporaryDirectory(prefix="ldmkit-stop-") as scratch:
        for stage in stage_names()[: stage_names().index(options.stage)]:
            arguments = [*settings, "--set", "vae.steps=3"] if stage == "train-vae" else settings
            subprocess.run([*command, stage, options.recipe, *arguments], cwd=scratch, check=True, capture_output=True)
        folder = Path(scratch) / "runs" / recipe.name / part
        for _ in range(options.stops):
            log = folder / "metrics.jsonl"
            rows = len(read_metrics(log)) if log.is_file() else 0
            with subprocess.Popen(
                [*command, options.stage, options.recipe, *settings], cwd=scratch, stdout=subprocess.DEVNULL
            ) as process:
                while not log.is_file() or len(read_metrics(log)) <= rows:  # until it takes steps
                    assert process.poll() is None, "it ended by itself"
                    time.sleep(0.2)
                time.sleep(rng.uniform(0, 5))
                asked = time.monotonic()
                process.send_signal(signal.SIGTERM)
                codes.add(process.wait())
                took.append(time.monotonic() - asked)
            state = json.loads((checkpoints(folder / "checkpoints")[0] / "state.json").read_text())
            lost.append(int(read_metrics(log)[-1]["step"]) - int(state["step"]))
    print(f"{options.stops} times SIGTERM: exit codes {codes}, steps lost {sum(lost)}, gone within {max(took):.1f} s")
    return int(codes != {143} or any(lost))


if __name__ == "__main__":
    sys.exit(main())
