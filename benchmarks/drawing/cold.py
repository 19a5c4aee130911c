"""Commands in cold processes, in turns: how long a newcomer waits, and how much memory it takes.

python -m benchmarks.drawing.cold [BUNDLE_DIR] [--runs 7]     start-up, and `generate` against a bare script
python -m benchmarks.drawing.cold --seed-sized DIR            `generate` against torch and transformers

`bare.py` makes the same onnxruntime calls for one picture by the bundle's own steps and guidance. DIR is as
`benchmarks.original.bundle` writes it: the seed's text U-Net and decoder and a text encoder of CLIP ViT-L/14's size,
random weights, one 256x256 picture, 20 steps of DDIM, guidance 7.5 in one doubled batch; torch (`in_torch.py`) runs in
inference mode on the notebook's own networks. All draw from the same noise, so the PNGs are compared as well.
"""

import json
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.command import Folder, print_table, run
from benchmarks.original.bundle import GUIDANCE, STEPS
from benchmarks.runs import REPOSITORY, watched
from benchmarks.turns import Timing, in_turns
from ldmkit import shipped
from ldmkit.diffusion.process import make_schedule
from ldmkit.runtime.find import default_bundle
from ldmkit.runtime.manifest import read_manifest

LDMKIT = [sys.executable, "-m", "ldmkit"]


def once(name: str, command: Sequence[str]) -> tuple[float, float]:
    """(seconds, most MiB held) of a command. Raises RuntimeError with what it printed where it fails."""
    code, seconds, peak, said = watched(command, REPOSITORY)
    if code:
        raise RuntimeError(f"{name} failed:\n{said}")
    return seconds, peak / 2**20


def measure(commands: Mapping[str, Sequence[str]], runs: int) -> dict[str, list[tuple[float, float]]]:
    """Prints a table of what each command takes; the rounds' results."""
    found = in_turns({name: lambda name=name: once(name, commands[name]) for name in commands}, runs)
    rows = [("", "seconds", "fastest", "peak MiB")]
    for name, results in found.items():
        taken, peaks = zip(*results, strict=True)
        rows.append((name, f"{statistics.median(taken):.2f}", f"{min(taken):.2f}", f"{max(peaks):.0f}"))
    print_table(*rows)
    return found


def main(
    bundle: Folder = None, *, prompt: str = "a cute orange cat", runs: int = 7, seed_sized: Path | None = None
) -> None:
    bundle = seed_sized / "bundle" if seed_sized else bundle
    folder = (bundle or default_bundle(Path("exports"), shipped.exports_dir())).resolve()
    with tempfile.TemporaryDirectory() as temporary:
        picture, out = Path(temporary) / "other.png", Path(temporary) / "out"
        # The same file again and again; `generate` would not overwrite one, so it gets a folder.
        generate = [*LDMKIT, "generate", prompt, "--bundle", str(folder), "--provider", "cpu", "--out", str(out)]
        if seed_sized:
            words = [str(seed_sized.resolve() / "torch"), prompt, str(picture), str(STEPS), str(GUIDANCE)]
            other, commands = "torch", {"torch": [sys.executable, "-m", "benchmarks.drawing.in_torch", *words]}
        else:
            other = "a bare script"
            commands = {
                "ldmkit --help": [*LDMKIT, "--help"],
                "ldmkit recipe check": [*LDMKIT, "recipe", "check", "toy-cats"],
                other: bare_command(folder, prompt, picture),
            }
            generate += ["--sampler", "euler"]
        found = measure({**commands, "ldmkit generate": generate}, runs)
        pictures = [np.asarray(Image.open(path), dtype=int) for path in (picture, next(out.glob("*-0.png")))]
    ours, theirs = Timing(found["ldmkit generate"]), Timing(found[other])
    of_time = statistics.median(1 / ratio for ratio in ours.ratios(theirs))
    of_memory = max(peak for _, peak in ours.rounds) / max(peak for _, peak in theirs.rounds)
    print(f"ratio ldmkit generate / {other}: {of_time:.2f} of the time, {of_memory:.2f} of the memory")
    difference = np.abs(pictures[0] - pictures[1])
    print(f"the pictures differ by {difference.mean():.2f} of 255 on average, {difference.max()} at most")
    if not seed_sized and difference.max() > 1:
        sys.exit("the two draw different pictures")


def bare_command(folder: Path, prompt: str, picture: Path) -> list[str]:
    """`bare.py` with the numbers of the bundle in `folder`."""
    manifest, _ = read_manifest(folder)
    grid = make_schedule(**manifest.schedule.model_dump()).grid(manifest.defaults.steps)
    shape = (manifest.latent.channels, manifest.latent.height, manifest.latent.width)
    numbers = (*(each.tolist() for each in grid), manifest.defaults.guidance_scale, manifest.prediction, shape)
    script = str(Path(__file__).with_name("bare.py"))
    return [sys.executable, script, str(folder), prompt, str(picture), json.dumps(numbers)]


if __name__ == "__main__":
    run(main)
