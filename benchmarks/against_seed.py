"""Pictures at equal minutes, the same networks: the recipe against the seed's way of training.

python benchmarks/against_seed.py runs/NAME --minutes 10 --stage train-t2i --seeds 0 1 2 [--num 500] [--out DIR]
    [--reference DIR --kid SCRIPT] [--seed-steps 100] [--parallel] [--plot FILE.png]

The seed's way: eps on linear betas, latents neither scaled nor centred and drawn once, AdamW at a constant 1e-4, no
average of the weights, no clipping, no caption dropout and so no guidance, no mirrored pictures. Both ways train on
the same latents and captions of the run (see ablation.py). Their steps a second are measured first, in turns; each
then gets the steps that fit into the minutes, so that its learning-rate schedule ends with them. The seed draws with
1000 steps of DDPM: here it may choose the better one of fewer such steps and of the recipe's own sampler.
Each result is a line of DIR/results.jsonl; the same command again goes on where it stopped.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from mistakes import told
from variant_table import line, plot, summary, table
from variants import STAGES, Results, Row, Shared, Variant, open_run, short_run, train, with_overrides

from ldmkit.atomic import write_json
from ldmkit.errors import LdmkitError
from ldmkit.run.folder import fingerprint, read_metrics

ARMS = ("ours", "seed")
ROUNDS, ROUND_STEPS, WARM_STEPS = 3, 16, 4
"""turns of the measurement of rates, steps in each, and how many of them only warm up"""


def overrides(shared: Shared, arm: str, stage: str, *, steps: int, seed: int) -> dict[str, Any]:
    """Keys of the recipe for one arm; ours is the recipe as it is, averages included."""
    section = STAGES[stage][0]
    length = short_run(shared.recipe, stage, steps=steps, seed=seed)
    if arm == "ours":
        return {**length, f"{section}.ema_decays": list(getattr(shared.recipe, section).ema_decays)}
    return {
        **length,
        "diffusion.schedule": "linear",
        "diffusion.beta_start": 1e-4,
        "diffusion.beta_end": 0.02,
        "diffusion.zero_terminal_snr": False,
        "diffusion.prediction": "eps",
        "diffusion.weighting": "none",
        "diffusion.timesteps": "uniform",
        "latents.normalize": False,
        "latents.draw": "once",
        "data.flip": False,
        "t2i.caption_dropout": 0.0,
        f"{section}.optimizer": "adamw",
        f"{section}.learning_rate": 1e-4,
        f"{section}.lr_schedule": "constant",
        f"{section}.warmup_steps": 0,
        f"{section}.betas": [0.9, 0.999],
        f"{section}.weight_decay": 0.01,
        f"{section}.grad_clip": 0.0,
        f"{section}.ema_decays": [],
        "sampler.guidance_scale": 1.0,
    }


def variant(shared: Shared, arm: str, stage: str, *, steps: int, seed: int, num: int) -> Variant:
    recipe = with_overrides(shared.recipe, overrides(shared, arm, stage, steps=steps, seed=seed))
    return Variant(name=arm, recipe=recipe, stage=stage, num=num)


def rates(shared: Shared, stage: str) -> dict[str, float]:
    """Steps a second of each arm: medians over rounds in which they take turns, the first steps of each left out."""
    part, found = STAGES[stage][0], {arm: list[float]() for arm in ARMS}
    for turn in range(ROUNDS):
        for arm in ARMS if turn % 2 == 0 else reversed(ARMS):
            plain = variant(shared, arm, stage, steps=ROUND_STEPS, seed=turn, num=1)
            timed = replace(plain, recipe=with_overrides(plain.recipe, {f"{part}.log_every": 1}))
            with tempfile.TemporaryDirectory() as folder:
                train(shared, timed, Path(folder))
                seconds = [row["seconds"] for row in read_metrics(Path(folder) / part / "metrics.jsonl")]
            found[arm].append((ROUND_STEPS - WARM_STEPS) / max(seconds[-1] - seconds[WARM_STEPS - 1], 1e-3))
    return {arm: statistics.median(values) for arm, values in found.items()}


def known_rates(shared: Shared, stage: str, file: Path) -> dict[str, float]:
    """`rates`, measured once for all: a run that goes on must train as many steps as it began with."""
    keys = {arm: variant(shared, arm, stage, steps=1, seed=0, num=1).training_key(shared) for arm in ARMS}
    key = fingerprint({**keys, "threads": torch.get_num_threads()})
    known: dict[str, dict[str, float]] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    if key not in known:
        known[key] = rates(shared, stage)
        write_json(file, known)
    return known[key]


def measure(shared: Shared, results: Results, arm: str, chosen: argparse.Namespace, seed: int, steps: int) -> list[Row]:
    """One training of an arm: a row, or for the seed's arm one for each sampler."""
    trained = variant(shared, arm, chosen.stage, steps=steps, seed=seed, num=chosen.num)
    if arm == "ours":
        return [results.measure(shared, trained)]
    ddpm = {"use": "ddpm", "steps": chosen.seed_steps, "guidance_scale": 1.0}
    ancestral = replace(
        trained, name=f"seed, ddpm {chosen.seed_steps}", recipe=with_overrides(trained.recipe, {"sampler": ddpm})
    )
    ours = replace(trained, name=f"seed, {trained.recipe.sampler.use} {trained.recipe.sampler.steps}")
    return [results.measure(shared, ancestral, keep_weights=True), results.measure(shared, ours)]


