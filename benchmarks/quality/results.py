"""Results that the same command need not measure twice; KID; means over seeds with their spread, as tables."""

import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.command import markdown
from benchmarks.quality.toy_attributes import ATTRIBUTES
from ldmkit.errors import LdmkitError

Row = dict[str, Any]


def measured(file: Path, settings: Row, measure: Callable[[], Row]) -> Row:
    """The row of these very settings from a file of JSON lines; else what `measure` returns, with them, then added."""
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        if settings.items() <= (row := json.loads(line)).items():
            return row
    row = settings | measure()
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(row) + "\n")
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


def summary(rows: Sequence[Row], name: str) -> tuple[float, float, float] | None:
    """Mean over the seeds, its spread and one measurement's own error; None: not measured.

    `name`: `kid_x1000`, its error over KID's subsets of pictures; or `right`, the share of pictures that show all that
    was asked for, its error binomial. The spread is the seeds' standard deviation, or a single seed's own error.
    """
    rows = [row for row in rows if name in row]
    if not rows:
        return None
    if name == "right":
        values = [row[name]["all"] for row in rows]
        errors = [(share * (1 - share) / row["num"]) ** 0.5 for share, row in zip(values, rows, strict=True)]
    else:
        values, errors = ([row[key] for row in rows] for key in (name, "kid_std"))
    own = statistics.fmean(errors)
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else own, own


def table(by_name: Mapping[str, Sequence[Row]]) -> str:
    """Markdown, a line for each variant; ± is the spread over seeds, in brackets one measurement's own error."""
    every = [row for rows in by_name.values() for row in rows]
    toy, distances = any("right" in row for row in every), any("kid_x1000" in row for row in every)
    lines = [["", "seeds", "steps", *["all right", *ATTRIBUTES] * toy, *["KID x1000"] * distances, "seconds"]]
    for name, rows in by_name.items():
        cells = [name, len(rows), rows[0]["steps"]]
        if toy:
            mean, spread, _ = summary(rows, "right")
            cells.append(f"{mean:.1%} ± {spread:.1%}")
            cells += [f"{statistics.fmean(row['right'][a] for row in rows):.1%}" for a in ATTRIBUTES]
        if distances:
            cells.append("{:.2f} ± {:.2f} ({:.2f})".format(*summary(rows, "kid_x1000")))
        lines.append([*cells, f"{statistics.fmean(row['seconds'] for row in rows):.0f}"])
    return markdown(*lines)
