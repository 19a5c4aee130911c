"""Stage `caption`: pictures without a caption -> `captions/captions.jsonl`."""

import json
import os
from collections import Counter
from typing import Any

from ldmkit.atomic import write_atomic
from ldmkit.components import Captioner
from ldmkit.data.captions import captioners
from ldmkit.stages.context import StageContext
from ldmkit.stages.signals import StopSignals, stopped

BATCH = 64
"""pictures between two appends: what a kill can cost"""


def caption(context: StageContext) -> dict[str, Any]:
    """Captions every picture, going on behind those that a run before this one wrote; returns counts by captioner."""
    recipe = context.recipe
    path = context.folder("captions") / "captions.jsonl"
    pictures = context.index.pictures()
    done = captioners(path)
    if path.exists():  # a line that a kill cut short must not swallow the next one
        write_atomic(path, b"".join(line + b"\n" for line in path.read_bytes().split(b"\n") if _whole(line)))
    waiting = [picture for picture in pictures if picture.key not in done]

    table = recipe.caption.table()
    asked: list[tuple[str, dict[str, Any], Captioner]] = []
    if recipe.caption.keep_existing and recipe.caption.use != "sidecar":
        asked.append(("sidecar", {}, context.registry.build("captioner", {"use": "sidecar"}, where="[caption]")))
    options = {key: value for key, value in table.items() if key != "use"}
    asked.append((recipe.caption.use, options, context.registry.build("captioner", table, where="[caption]")))

    with (
        path.open("a", encoding="utf-8") as file,
        StopSignals("caption") as signals,
        context.reporter.bar("caption", len(pictures), len(pictures) - len(waiting)) as bar,
    ):
        for first in range(0, len(waiting), BATCH):
            batch = waiting[first : first + BATCH]
            rows: dict[str, dict[str, Any]] = {}
            left = batch
            for name, chosen, captioner in asked:
                for picture, text in zip(left, captioner.caption(left), strict=True):
                    if text:
                        rows[picture.key] = {"caption": text, "captioner": name, "options": chosen}
                left = [picture for picture in left if picture.key not in rows]
                if not left:
                    break
            for picture in batch:
                row = rows.get(picture.key, {"caption": None, "captioner": None, "options": {}})
                file.write(json.dumps({"file": picture.key, **row}) + "\n")
            file.flush()
            os.fsync(file.fileno())
            bar.advance(len(batch))
            if signals.number:
                left_over = len(waiting) - first - len(batch)
                raise stopped(f"caption: saved, {left_over} pictures left; the same command goes on", signals.number)
    return {"captions": dict(Counter(name or "none" for name in captioners(path).values()))}


def _whole(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True
