"""Results that the same command need not measure twice; KID; means over seeds with their spread, as tables."""

import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.command import markdown
from benchmarks.quality.toy_attributes import ATTRIBUTES
from ldmkit.errors import LdmkitError

Row = dict[str, Any]


@dataclass(frozen=True)
class Results:
    """A file with a line of JSON for each result."""

    file: Path

    def get(self, settings: Row, measure: Callable[[], Row]) -> Row:
        """The row of these very settings from the file; else what `measure` returns, with them, which is added."""
        for line in self.file.read_text(encoding="utf-8").splitlines() if self.file.exists() else ():
            if settings.items() <= (row := json.loads(line)).items():
                return row
        row = settings | measure()
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        return row


def kid(script: Path, reference: Path, generated: Path) -> Row:
    """Kernel inception distance by an external program, called as `python SCRIPT REFERENCE GENERATED --json`.

    It prints a JSON object with `kid_x1000` and its `std`. Raises LdmkitError where it fails.
    """
    done = subprocess.run(
        [sys.executable, str(script), str(reference), str(generated), "--json"], capture_output=True, text=True
    )
    if done.returncode:
        raise LdmkitError(f"{script}: failed on {reference} and {generated}: {done.stderr.strip()[-500:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    return {"kid_x1000": found["kid_x1000"], "kid_std": found["std"]}


def check_kid(reference: Path | None, kid_script: Path | None) -> None:
    """Raises LdmkitError where only one of them is given."""
    if (reference is None) != (kid_script is None):
        raise LdmkitError("--reference and --kid-script go together")


def summary(rows: Sequence[Row], name: str) -> tuple[float, float] | None:
    """Mean over the seeds and its spread: their standard deviation, or a single seed's own error; None: not measured.

    `kid_x1000`, or `right`: the share of pictures that show all that was asked for.
    """
    values = [row[name]["all"] if name == "right" else row[name] for row in rows if name in row]
    if not values:
        return None
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else own_error(rows, name)


def own_error(rows: Sequence[Row], name: str) -> float:
    """Mean error of one measurement: over KID's subsets of pictures, or binomial for `right`."""
    if name == "kid_x1000":
        return statistics.fmean(row["kid_std"] for row in rows if "kid_std" in row)
    shares = [(row["right"]["all"], row["num"]) for row in rows if "right" in row]
    return statistics.fmean((share * (1 - share) / num) ** 0.5 for share, num in shares)


def table(by_name: Mapping[str, Sequence[Row]]) -> str:
    """Markdown, a line for each variant; ± is the spread over seeds, in brackets one measurement's own error."""
    every = [row for rows in by_name.values() for row in rows]
    toy, distances = any("right" in row for row in every), any("kid_x1000" in row for row in every)
    heads = ["", "seeds", "steps", *["all right", *ATTRIBUTES] * toy, *["KID x1000"] * distances, "wall s", "CPU s"]
    lines = [heads]
    for name, rows in by_name.items():
        cells = [name, len(rows), rows[0]["steps"]]
        if toy:
            right = summary(rows, "right")
            cells.append(f"{right[0]:.1%} ± {right[1]:.1%}" if right else "")
            cells += [f"{statistics.fmean(row['right'][a] for row in rows):.1%}" if right else "" for a in ATTRIBUTES]
        if distances:
            found = summary(rows, "kid_x1000")
            cells.append(f"{found[0]:.2f} ± {found[1]:.2f} ({own_error(rows, 'kid_x1000'):.2f})" if found else "")
        for key in ("seconds", "cpu_seconds"):
            values = [row[key] for row in rows if row[key] is not None]
            cells.append(f"{statistics.fmean(values):.0f}" if values else "")
        lines.append(cells)
    return markdown(*lines)
