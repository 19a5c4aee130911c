"""Which schedule, prediction, weighting and timesteps: one U-Net trained with each on the same latents and text.

python benchmarks/ablation.py runs/NAME --stage train-t2i --steps 600 --seeds 0 1 2 [--only NAME ...] [--num 500]
    [--out DIR] [--reference DIR --kid SCRIPT] [--plot FILE.png] [--list]
python benchmarks/ablation.py runs/NAME --held-out-to DIR          pictures for --reference, as the run prepares them
python benchmarks/ablation.py runs/NAME --all-to DIR

The run needs finished captions, vae, latents and text: `ldmkit train RECIPE --only caption`, then train-vae, encode.
A toy-cats run is scored by how often a picture shows what its prompt asks for. SCRIPT measures KID: it is called as
`python SCRIPT REFERENCE GENERATED --json` and prints {"kid_x1000": ..., "std": ...}. Each result is a line of
DIR/results.jsonl; the same command again goes on where it stopped.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mistakes import told
from variant_table import line, plot, table
from variants import STAGES, Results, Row, Variant, export_pictures, open_run, short_run, with_overrides


def _diffusion(
    schedule: str, prediction: str, weighting: str = "none", timesteps: str = "uniform", *, zero_snr: bool = False
) -> dict[str, Any]:
    return {
        "diffusion.schedule": schedule,
        "diffusion.prediction": prediction,
        "diffusion.weighting": weighting,
        "diffusion.timesteps": timesteps,
        "diffusion.zero_terminal_snr": zero_snr,
    }


COMBINATIONS: dict[str, dict[str, Any]] = {
    "linear eps": _diffusion("linear", "eps"),  # DDPM, Ho et al. 2020
    "linear eps p2": _diffusion("linear", "eps", "p2"),
    "scaled_linear eps min_snr": _diffusion("scaled_linear", "eps", "min_snr"),
    "linear v": _diffusion("linear", "v"),
    "linear zero_snr v": _diffusion("linear", "v", zero_snr=True),  # Lin et al. 2024
    "cosine v": _diffusion("cosine", "v"),  # Salimans and Ho 2022
    "cosine v min_snr": _diffusion("cosine", "v", "min_snr"),
    "cosine v p2": _diffusion("cosine", "v", "p2"),
    "cosine x0": _diffusion("cosine", "x0"),
    "flow uniform": _diffusion("flow", "flow"),  # Liu et al. 2022
    "flow logit_normal": _diffusion("flow", "flow", timesteps="logit_normal"),  # Esser et al. 2024
}
"""name -> keys of the recipe"""


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="runs/NAME with finished captions, vae, latents and text")
    parser.add_argument("--stage", choices=STAGES, default="train-t2i", help="which U-Net (train-t2i)")
    parser.add_argument("--steps", type=int, default=600, help="optimizer steps of each (600)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=COMBINATIONS, default=list(COMBINATIONS))
    parser.add_argument("--num", type=int, default=500, help="pictures to draw of each (500)")
    parser.add_argument("--out", type=Path, help="results and pictures (RUN/ablation)")
    parser.add_argument("--reference", type=Path, help="folder of pictures that KID compares with")
    parser.add_argument("--kid", type=Path, metavar="SCRIPT", help="program that measures KID")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the table as well")
    parser.add_argument("--held-out-to", type=Path, metavar="DIR", help="only write the run's held-out pictures")
    parser.add_argument("--all-to", type=Path, metavar="DIR", help="only write all pictures of the run")
    parser.add_argument("--list", action="store_true", help="only print the names of the combinations")
    chosen = parser.parse_args(argv)
    if (chosen.reference is None) != (chosen.kid is None):
        parser.error("--reference and --kid go together")
    if min(chosen.steps, chosen.num) < 1:
        parser.error("--steps and --num must be at least 1")
    return chosen


def run(chosen: argparse.Namespace) -> None:
    shared = open_run(chosen.run)
    if chosen.held_out_to or chosen.all_to:
        for folder, held_out in ((chosen.held_out_to, True), (chosen.all_to, False)):
            if folder:
                print(f"{folder}: {export_pictures(shared, folder, held_out=held_out)} pictures")
        return
    results = Results(out=chosen.out or chosen.run / "ablation", reference=chosen.reference, kid_script=chosen.kid)
    by_name: dict[str, list[Row]] = {}
    for seed in chosen.seeds:
        keys = short_run(shared.recipe, chosen.stage, steps=chosen.steps, seed=seed)
        for name in chosen.only:
            recipe = with_overrides(shared.recipe, {**keys, **COMBINATIONS[name]})
            variant = Variant(name=name, recipe=recipe, stage=chosen.stage, num=chosen.num)
            row = results.measure(shared, variant)
            by_name.setdefault(name, []).append(row)
            print(line(row), file=sys.stderr, flush=True)
    print(table(by_name))
    if chosen.plot:
        plot(by_name, chosen.plot, title=f"{shared.recipe.name}: {chosen.stage}, {chosen.steps} steps")


@told
def main(argv: Sequence[str] | None = None) -> int:
    chosen = parse(argv)
    if chosen.list:
        print(*COMBINATIONS, sep="\n")
        return 0
    run(chosen)
    return 0


if __name__ == "__main__":
    sys.exit(main())
