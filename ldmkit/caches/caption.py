"""Stage `caption`: pictures without a caption -> `captions/captions.jsonl`."""

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from ldmkit.atomic import write_atomic
from ldmkit.caches.earlier import EarlierCaptions
from ldmkit.components.hub import commit_of
from ldmkit.components.protocols import Captioner, Picture
from ldmkit.components.registry import Registry
from ldmkit.data.captions import captioners, read_captions, shown
from ldmkit.recipe import Recipe
from ldmkit.report import printable
from ldmkit.run.grow import write_contents
from ldmkit.run.workspace import Workspace
from ldmkit.signals import StopSignals, stopped

BATCH = 64
"""pictures that a captioner gets at once, and what a kill can cost, unless its `batch_size` is smaller"""

SHOWN = 10
"""remarks of a captioner that are printed"""


def caption(workspace: Workspace) -> dict[str, Any]:
    """Captions every picture that a run before this one did not; returns counts by captioner.

    Captions beside the pictures come first, then those of before a change to the pictures, then the captioner.
    """
    recipe = workspace.recipe
    path = workspace.folder("captions") / "captions.jsonl"
    pictures = workspace.index.pictures()
    done, reporter = captioners(path), workspace.reporter
    write_contents(path.parent, workspace.index)
    if path.exists():  # a line that a kill cut short must not swallow the next one
        write_atomic(path, b"".join(line + b"\n" for line in path.read_bytes().split(b"\n") if _whole(line)))
    waiting = [picture for picture in pictures if picture.key not in done]

    table = recipe.caption.table()
    asked: list[tuple[str, dict[str, Any], Captioner]] = []
    if beside := captions_beside(recipe, workspace.registry):
        asked.append(("sidecar", {}, beside))
    options = {key: value for key, value in table.items() if key != "use"}
    asked.append((recipe.caption.use, options, EarlierCaptions(workspace.parts["captions"], workspace.index, reporter)))
    asked.append((recipe.caption.use, options, workspace.registry.build("captioner", table, where="[caption]")))

    left = len(waiting)
    with (
        path.open("a", encoding="utf-8") as file,
        StopSignals("caption") as signals,
        reporter.bar("caption", len(pictures), len(pictures) - len(waiting)) as bar,
    ):
        for rows in _captioned(waiting, asked):
            file.writelines(json.dumps(row) + "\n" for row in rows)
            file.flush()
            os.fsync(file.fileno())
            bar.advance(len(rows))
            left -= len(rows)
            if signals.number:
                raise stopped(f"caption: saved, {left} pictures left; the same command resumes", signals.number)
    for _, _, captioner in asked:
        remarks: list[str] = getattr(captioner, "remarks", list)()
        for line in remarks[:SHOWN]:
            reporter.line(f"caption: {line}")
        if len(remarks) > SHOWN:
            reporter.line(f"caption: and {len(remarks) - SHOWN} more remarks")
    for key, text in [*read_captions(path).items()][:3]:
        reporter.line(f"caption: {printable(key)}: {shown(text)}")
    counts = Counter(name or "none" for name in captioners(path).values())
    return {"captions": dict(counts), **(commit_of(asked[-1][2]) if counts[recipe.caption.use] else {})}


def captions_beside(recipe: Recipe, registry: Registry) -> Captioner | None:
    """What is asked before the recipe's captioner: the captions beside the pictures, unless that reads them itself."""
    if not recipe.caption.keep_existing or recipe.caption.use == "sidecar":
        return None
    captioner: Captioner = registry.build("captioner", {"use": "sidecar"}, where="[caption]")
    return captioner


def _captioned(
    pictures: Sequence[Picture], asked: Sequence[tuple[str, dict[str, Any], Captioner]]
) -> Iterator[list[dict[str, Any]]]:
    """Rows of `captions.jsonl`, each time that a captioner returns; each captioner gets what those before it left."""
    for first in range(0, len(pictures), BATCH):
        left = list(pictures[first : first + BATCH])
        for number, (name, options, captioner) in enumerate(asked, 1):
            batch, left, size = left, [], at_once(captioner)
            for start in range(0, len(batch), size):
                part = batch[start : start + size]
                rows: list[dict[str, Any]] = []
                for picture, text in zip(part, captioner.caption(part), strict=True):
                    if text is not None:
                        rows.append({"file": picture.key, "caption": text, "captioner": name, "options": options})
                    elif number == len(asked):
                        rows.append({"file": picture.key, "caption": None, "captioner": None, "options": {}})
                    else:
                        left.append(picture)
                yield rows


def at_once(captioner: Captioner) -> int:
    """Pictures of one call, which a stop waits for: one that works on fewer at a time gains nothing by more."""
    size = getattr(captioner, "batch_size", BATCH)
    return min(size, BATCH) if isinstance(size, int) and size > 0 else BATCH


def _whole(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True
