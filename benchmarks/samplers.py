"""Which sampler at how many network calls: how well a toy-cats bundle draws what was asked, or KID, against calls.

python benchmarks/samplers.py BUNDLE_DIR [--num 200] [--calls 4 6 8 12 20 40] [--only NAME ...] [--guidance G]
    [--seed 0] [--reference DIR --kid SCRIPT] [--out DIR] [--plot FILE.png]

Every sampler draws the same prompts from the same seeds; --num pictures of prompts that the bundle was not trained on.
With --reference and --kid (a program called as in ablation.py) the score is KID, else the share of pictures that show
every attribute of their prompt; the plot has both. A sampler of two calls a step takes half the steps. Each result is a
line of DIR/samplers.jsonl; the same command again goes on where it stopped. In the end the fewest calls are recommended
whose score no other result beats by more than its error.
"""

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mistakes import told
from toy_accuracy import Score, new_prompts

from ldmkit.data.toy_cats import captions
from ldmkit.runtime.bundle import Bundle
from ldmkit.runtime.generate import Step

SAMPLERS: dict[str, dict[str, Any]] = {
    "ddim": {"use": "ddim"},
    "euler_a": {"use": "euler_a"},
    "heun": {"use": "heun"},
    "dpmpp_2m": {"use": "dpmpp_2m"},
    "dpmpp_2m karras": {"use": "dpmpp_2m", "spacing": "karras"},
    "dpmpp_2m logsnr": {"use": "dpmpp_2m", "spacing": "logsnr"},
    "dpmpp_2m_sde": {"use": "dpmpp_2m_sde"},
    "unipc": {"use": "unipc"},
}
"""name in the table -> sampler; ddpm needs hundreds of calls"""

Row = dict[str, Any]


