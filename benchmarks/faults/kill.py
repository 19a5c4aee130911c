"""Seeded SIGKILLs over the training stages, many of them inside a save: how many bits differ in the end.

python -m benchmarks.faults.kill [--kills 300] [--steps 9] [--seed 0]

`ldmkit verify-resume` on the tiny recipe of `benchmarks.runs`.
"""

import json
import sys
import tempfile
from pathlib import Path

from benchmarks.command import print_table, run
from benchmarks.runs import PARTS, REPOSITORY, TINY, finish


def main(*, kills: int = 300, steps: int = 9, seed: int = 0) -> None:
    counts = {"kills": str(-(-kills // len(PARTS))), "steps": str(steps), "seed": str(seed)}
    words = [word for name, value in counts.items() for word in (f"--{name}", value)]
    with tempfile.TemporaryDirectory(prefix="ldmkit-kill-") as name:
        recipe = str(REPOSITORY / "recipes" / "toy-cats.toml")
        output = finish(Path(name), "verify-resume", recipe, *words, "--json", overrides=TINY)
    stages = json.loads(output[output.index("{") :])["stages"]
    columns = ("stage", "kills", "inside_saves", "runs", "steps", "different_steps", "files", "different_files")
    print_table([column.replace("_", " ") for column in columns], *([row[key] for key in columns] for row in stages))
    total, inside = (sum(row[key] for row in stages) for key in ("kills", "inside_saves"))
    same = all(row["same"] for row in stages)
    print(f"{total} kills, {inside} of them inside a save ({inside / total:.0%})")
    print("0 bits different" if same else "BITS DIFFER")
    sys.exit(not same)


if __name__ == "__main__":
    run(main)
