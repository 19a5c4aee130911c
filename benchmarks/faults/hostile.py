"""What hostile pictures cost from scan to training: the peak memory of each stage's process and all that it starts.

python -m benchmarks.faults.hostile [--steps 6] [--workers 2]

Every kind of picture of tests/corpus, the largest that are allowed among them, in one folder: scanned, captioned
(`sidecar`), trained on for some steps (the recipe toy-cats at 64x64) and encoded, each by a command of its own. Beside
it the same with as many harmless pictures: what is left is torch. Memory is the sum of proportional set sizes (Linux):
what processes share counts once. Exit code 1 where a stage fails, or a picture that scan took is not encoded.
"""

import json
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import psutil

from benchmarks.command import print_table, run
from benchmarks.runs import watched
from ldmkit.data.pictures import scan
from ldmkit.data.toy_cats import make_toy_cats
from tests.corpus import pictures


def held(process: psutil.Process) -> int:
    """Bytes of main memory that the process and those it started hold, what they share counted once."""
    total = 0
    for each in [process, *process.children(recursive=True)]:
        with suppress(psutil.Error):  # it has just ended
            total += each.memory_full_info().pss
    return total


def stages(folder: Path, *, steps: int, workers: int) -> tuple[dict[str, int], list[str], int]:
    """Peak of each stage over the pictures in `folder`/pictures, what went wrong, and how many were used."""
    data = ("data.path=pictures", "data.max_bad=1.0", f"data.num_workers={workers}")
    rest = ("caption.use=sidecar", "caption.missing=empty", f"vae.steps={steps}", f"vae.eval_every={steps}")
    options = [word for override in (*data, *rest) for word in ("--set", override)]
    commands = {"scan": ["data", "check", "pictures"]}
    commands |= {stage: [stage, "toy-cats", *options] for stage in ("caption", "train-vae", "encode")}
    peaks, wrong = {}, []
    for stage, command in commands.items():
        code, _, peaks[stage], said = watched([sys.executable, "-m", "ldmkit", *command], folder, held=held)
        if (code and stage != "scan") or "Traceback" in said:
            wrong.append(f"{folder.name}: {stage}: exit code {code}: {said.strip().splitlines()[-1]}")
    used = {entry.key for entry in scan(folder / "pictures", max_bad=1).entries}
    cached = folder / "runs" / "toy-cats" / "latents" / "pictures.json"
    if set(json.loads(cached.read_text(encoding="utf-8")) if cached.exists() else ()) != used:
        wrong.append(f"{folder.name}: encode: not every picture that scan took is encoded")
    return peaks, wrong, len(used)


def main(*, steps: int = 6, workers: int = 2) -> None:
    kinds = [*pictures.kinds(), *pictures.largest()]
    with tempfile.TemporaryDirectory(prefix="ldmkit-hostile-") as name:
        hostile, harmless = Path(name) / "hostile", Path(name) / "harmless"
        pictures.write(hostile / "pictures", kinds)
        make_toy_cats(harmless / "pictures", num_pictures=len(kinds))
        found = [stages(folder, steps=steps, workers=workers) for folder in (hostile, harmless)]
    print(f"{len(kinds)} kinds of pictures, {found[0][2]} of them used; MB at most, by all processes")
    rows = [(stage, *(f"{peaks[stage] / 1e6:.0f}" for peaks, _, _ in found)) for stage in found[0][0]]
    print_table(("stage", "hostile", "harmless"), *rows)
    wrong = [line for _, lines, _ in found for line in lines]
    print("\n".join(wrong) or "no stage failed, and every picture that scan took is encoded")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    run(main)