def measure(bundle: Bundle, name: str, calls: int, chosen: argparse.Namespace) -> Row:
    """Draws all prompts by one sampler and scores them."""
    sampler = SAMPLERS[name]
    steps = (calls + 1) // 2 if sampler["use"] == "heun" else calls
    wanted = new_prompts(chosen.num, trained_on=captions(int(bundle.manifest.notes["num_pictures"])))
    seen: list[Step] = []
    began = time.perf_counter()
    images = bundle.generate(
        [prompt.text for prompt in wanted],
        steps=steps,
        seed=chosen.seed,
        sampler=sampler,
        guidance_scale=chosen.guidance,
        batch_size=25,
        on_step=seen.append,
    )
    seconds = time.perf_counter() - began
    batches = -(-chosen.num // 25)
    row: Row = {"sampler": name, "steps": steps, "calls": seen[-1].total // batches, "num": chosen.num}
    row |= {"guidance": chosen.guidance, "seconds": round(seconds, 2), "bundle": bundle.sha256}
    score = Score()
    for number, (prompt, image) in enumerate(zip(wanted, images, strict=True)):
        score.add(str(number), image, vars(prompt))
    right = score.right["all"] / score.num
    row |= {"right": right, "error": math.sqrt(right * (1 - right) / score.num)}
    if chosen.kid is not None:
        from variants import kid

        with tempfile.TemporaryDirectory() as folder:
            for number, image in enumerate(images):
                image.save(Path(folder) / f"{number:05d}.png")
            row |= kid(chosen.kid, chosen.reference, Path(folder))
    return row


def scored(rows: Sequence[Row]) -> list[tuple[Row, float, float]]:
    """(row, how good, error): KID turned round where it was measured, else the share of right pictures."""
    if all("kid_x1000" in row for row in rows):
        return [(row, -row["kid_x1000"], row["kid_std"]) for row in rows]
    return [(row, row["right"], row["error"]) for row in rows]


def recommended(rows: Sequence[Row]) -> Row:
    """The row with the fewest calls among those that lie within the best one's error of the best."""
    results = scored(rows)
    _, best, error = max(results, key=lambda result: result[1])
    return min((result for result in results if result[1] >= best - error), key=lambda r: (r[0]["calls"], -r[1]))[0]


def table(rows: Sequence[Row]) -> str:
    """A line a sampler, a column a number of calls."""
    calls = sorted({row["asked"] for row in rows})
    lines = ["| sampler | " + " | ".join(map(str, calls)) + " |", "|---" * (len(calls) + 1) + "|"]
    for name in dict.fromkeys(row["sampler"] for row in rows):
        cells = []
        for asked in calls:
            found = [row for row in rows if (row["sampler"], row["asked"]) == (name, asked)]
            cells.append(_cell(found[0]) if found else "")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(row: Row) -> str:
    if "kid_x1000" in row:
        return f"{row['kid_x1000']:.2f} ± {row['kid_std']:.2f}"
    return f"{row['right']:.1%} ± {row['error']:.1%}"


def plot(rows: Sequence[Row], file: Path, *, title: str) -> None:
    """A line a sampler: scores against network calls, with error bars, and the recommended point circled."""
    from matplotlib.figure import Figure  # not pyplot: no global state, no display

    panels = [("right", "error", "pictures that show all of their prompt")]
    if all("kid_x1000" in row for row in rows):
        panels.insert(0, ("kid_x1000", "kid_std", "KID x 1000, less is better"))
    figure = Figure(figsize=(5.5 * len(panels), 4.2), layout="constrained")
    every = figure.subplots(1, len(panels), squeeze=False)[0]
    ticks = sorted({row["asked"] for row in rows})
    best = recommended(rows)
    for axes, (key, error, label) in zip(every, panels, strict=True):
        for name in dict.fromkeys(row["sampler"] for row in rows):
            own = sorted((row for row in rows if row["sampler"] == name), key=lambda row: row["calls"])
            calls, scores, errors = ([row[column] for row in own] for column in ("calls", key, error))
            axes.errorbar(calls, scores, yerr=errors, marker="o", markersize=3, capsize=2, label=name)
        axes.plot(best["calls"], best[key], "o", markersize=12, fillstyle="none", color="black")
        axes.set_xscale("log")
        axes.set_xticks(ticks, [str(calls) for calls in ticks])
        axes.set_xticks([], minor=True)
        axes.set_xlabel("network calls a picture")
        axes.set_ylabel(label)
        if key == "right":
            axes.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
        axes.grid(alpha=0.3)
    every[-1].legend(fontsize=8)
    figure.suptitle(title, fontsize=10)
    figure.savefig(file, dpi=110)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path, help="folder of a toy-cats bundle")
    parser.add_argument("--num", type=int, default=200, help="pictures of each (200)")
    parser.add_argument("--calls", type=int, nargs="+", default=[4, 6, 8, 12, 20, 40])
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=SAMPLERS, default=list(SAMPLERS))
    parser.add_argument("--guidance", type=float, help="guidance scale (the bundle's default)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise (0)")
    parser.add_argument("--reference", type=Path, help="folder of pictures that KID compares with")
    parser.add_argument("--kid", type=Path, metavar="SCRIPT", help="program that measures KID")
    parser.add_argument("--out", type=Path, default=Path("outputs"), help="folder of samplers.jsonl (outputs)")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the table as well")
    chosen = parser.parse_args(argv)
    if (chosen.reference is None) != (chosen.kid is None):
        parser.error("--reference and --kid go together")
    if min(chosen.num, *chosen.calls) < 1:
        parser.error("--num and --calls must be at least 1")
    return chosen


def run(chosen: argparse.Namespace) -> list[Row]:
    """Measures what DIR/samplers.jsonl does not hold yet; all rows of this command."""
    bundle = Bundle.load(chosen.bundle)
    file = chosen.out / "samplers.jsonl"
    known = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    rows = []
    for name in chosen.only:
        for asked in chosen.calls:
            settings: Mapping[str, Any] = {
                "sampler": name,
                "asked": asked,
                "num": chosen.num,
                "guidance": chosen.guidance,
                "seed": chosen.seed,
                "bundle": bundle.sha256,
                "reference": None if chosen.reference is None else chosen.reference.name,
            }
            row = next((row for row in known if settings.items() <= row.items()), None)
            if row is None:
                row = measure(bundle, name, asked, chosen) | settings
                chosen.out.mkdir(parents=True, exist_ok=True)
                with file.open("a") as lines:
                    lines.write(json.dumps(row) + "\n")
                print(f"{name:16} {row['calls']:3} calls  {_cell(row)}", file=sys.stderr, flush=True)
            rows.append(row)
    return rows


@told
def main(argv: Sequence[str] | None = None) -> int:
    chosen = parse(argv)
    rows = run(chosen)
    print(table(rows))
    best = recommended(rows)
    print(f"recommended: {best['sampler']}, {best['steps']} steps ({best['calls']} calls): {_cell(best)}")
    if chosen.plot:
        plot(rows, chosen.plot, title=f"{chosen.bundle.resolve().name}, {chosen.num} pictures each")
    return 0


if __name__ == "__main__":
    sys.exit(main())
