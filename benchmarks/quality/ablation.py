"""One U-Net trained in several ways on the same latents and text: schedules and predictions, ours and the seed's way.

python -m benchmarks.quality.ablation runs/NAME --stage train-t2i --steps 600 [--seeds 0 --seeds 1] [--only NAME ...]
    [--num 500] [--out DIR] [--reference DIR --kid-script SCRIPT]
python -m benchmarks.quality.ablation runs/NAME --minutes 10 --only "the recipe" --only "the seed, ddpm" ...
python -m benchmarks.quality.ablation runs/NAME --held-out-to DIR     pictures for --reference, as the run prepares them

The run needs finished captions, vae, latents and text: `ldmkit train RECIPE --only caption`, then train-vae, encode.
A toy-cats run is scored by how often a picture shows what its prompt asks for. SCRIPT measures KID: it is called as
`python SCRIPT REFERENCE GENERATED --json` and prints {"kid_x1000": ..., "std": ...}. Each result is a line of
DIR/results.jsonl; the same command again resumes where it stopped.

The seed's way: eps on linear betas, latents neither scaled nor centred and drawn once, AdamW at a constant 1e-4, no
average of the weights, no clipping, no caption dropout and so no guidance, no mirrored pictures. The seed draws with
1000 steps of DDPM: here it may choose the better one of 100 such steps and of the recipe's own sampler. With --minutes
the steps a second of every way are measured first, in turns, and each gets the steps that fit, so that its
learning-rate schedule ends with them.
"""

import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.command import run
from benchmarks.quality.results import Row, table
from benchmarks.quality.variants import Bench, UNet, export_held_out, open_run, short_run, train, with_overrides
from benchmarks.runs import PARTS
from benchmarks.turns import in_turns
from ldmkit.atomic import write_json
from ldmkit.errors import LdmkitError
from ldmkit.pipeline import Pipeline
from ldmkit.run.metrics import read_metrics

PLAIN: dict[str, Any] = {"weighting": "none", "timesteps": "uniform", "zero_terminal_snr": False}
COMBINATIONS: dict[str, dict[str, Any]] = {
    "linear eps": {"schedule": "linear", "prediction": "eps"},  # DDPM, Ho et al. 2020
    "linear eps p2": {"schedule": "linear", "prediction": "eps", "weighting": "p2"},
    "scaled_linear eps min_snr": {"schedule": "scaled_linear", "prediction": "eps", "weighting": "min_snr"},
    "linear v": {"schedule": "linear", "prediction": "v"},
    "linear zero_snr v": {"schedule": "linear", "prediction": "v", "zero_terminal_snr": True},  # Lin et al. 2024
    "cosine v": {"schedule": "cosine", "prediction": "v"},  # Salimans and Ho 2022
    "cosine v min_snr": {"schedule": "cosine", "prediction": "v", "weighting": "min_snr"},
    "cosine v p2": {"schedule": "cosine", "prediction": "v", "weighting": "p2"},
    "cosine x0": {"schedule": "cosine", "prediction": "x0"},
    "flow uniform": {"schedule": "flow", "prediction": "flow"},  # Liu et al. 2022
    "flow logit_normal": {"schedule": "flow", "prediction": "flow", "timesteps": "logit_normal"},  # Esser et al. 2024
}
"""name -> keys of [diffusion], beside those of `PLAIN`"""
THE_SEEDS = {
    **{f"diffusion.{key}": value for key, value in (PLAIN | COMBINATIONS["linear eps"]).items()},
    **{"diffusion.beta_start": 1e-4, "diffusion.beta_end": 0.02, "latents.normalize": False, "latents.draw": "once"},
    **{"data.flip": False, "t2i.caption_dropout": 0.0, "sampler.guidance_scale": 1.0},
}
THE_SEEDS_TRAINING = {
    **{"optimizer": "adamw", "learning_rate": 1e-4, "lr_schedule": "constant", "warmup_steps": 0},
    **{"betas": [0.9, 0.999], "weight_decay": 0.01, "grad_clip": 0.0, "ema_decays": []},
}
WAYS = (*COMBINATIONS, "the recipe", "the seed", "the seed, ddpm")
RATE_STEPS, WARM_STEPS = 16, 4
"""steps of a measurement of the rate, and how many of them only warm up"""