def verdict(by_name: Mapping[str, Sequence[Row]]) -> str:
    """Ours against the better one of the seed's samplers, by each score."""
    lines = []
    for score, sign in (("kid_x1000", -1), ("right", 1)):
        found = {name: both for name, rows in by_name.items() if (both := summary(rows, score)) is not None}
        others = {name: both for name, both in found.items() if name != "ours"}
        if "ours" not in found or not others:
            continue
        best = max(others, key=lambda name: sign * others[name][0])
        (mean, spread), (theirs, their_spread) = found["ours"], others[best]
        apart = sign * (mean - theirs) > spread + their_spread
        change = f"{mean / theirs - 1:+.0%}" if score == "kid_x1000" else f"{mean - theirs:+.1%}"
        bars = "apart" if apart else "not apart"
        lines.append(
            f"{score}: ours {mean:.4g} ± {spread:.2g}, {best} {theirs:.4g} ± {their_spread:.2g}: {change}, {bars}"
        )
    return "\n".join(lines)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="runs/NAME with finished captions, vae, latents and text")
    parser.add_argument("--minutes", type=float, required=True, help="of training, for each arm and seed")
    parser.add_argument("--stage", choices=STAGES, default="train-t2i", help="which U-Net (train-t2i)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--num", type=int, default=500, help="pictures to draw of each (500)")
    parser.add_argument("--seed-steps", type=int, default=100, help="steps of the seed's DDPM sampler (100)")
    parser.add_argument("--out", type=Path, help="results and pictures (RUN/against-seed)")
    parser.add_argument("--reference", type=Path, help="folder of pictures that KID compares with")
    parser.add_argument("--kid", type=Path, metavar="SCRIPT", help="program that measures KID, see ablation.py")
    parser.add_argument("--parallel", action="store_true", help="both arms of a seed at once, one thread each")
    parser.add_argument("--only", choices=ARMS, help="this arm alone")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the table as well")
    chosen = parser.parse_args(argv)
    if (chosen.reference is None) != (chosen.kid is None):
        parser.error("--reference and --kid go together")
    if chosen.minutes <= 0 or min(chosen.num, chosen.seed_steps) < 1:
        parser.error("--minutes, --num and --seed-steps must be above 0")
    return chosen


def at_once(argv: Sequence[str], seed: int) -> None:
    """Both arms of a seed in processes of one thread each; their results are in the file afterwards."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    own = [argument for argument in argv if argument != "--parallel"]
    command = [sys.executable, __file__, *own, "--seeds", str(seed)]
    running = [subprocess.Popen([*command, "--only", arm], env=environment, stdout=subprocess.DEVNULL) for arm in ARMS]
    codes = [process.wait() for process in running]
    if any(codes):
        raise LdmkitError(f"seed {seed}: an arm failed; see above")


def run(chosen: argparse.Namespace, argv: Sequence[str]) -> None:
    if chosen.parallel:
        torch.set_num_threads(1)  # as the arms' processes will have
    shared = open_run(chosen.run)
    out = chosen.out or chosen.run / "against-seed"
    results = Results(out=out, reference=chosen.reference, kid_script=chosen.kid)
    speed = known_rates(shared, chosen.stage, out / "rates.json")
    steps = {arm: max(1, round(speed[arm] * 60 * chosen.minutes)) for arm in ARMS}
    by_name: dict[str, list[Row]] = {}
    for seed in chosen.seeds:
        if chosen.parallel:
            at_once(argv, seed)
        for arm in [chosen.only] if chosen.only else ARMS:
            for row in measure(shared, results, arm, chosen, seed, steps[arm]):
                by_name.setdefault(row["name"], []).append(row)
                if not chosen.parallel:  # the arms' own processes have told
                    print(line(row), file=sys.stderr, flush=True)
    print(f"steps a second: {', '.join(f'{arm} {speed[arm]:.2f}' for arm in ARMS)}; {chosen.minutes:g} minutes each")
    print(table(by_name), verdict(by_name), sep="\n\n")
    if chosen.plot:
        plot(by_name, chosen.plot, title=f"{shared.recipe.name}: {chosen.stage}, {chosen.minutes:g} minutes")


@told
def main(argv: Sequence[str] | None = None) -> int:
    words = sys.argv[1:] if argv is None else argv
    chosen = parse(words)
    run(chosen, words)
    return 0


if __name__ == "__main__":
    sys.exit(main())
