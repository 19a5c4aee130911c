"""Whether a change to the code left every number as it was: two checkouts run one small recipe, bit against bit.

    python -m benchmarks.same_bits OTHER_CHECKOUT [--steps 50]

Compares each stage's losses and other logged numbers (but for times), each weight, checkpoint, cache and graph, and
each part's fingerprint. Then this checkout resumes a run that the other one was stopped in, and looks at a finished
one. Exit code 1 where anything differs.
"""

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.tiny_recipe import TINY

HERE = Path(__file__).parents[1]
TIMES = ("seconds", "loader_wait")
TRAINED = ("vae", "unet", "t2i")
PARTS = ("captions", "vae", "latents", "text", "unet", "t2i", "bundle")


def start(checkout: Path, folder: Path, steps: int, command: str, *extra: str) -> subprocess.Popen[str]:
    cut = [f"{part}.{key}" for part in ("vae", "unet", "t2i") for key in (f"steps={steps}", "log_every=1")]
    cut += [
        f"{part}.{key}={steps // 3}" for part in ("vae", "unet", "t2i") for key in ("eval_every", "checkpoint_every")
    ]
    cut += ["data.num_pictures=120", "gate.min_psnr=0", "gate.min_ssim=0"]
    overrides = [word for each in (*TINY, *cut) for word in ("--set", each)]
    recipe = str(HERE / "recipes" / "toy-cats.toml")
    return subprocess.Popen(
        [sys.executable, "-m", "ldmkit", command, recipe, *overrides, *extra],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": f"{checkout}{os.pathsep}{checkout / 'plugins'}"},
        stdout=subprocess.PIPE,
        text=True,
    )


def train(checkout: Path, folder: Path, steps: int) -> None:
    folder.mkdir(exist_ok=True)
    process = start(checkout, folder, steps, "train")
    output, _ = process.communicate()
    if process.returncode:
        sys.exit(f"{checkout}: exit code {process.returncode}\n{output}")


def stop_midway(checkout: Path, folder: Path, steps: int, part: str) -> int:
    """Stops the checkout's training in a part; returns the number of steps that it made."""
    shutil.rmtree(folder / "runs" / "toy-cats" / part)
    process = start(checkout, folder, steps, "train")
    log = folder / "runs" / "toy-cats" / part / "metrics.jsonl"
    while process.poll() is None and (not log.exists() or log.read_text().count("\n") < steps // 2):
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    process.communicate()
    return log.read_text().count("\n")


def contents(folder: Path) -> dict[str, str]:
    """Every number of a run and its bundle by name."""
    run, found = folder / "runs" / "toy-cats", {}
    for part in PARTS:
        found[f"{part} fingerprint"] = json.loads((run / part / "record.json").read_text())["fingerprint"]
    for log in sorted(run.glob("*/metrics.jsonl")):
        for line in log.read_text().splitlines():
            row = json.loads(line)
            numbers = {key: float(value).hex() for key, value in row.items() if key not in TIMES}
            found[f"{log.parent.name} step {row['step']}"] = json.dumps(numbers, sort_keys=True)
    binary = ("*.safetensors", "*.bin", "*.npy", "*.onnx", "*.png")
    for root in (run, folder / "exports" / "toy-cats"):
        for path in sorted(path for kind in binary for path in root.rglob(kind)):
            if "loss" not in path.name:  # a plot
                found[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def compare(what: str, first: dict[str, str], second: dict[str, str]) -> bool:
    other = [name for name in sorted(first.keys() | second.keys()) if first.get(name) != second.get(name)]
    print(f"{what}: {len(first) - len(other)} of {len(first)} equal" + "".join(f"\n  {name}" for name in other[:20]))
    return not other


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, metavar="OTHER_CHECKOUT")
    parser.add_argument("--steps", type=int, default=50)
    asked = parser.parse_args()
    other = asked.other.resolve()
    with tempfile.TemporaryDirectory() as scratch:
        old, new = Path(scratch, "old"), Path(scratch, "new")
        train(other, old, asked.steps)
        shutil.copytree(old / "data", new / "data")  # the time of a caption's file is part of its fingerprint
        train(HERE, new, asked.steps)
        same = [compare("trained from nothing", contents(old), contents(new))]
        expected = contents(old)
        state, _ = start(HERE, old, asked.steps, "status", "--json").communicate()
        parts = json.loads(state)["parts"]
        print("a finished run of the other:", ", ".join(f"{row['part']} {row['state']}" for row in parts))
        same.append(all(row["state"] == "done" for row in parts))
        for part in TRAINED:
            resumed = Path(scratch, f"resumed-{part}")
            shutil.copytree(old, resumed)
            done = stop_midway(other, resumed, asked.steps, part)
            train(HERE, resumed, asked.steps)
            same.append(
                compare(f"{part}, stopped at step {done} by the other, resumed here", expected, contents(resumed))
            )
    sys.exit(0 if all(same) else 1)


if __name__ == "__main__":
    main()
