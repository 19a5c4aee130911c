"""Whether a change to the code left every number as it was: two checkouts run one small recipe, bit against bit.

python -m benchmarks.same_bits OTHER_CHECKOUT [--steps 50]

Compares each stage's losses and other logged numbers (but for times), each weight, checkpoint, cache and graph, and
each part's fingerprint. Then this checkout resumes a run that the other one was stopped in, and looks at a finished
one. Exit code 1 where anything differs.
"""

import json
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.command import run
from benchmarks.runs import ANY_QUALITY, PARTS, REPOSITORY, TINY, finish, numbers, start

RECIPE = str(REPOSITORY / "recipes" / "toy-cats.toml")
RUN = Path("runs", "toy-cats")


def stop_midway(folder: Path, part: str, steps: int, overrides: list[str], other: Path) -> int:
    """Stops the other checkout's training in a part; returns the number of steps that it made."""
    shutil.rmtree(folder / RUN / part)
    process = start(folder, "train", RECIPE, overrides=overrides, checkout=other)
    log = folder / RUN / part / "metrics.jsonl"
    while process.poll() is None and (not log.exists() or log.read_text().count("\n") < steps // 2):
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    process.communicate()
    return log.read_text().count("\n")


def contents(folder: Path) -> dict[str, str]:
    """Every number of the run in `folder`, of its bundle, and each part's fingerprint."""
    found = numbers(folder / "exports" / "toy-cats")
    for record in sorted((folder / RUN).glob("*/record.json")):
        found[f"{record.parent.name} fingerprint"] = json.loads(record.read_text())["fingerprint"]
        found |= numbers(record.parent)
    return found


def compare(what: str, first: dict[str, str], second: dict[str, str]) -> bool:
    other = [name for name in sorted(first.keys() | second.keys()) if first.get(name) != second.get(name)]
    print(f"{what}: {len(first) - len(other)} of {len(first)} equal" + "".join(f"\n  {name}" for name in other[:20]))
    return not other


def main(other: Path, *, steps: int = 50) -> None:
    other = other.resolve()
    often = {"steps": steps, "log_every": 1, "eval_every": steps // 3, "checkpoint_every": steps // 3}
    each_part = [f"{part}.{key}={value}" for part in PARTS.values() for key, value in often.items()]
    overrides = [*TINY, *each_part, *ANY_QUALITY, "data.num_pictures=120"]
    with tempfile.TemporaryDirectory() as scratch:
        old, new = Path(scratch, "old"), Path(scratch, "new")
        old.mkdir()
        finish(old, "train", RECIPE, overrides=overrides, checkout=other)
        shutil.copytree(old / "data", new / "data")  # the time of a caption's file is part of its fingerprint
        finish(new, "train", RECIPE, overrides=overrides)
        same = [compare("trained from nothing", contents(old), contents(new))]
        expected = contents(old)
        parts = json.loads(finish(old, "status", RECIPE, "--json", overrides=overrides))["parts"]
        print("a finished run of the other:", ", ".join(f"{row['part']} {row['state']}" for row in parts))
        same.append(all(row["state"] == "done" for row in parts))
        for part in PARTS.values():
            resumed = Path(scratch, f"resumed-{part}")
            shutil.copytree(old, resumed)
            done = stop_midway(resumed, part, steps, overrides, other)
            finish(resumed, "train", RECIPE, overrides=overrides)
            what = f"{part}, stopped at step {done} by the other, resumed here"
            same.append(compare(what, expected, contents(resumed)))
    sys.exit(0 if all(same) else 1)


if __name__ == "__main__":
    run(main)
