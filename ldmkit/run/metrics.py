"""`metrics.jsonl`, the numbers that a training stage logs. No torch."""

import json
from collections.abc import Mapping
from pathlib import Path

from ldmkit.atomic import write_atomic
from ldmkit.errors import LdmkitError


class MetricsLog:
    """`metrics.jsonl` of one stage: a line per logging step; cut back to the step that training resumes from."""

    def __init__(self, path: Path, resume_step: int) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self.rows = [row for row in read_metrics(path) if row["step"] <= resume_step] if path.exists() else []
        write_atomic(path, "".join(json.dumps(row) + "\n" for row in self.rows).encode())

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Appends one line."""
        self.rows.append({"step": step, **metrics})
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(self.rows[-1]) + "\n")


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Rows of a `metrics.jsonl`; a last line cut by a kill is left out.

    Raises LdmkitError where another line is damaged.
    """
    rows = []
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            if number == len(lines):  # cut short, or what follows the last line's end
                break
            row = None
        if not isinstance(row, dict) or "step" not in row or not all(type(v) in (int, float) for v in row.values()):
            raise LdmkitError(f"{path}, line {number}: no JSON of numbers with a step; correct or remove the line")
        rows.append(row)
    return rows
