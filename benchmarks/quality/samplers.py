"""Which sampler at how many network calls: how well a toy-cats bundle draws what was asked, or KID, against calls.

python -m benchmarks.quality.samplers BUNDLE_DIR [--num 200] [--calls 4 --calls 8 ...] [--only NAME ...] [--guidance G]
    [--seed 0] [--reference DIR --kid-script SCRIPT] [--out DIR] [--plot FILE.png]

Every sampler draws the same prompts from the same seeds; --num pictures of prompts that the bundle was not trained on.
With --reference and --kid-script (see `ablation`) the score is KID, else the share of pictures that show every
attribute of their prompt; the plot has both. A sampler of two calls a step takes half the steps. Each result is a line
of DIR/samplers.jsonl; the same command again resumes where it stopped. In the end the fewest calls are recommended
whose score no other result beats by more than its error.
"""

import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.command import markdown, run
from benchmarks.quality.results import Row, check_kid, kid, measured
from benchmarks.quality.toy_accuracy import BATCH, generate, score_folder
from ldmkit.errors import LdmkitError
from ldmkit.runtime.bundle import Bundle

SAMPLERS: dict[str, dict[str, Any]] = {
    **{name: {"use": name} for name in ("ddim", "euler_a", "heun", "dpmpp_2m")},
    **{f"dpmpp_2m {spacing}": {"use": "dpmpp_2m", "spacing": spacing} for spacing in ("karras", "logsnr")},
    **{name: {"use": name} for name in ("dpmpp_2m_sde", "unipc")},
}
"""name in the table -> sampler; ddpm needs hundreds of calls"""


def measure(bundle: Bundle, settings: Mapping[str, Any], against: Sequence[Path]) -> Row:
    """Draws all prompts by one sampler and scores them; `against`: KID's script and reference, or nothing."""
    sampler, num = SAMPLERS[settings["sampler"]], settings["num"]
    steps = (settings["asked"] + 1) // 2 if sampler["use"] == "heun" else settings["asked"]
    drawing = {"steps": steps, "seed": settings["seed"], "sampler": sampler, "guidance_scale": settings["guidance"]}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "drawn"
        calls = generate(bundle, folder, num=num, **drawing) // -(-num // BATCH)
        right = score_folder(folder).accuracy["all"]
        row: Row = {"steps": steps, "calls": calls, "right": right, "error": (right * (1 - right) / num) ** 0.5}
        if against:
            row |= kid(*against, folder)
    print(f"{settings['sampler']:16} {row['calls']:3} calls  {_cell(row)}", file=sys.stderr, flush=True)
    return row


def recommended(rows: Sequence[Row]) -> Row:
    """The row with the fewest calls among those that lie within the best one's error of the best.

    KID turned round decides where it was measured, else the share of right pictures.
    """
    by_kid = all("kid_x1000" in row for row in rows)
    results = [(-r["kid_x1000"], r["kid_std"], r) if by_kid else (r["right"], r["error"], r) for r in rows]
    best, error, _ = max(results, key=lambda result: result[0])
    return min((r for r in results if r[0] >= best - error), key=lambda r: (r[2]["calls"], -r[0]))[2]


def table(rows: Sequence[Row]) -> str:
    """A line a sampler, a column a number of calls."""
    cells = {(row["sampler"], row["asked"]): _cell(row) for row in rows}
    names, calls = dict.fromkeys(name for name, _ in cells), sorted({asked for _, asked in cells})
    return markdown(["sampler", *calls], *([name, *(cells.get((name, n), "") for n in calls)] for name in names))


def _cell(row: Row) -> str:
    if "kid_x1000" in row:
        return f"{row['kid_x1000']:.2f} ± {row['kid_std']:.2f}"
    return f"{row['right']:.1%} ± {row['error']:.1%}"


def draw_plot(rows: Sequence[Row], file: Path, *, title: str) -> None:
    """A line a sampler: scores against network calls, with error bars, and the recommended point circled."""
    from matplotlib.figure import Figure  # not pyplot: no global state, no display

    panels = [("kid_x1000", "kid_std", "KID x 1000, less is better")] * all("kid_x1000" in row for row in rows)
    panels.append(("right", "error", "share of pictures that show all of their prompt"))
    figure, best = Figure(figsize=(5.5 * len(panels), 4.2), layout="constrained"), recommended(rows)
    for axes, (key, error, label) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for name in dict.fromkeys(row["sampler"] for row in rows):
            own = sorted((row for row in rows if row["sampler"] == name), key=lambda row: row["calls"])
            calls, scores, errors = ([row[column] for row in own] for column in ("calls", key, error))
            axes.errorbar(calls, scores, yerr=errors, marker="o", markersize=3, capsize=2, label=name)
        axes.plot(best["calls"], best[key], "o", markersize=12, fillstyle="none", color="black")
        axes.set(xscale="log", xlabel="network calls a picture", ylabel=label)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.suptitle(title, fontsize=10)
    figure.savefig(file, dpi=110)


def main(
    bundle_dir: Path,
    *,
    num: int = 200,
    calls: list[int] = [4, 6, 8, 12, 20, 40],  # noqa: B006 - read only
    only: list[str] = list(SAMPLERS),  # noqa: B006 - read only
    guidance: float | None = None,
    seed: int = 0,
    reference: Path | None = None,
    kid_script: Path | None = None,
    out: Path = Path("outputs"),
    plot: Path | None = None,
) -> None:
    check_kid(reference, kid_script)
    if unknown := [name for name in only if name not in SAMPLERS]:
        raise LdmkitError(f"--only {unknown[0]}: not one of {', '.join(SAMPLERS)}")
    bundle = Bundle.load(bundle_dir)
    against = [kid_script, reference] if kid_script and reference else []
    shared = {"num": num, "guidance": guidance, "seed": seed, "bundle": bundle.sha256}
    shared["reference"] = reference and reference.name
    asked = [shared | {"sampler": name, "asked": count} for name in only for count in calls]
    rows = [measured(out / "samplers.jsonl", each, lambda each=each: measure(bundle, each, against)) for each in asked]
    print(table(rows))
    best = recommended(rows)
    print(f"recommended: {best['sampler']}, {best['steps']} steps ({best['calls']} calls): {_cell(best)}")
    if plot:
        draw_plot(rows, plot, title=f"{bundle_dir.resolve().name}, {num} pictures each")


if __name__ == "__main__":
    run(main)
