"""Results of variants as a line, a markdown table and a plot: means over the seeds with their spread."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from toy_attributes import ATTRIBUTES

Row = dict[str, Any]
_TITLES = {"right": "toy prompts drawn right", "kid_x1000": "KID x1000, lower is better"}


def value_of(row: Row, name: str) -> float | None:
    """`kid_x1000`, or `right`: the share of pictures that show all that was asked for; None where not measured."""
    value = row.get(name)
    return value["all"] if isinstance(value, dict) else value


def summary(rows: Sequence[Row], name: str) -> tuple[float, float] | None:
    """Mean over the seeds and its spread: their standard deviation, or a single seed's own error (`own_error`)."""
    values = [value for row in rows if (value := value_of(row, name)) is not None]
    if not values:
        return None
    spread = statistics.stdev(values) if len(values) > 1 else own_error(rows, name)
    return statistics.fmean(values), spread


def own_error(rows: Sequence[Row], name: str) -> float:
    """Mean error of one measurement: over KID's subsets of pictures, or binomial for `right`."""
    if name == "kid_x1000":
        return statistics.fmean(row["kid_std"] for row in rows if "kid_std" in row)
    shares = [(row["right"]["all"], row["num"]) for row in rows if "right" in row]
    return statistics.fmean((share * (1 - share) / num) ** 0.5 for share, num in shares)


def measured(by_name: Mapping[str, Sequence[Row]], name: str) -> bool:
    return any(value_of(row, name) is not None for rows in by_name.values() for row in rows)


def line(row: Row) -> str:
    """One result, for the terminal."""
    scores = {"right": value_of(row, "right"), "KID": value_of(row, "kid_x1000")}
    told = "  ".join(f"{key} {value:.4g}" for key, value in scores.items() if value is not None)
    return f"seed {row['seed']}  {row['name']:<26} {row['steps']} steps  {row['seconds']:.0f} s  {told}".rstrip()


def table(by_name: Mapping[str, Sequence[Row]]) -> str:
    """Markdown, a line for each variant; ± is the spread over seeds, in brackets one measurement's own error."""
    toy, distances = measured(by_name, "right"), measured(by_name, "kid_x1000")
    heads = ["", "seeds", "steps"]
    heads += ["all right", *ATTRIBUTES] * toy + ["KID x1000"] * distances + ["wall s", "CPU s"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for name, rows in by_name.items():
        cells = [name, str(len(rows)), str(rows[0]["steps"])]
        if toy:
            right = summary(rows, "right")
            cells.append(f"{right[0]:.1%} ± {right[1]:.1%}" if right else "")
            cells += [f"{statistics.fmean(row['right'][a] for row in rows):.1%}" if right else "" for a in ATTRIBUTES]
        if distances:
            found = summary(rows, "kid_x1000")
            cells.append(f"{found[0]:.2f} ± {found[1]:.2f} ({own_error(rows, 'kid_x1000'):.2f})" if found else "")
        cells.append(f"{statistics.fmean(row['seconds'] for row in rows):.0f}")
        cpu = [row["cpu_seconds"] for row in rows if row["cpu_seconds"] is not None]
        cells.append(f"{statistics.fmean(cpu):.0f}" if cpu else "")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(by_name: Mapping[str, Sequence[Row]], file: Path, *, title: str) -> None:
    """A dot with its error bar for each variant, the first one on top; one panel for each score that was measured."""
    from matplotlib.figure import Figure  # not pyplot: no global state, no display

    scores = [name for name in ("right", "kid_x1000") if measured(by_name, name)]
    figure = Figure(figsize=(1.8 + 4 * len(scores), 1.4 + 0.32 * len(by_name)), layout="constrained")
    panels = figure.subplots(1, len(scores), sharey=True, squeeze=False)[0]
    for axes, score in zip(panels, scores, strict=True):
        found = {name: both for name, rows in by_name.items() if (both := summary(rows, score)) is not None}
        places = [list(by_name).index(name) for name in found]
        means, spreads = zip(*found.values(), strict=True)
        axes.errorbar(means, places, xerr=spreads, fmt="o", capsize=3)
        axes.set_yticks(range(len(by_name)), list(by_name))
        axes.set_ylim(len(by_name) - 0.5, -0.5)
        axes.set_xlabel(_TITLES[score])
        axes.grid(alpha=0.3)
        if score == "right":
            axes.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    figure.suptitle(title)
    figure.savefig(file, dpi=110)