def overrides(shared: Pipeline, stage: UNet, name: str, *, steps: int, seed: int) -> dict[str, Any]:
    """Keys of the recipe that one way of training changes; "the recipe" changes its length alone."""
    section, keys = PARTS[stage], short_run(shared.recipe, stage, steps=steps, seed=seed)
    if name in COMBINATIONS:
        return keys | {f"diffusion.{key}": value for key, value in (PLAIN | COMBINATIONS[name]).items()}
    if name == "the recipe":
        return keys | {f"{section}.ema_decays": list(getattr(shared.recipe, section).ema_decays)}
    if name == "the seed, ddpm":
        keys["sampler"] = {"use": "ddpm", "steps": 100}
    return keys | {f"{section}.{key}": value for key, value in THE_SEEDS_TRAINING.items()} | THE_SEEDS


def trained(name: str) -> str:
    """What has the same weights: a way that differs in the sampler alone is trained once."""
    return name.removesuffix(", ddpm")


def rates(shared: Pipeline, stage: UNet, names: list[str], *, rounds: int = 3) -> dict[str, float]:
    """Steps a second of each way: medians over rounds in which they take turns, the first steps of each left out."""

    def rate(name: str) -> float:
        keys = overrides(shared, stage, name, steps=RATE_STEPS, seed=0) | {f"{PARTS[stage]}.log_every": 1}
        with tempfile.TemporaryDirectory() as folder:
            train(shared, with_overrides(shared.recipe, keys), stage, Path(folder))
            seconds = [row["seconds"] for row in read_metrics(Path(folder) / PARTS[stage] / "metrics.jsonl")]
        return (RATE_STEPS - WARM_STEPS) / max(seconds[-1] - seconds[WARM_STEPS - 1], 1e-3)

    found = in_turns({name: lambda name=name: rate(name) for name in names}, rounds, warm=0)
    return {name: statistics.median(values) for name, values in found.items()}


def main(
    run_dir: Path,
    *,
    stage: UNet = "train-t2i",
    steps: int = 600,
    minutes: float | None = None,
    seeds: list[int] = [0],  # noqa: B006 - read only
    only: list[str] = list(COMBINATIONS),  # noqa: B006 - read only
    num: int = 500,
    out: Path | None = None,
    reference: Path | None = None,
    kid_script: Path | None = None,
    held_out_to: Path | None = None,
) -> None:
    shared = open_run(run_dir)
    if held_out_to:
        print(f"{held_out_to}: {export_held_out(shared, held_out_to)} pictures")
        return
    if unknown := [name for name in only if name not in WAYS]:
        raise LdmkitError(f"--only {unknown[0]}: not one of {', '.join(WAYS)}")
    bench = Bench(shared, stage, out or run_dir / "ablation", num, reference, kid_script)
    lengths = dict.fromkeys(only, steps)
    if minutes is not None:  # a run that goes on must train as many steps as it began with
        file = bench.out / "rates.json"
        if not file.exists():
            write_json(file, rates(shared, stage, sorted({trained(name) for name in only})))
        speed = json.loads(file.read_text())
        lengths = {name: max(1, round(speed[trained(name)] * 60 * minutes)) for name in only}
    by_name: dict[str, list[Row]] = {}
    for seed in seeds:
        for name in only:
            keys = overrides(shared, stage, name, steps=lengths[name], seed=seed)
            shared_weights = any(trained(other) == trained(name) for other in only if other != name)
            row = bench.measure(name, keys, keep_weights=shared_weights)
            by_name.setdefault(name, []).append(row)
            print(f"seed {seed}: {name} done", file=sys.stderr, flush=True)
    print(table(by_name))


if __name__ == "__main__":
    run(main)
