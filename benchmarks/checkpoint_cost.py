"""What checkpoints cost: the same stage with many of them and with none, in turns.

python benchmarks/checkpoint_cost.py [--stage train-unet] [--recipe toy-cats] [--steps 120] [--every 20] [--rounds 5]

A checkpoint's cost is the difference of the two times over the number of checkpoints, their SHA-256, fsync and the
slowing down of the steps beside them included; its share is that at the recipe's own interval.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

from ldmkit.components.registry import Registry
from ldmkit.pipeline import Pipeline
from ldmkit.recipe import Recipe, find_recipe, load_recipe
from ldmkit.report import Reporter
from ldmkit.run.folder import read_metrics
from ldmkit.run.parts import PARTS, stage_names, stage_parts, trained_parts
from ldmkit.verify_resume import cut

NEVER = 10**9


def seconds(recipe: Recipe, part: str, every: int, scratch: Path) -> float:
    """Of the stage's steps, its last evaluation and its last checkpoint left out."""
    section = getattr(recipe, part).model_copy(
        update={"checkpoint_every": every, "eval_every": NEVER, "log_every": NEVER}
    )
    pipeline = Pipeline(
        recipe.model_copy(update={part: section}),
        registry=Registry.load([]),
        reporter=Reporter(quiet=True),
        runs_dir=scratch,
    )
    stage = PARTS[part].stage
    pipeline.run((stage,), forced=stage, ignore_gate=True)
    return read_metrics(pipeline.run_dir / part / "metrics.jsonl")[-1]["seconds"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=[PARTS[part].stage for part in trained_parts()], default="train-unet")
    parser.add_argument("--recipe", default="toy-cats")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--every", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    whole = load_recipe(find_recipe(options.recipe))
    part = stage_parts(options.stage)[0].name
    interval = getattr(whole, part).checkpoint_every
    with tempfile.TemporaryDirectory(prefix="ldmkit-cost-") as name:
        scratch = Path(name).resolve()
        short = cut(whole, steps=2, pictures=scratch / "none", scratch=scratch)
        before = stage_names()[: stage_names().index(options.stage)]
        registry, quiet = Registry.load([]), Reporter(quiet=True)
        Pipeline(short, registry=registry, reporter=quiet, runs_dir=scratch).run(before, ignore_gate=True)
        section = getattr(short, part).model_copy(update={"steps": options.steps})
        recipe = short.model_copy(update={part: section})
        many, none = [], []
        for number in range(options.rounds + 1):
            pair = (seconds(recipe, part, options.every, scratch), seconds(recipe, part, NEVER, scratch))
            if number:  # the first one warms up
                many.append(pair[0])
                none.append(pair[1])
        newest = max((scratch / whole.name / part / "checkpoints").glob("step_*"))
        size = sum(file.stat().st_size for file in newest.iterdir())
    # The save of the last step comes after the last number of the log.
    saves = (options.steps - 1) // options.every
    costs = [(one - other) / saves for one, other in zip(many, none, strict=True)]
    step = statistics.median(none) / options.steps
    cost = statistics.median(costs)
    print(f"{options.recipe}, {options.stage}: a step {step * 1e3:.1f} ms, a checkpoint of {size / 2**20:.1f} MiB")
    print(f"a checkpoint costs {cost * 1e3:.1f} ms ({min(costs) * 1e3:.1f} to {max(costs) * 1e3:.1f})")
    print(f"every {interval} steps: {cost / (interval * step + cost):.2%} of the wall time")


if __name__ == "__main__":
    main()
