"""What checkpoints cost: the same stage with many of them and with none, in turns.

python -m benchmarks.faults.checkpoint_cost [--stage train-unet] [--recipe toy-cats] [--steps 120] [--every 20]

A checkpoint's cost is the difference of the two times over the number of checkpoints, their SHA-256, fsync and the
slowing down of the steps beside them included; its share is that at the recipe's own interval.
"""

import shutil
import statistics
import tempfile
from pathlib import Path

from benchmarks.command import run
from benchmarks.runs import ANY_QUALITY, PARTS, STAGES, Stage, finish
from benchmarks.turns import in_turns, spread
from ldmkit.recipe import find_recipe, load_recipe
from ldmkit.run.metrics import read_metrics

NEVER = 10**9


def main(
    *, stage: Stage = "train-unet", recipe: str = "toy-cats", steps: int = 120, every: int = 20, rounds: int = 5
) -> None:
    part, whole = PARTS[stage], load_recipe(find_recipe(recipe))
    interval = getattr(whole, part).checkpoint_every
    lengths = [f"{each}.steps={steps if each == part else 2}" for each in PARTS.values()]
    rarely = [f"{part}.{key}_every={NEVER}" for key in ("eval", "sample", "log")]
    overrides = [*lengths, *rarely, *ANY_QUALITY, "data.num_pictures=64"]
    with tempfile.TemporaryDirectory(prefix="ldmkit-cost-") as name:
        scratch = Path(name)
        folder = scratch / "runs" / whole.name / part

        def seconds(checkpoint_every: int) -> float:
            """Of the stage's steps, its last evaluation and its last checkpoint left out."""
            shutil.rmtree(folder, ignore_errors=True)
            finish(scratch, stage, recipe, overrides=[*overrides, f"{part}.checkpoint_every={checkpoint_every}"])
            return float(read_metrics(folder / "metrics.jsonl")[-1]["seconds"])

        for before in STAGES[: STAGES.index(stage)]:
            finish(scratch, before, recipe, overrides=overrides)
        found = in_turns({"many": lambda: seconds(every), "none": lambda: seconds(NEVER)}, rounds)
        size = sum(file.stat().st_size for file in max((folder / "checkpoints").glob("step_*")).iterdir())
    # The save of the last step comes after the last number of the log.
    saves = (steps - 1) // every
    costs = [(many - none) / saves for many, none in zip(found["many"], found["none"], strict=True)]
    step, cost = statistics.median(found["none"]) / steps, statistics.median(costs)
    print(f"{recipe}, {stage}: a step {step * 1e3:.1f} ms, a checkpoint of {size / 2**20:.1f} MiB")
    print(f"a checkpoint costs {spread([each * 1e3 for each in costs], 1)} ms")
    print(f"every {interval} steps: {cost / (interval * step + cost):.2%} of the wall time")


if __name__ == "__main__":
    run(main)
