"""What hostile pictures cost from scan to training: the peak memory of each stage's process and all that it starts.

    python benchmarks/hostile_stages.py [--steps 6] [--workers 2]

Every kind of picture of tests/corpus, the largest that are allowed among them, in one folder: scanned, captioned
(`sidecar`), trained on for some steps (the recipe toy-cats at 64x64) and encoded, each by a command of its own. Beside
it the same with as many harmless pictures: what is left is torch. Memory is the sum of proportional set sizes (Linux):
what processes share counts once. Exit code 1 where a stage fails, or a picture that scan took is not encoded.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

REPOSITORY = Path(__file__).parents[1]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "plugins")]

from ldmkit.data.pictures import scan  # noqa: E402 - found by the line above
from ldmkit.data.toy_cats import make_toy_cats  # noqa: E402
from tests.corpus import pictures  # noqa: E402

EVERY = 0.02
"""seconds between two looks at the memory"""


def held(process: psutil.Process) -> int:
    """Bytes of main memory that the process and those it started hold, what they share counted once."""
    total = 0
    for each in [process, *process.children(recursive=True)]:
        with suppress(psutil.Error):  # it has just ended
            total += each.memory_full_info().pss
    return total


def watched(command: Sequence[str], cwd: Path) -> tuple[int, int, str]:
    """(exit code, peak bytes, what it printed)."""
    with (cwd / "said.txt").open("w+", encoding="utf-8") as said:
        started = psutil.Popen(command, cwd=cwd, stdout=said, stderr=subprocess.STDOUT)
        peak = 0
        while True:
            with suppress(psutil.Error):
                peak = max(peak, held(started))
            try:
                code = started.wait(EVERY)
                break
            except psutil.TimeoutExpired:
                continue
        said.seek(0)
        return code, peak, said.read()


def stages(folder: Path, *, steps: int, workers: int) -> dict[str, Any]:
    """Peak of each stage over the pictures in `folder`/pictures, and what went wrong."""
    overrides = [
        "data.path=pictures",
        "data.max_bad=1.0",
        f"data.num_workers={workers}",
        "caption.use=sidecar",
        "caption.missing=empty",
        f"vae.steps={steps}",
        f"vae.eval_every={steps}",
    ]
    options = [word for override in overrides for word in ("--set", override)]
    ldmkit = [sys.executable, "-m", "ldmkit"]
    commands = {"scan": [*ldmkit, "data", "check", "pictures"]}
    commands |= {stage: [*ldmkit, stage, "toy-cats", *options] for stage in ("caption", "train-vae", "encode")}
    peaks, wrong = {}, []
    for stage, command in commands.items():
        code, peaks[stage], said = watched(command, folder)
        if (code and stage != "scan") or "Traceback" in said:
            wrong.append(f"{stage}: exit code {code}: {said.strip().splitlines()[-1]}")
    used = {entry.key for entry in scan(folder / "pictures", max_bad=1).entries}
    cached = folder / "runs" / "toy-cats" / "latents" / "pictures.json"
    if set(json.loads(cached.read_text(encoding="utf-8")) if cached.exists() else ()) != used:
        wrong.append("encode: not every picture that scan took is encoded")
    return {"peaks": peaks, "wrong": wrong, "used": len(used)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--workers", type=int, default=2)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ldmkit-hostile-") as name:
        hostile, harmless = Path(name) / "hostile", Path(name) / "harmless"
        kinds = [*pictures.kinds(), *pictures.largest()]
        pictures.write(hostile / "pictures", kinds)
        make_toy_cats(harmless / "pictures", num_pictures=len(kinds))
        found = {
            folder.name: stages(folder, steps=chosen.steps, workers=chosen.workers) for folder in (hostile, harmless)
        }
    print(f"{len(kinds)} kinds of pictures, {found['hostile']['used']} of them used; MB at most, by all processes")
    print(f"{'stage':<10} {'hostile':>8} {'harmless':>9}")
    for stage in found["hostile"]["peaks"]:
        print(
            f"{stage:<10} "
            + " ".join(f"{found[name]['peaks'][stage] / 1e6:{8 + (name == 'harmless')}.0f}" for name in found)
        )
    wrong = [f"{name}: {line}" for name, result in found.items() for line in result["wrong"]]
    print("\n".join(wrong) or "no stage failed, and every picture that scan took is encoded")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
