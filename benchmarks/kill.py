"""Seeded SIGKILLs over the training stages, half of them aimed into a save: how many bits differ in the end.

python benchmarks/kill.py [--kills 300] [--steps 9] [--seed 0]

What `ldmkit verify-resume` does for a recipe of one's own, on the tiny one of `tiny_recipe.py`.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tiny_recipe import tiny_recipe

from ldmkit.run.parts import PARTS, trained_parts
from ldmkit.verify_resume import ResumeCheck, cut


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=300, help="of all stages together")
    parser.add_argument("--steps", type=int, default=9, help="of each stage")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="ldmkit-kill-") as name:
        scratch = Path(name).resolve()
        recipe = cut(tiny_recipe(), steps=options.steps, pictures=scratch / "none", scratch=scratch)
        check = ResumeCheck(recipe, scratch, seed=options.seed)
        verdicts = []
        for number, part in enumerate(trained_parts()):
            share = (options.kills + number) // len(trained_parts())
            verdicts.append(check.check(PARTS[part].stage, kills=share, tell=lambda text: print(text, file=sys.stderr)))
    print(" ".join(f"{heading:>10}" for heading in ("stage", "kills", "in a save", "runs", "compared", "different")))
    for v in verdicts:
        row = (v.stage, v.kills, v.inside_saves, v.runs, v.compared, len(v.different))
        print(" ".join(f"{cell:>10}" for cell in row))
    kills, inside = sum(v.kills for v in verdicts), sum(v.inside_saves for v in verdicts)
    print(f"{kills} kills, {inside} of them inside a save ({inside / kills:.0%}), in {time.monotonic() - began:.0f} s")
    print("BITS DIFFER" if any(v.different for v in verdicts) else "0 bits different")
    return int(any(v.different for v in verdicts))


if __name__ == "__main__":
    sys.exit(main())
