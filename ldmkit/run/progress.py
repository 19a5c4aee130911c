"""How far a part was trained, by the names and states of its checkpoints. No torch."""

import json
import re
from pathlib import Path
from typing import Any

STATE = "state.json"


def checkpoints(folder: Path) -> list[Path]:
    """Newest first, whole or not."""
    found = [path for path in folder.glob("step_*") if re.fullmatch(r"step_\d+", path.name)]
    return sorted(found, key=step_of, reverse=True)


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step_"))


def newest_state(part: Path) -> dict[str, Any] | None:
    """`step`, `inputs` and more of a part's newest checkpoint that can be read; loading shows whether it is whole."""
    for checkpoint in checkpoints(part / "checkpoints"):
        try:
            state = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
            if isinstance(state["inputs"], dict) and type(state["step"]) is int:
                return dict(state)
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue
    return None
