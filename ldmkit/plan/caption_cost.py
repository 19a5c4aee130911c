"""What captioning costs, from a few pictures; and captions for the sample that `ldmkit plan` encodes."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from typing import Any

from ldmkit.caches.caption import caption
from ldmkit.components.protocols import Captioner
from ldmkit.data.captions import read_captions
from ldmkit.data.pictures import Entry, PictureIndex
from ldmkit.errors import LdmkitError
from ldmkit.plan.probe import empty
from ldmkit.run.workspace import Workspace
from ldmkit.training.device import processes

ON_CPU, ON_GPU = 4, 64
"""pictures that are timed; a GPU captions many at once"""
QUICK_SECONDS = 2.0
"""a captioner that needs less for the whole sample captions it"""


@dataclass(frozen=True)
class CaptionCost:
    """What is left of a captioning stage."""

    left: int
    """pictures for the recipe's captioner, those with a caption beside them left out where it is kept"""
    seconds: float
    """of one picture; 0 where none is left"""
    start: float
    """seconds that come once: loading the captioner"""
    line_bytes: float
    """of one line of `captions.jsonl`"""


def caption_cost(workspace: Workspace, sample: Workspace, done: Sequence[str]) -> CaptionCost:
    """Times the captioner on pictures whose keys are not `done`, and writes captions for the sample's pictures.

    Raises LdmkitError as the captioner does; the sample then has made-up captions.
    """
    known = set(done)
    try:
        waiting = _waiting(workspace, [entry for entry in workspace.index.entries if entry.key not in known])
        seconds, start = _time(workspace, waiting) if waiting else (0.0, 0.0)
        path = workspace.folder("captions") / "captions.jsonl"
        if seconds * len(sample.index) < QUICK_SECONDS:
            empty(workspace.folder("captions"))
            begun = time.perf_counter()
            caption(sample)
            # More pictures than were timed above, where what comes once hid what a picture costs.
            seconds, start = (time.perf_counter() - begun) / len(sample.index), 0.0
        else:
            _write(sample, list(read_captions(path).values()) or ["a picture"])
    except LdmkitError:
        _write(sample, ["a picture"])
        raise
    lines = path.read_bytes().splitlines()
    return CaptionCost(len(waiting), seconds, start, sum(len(line) + 1 for line in lines) / len(lines))


def _waiting(workspace: Workspace, entries: list[Entry]) -> list[Entry]:
    """Those that the recipe's captioner is asked for."""
    options = workspace.recipe.caption
    if not options.keep_existing or options.use == "sidecar":
        return entries
    sidecar: Captioner = workspace.registry.build("captioner", {"use": "sidecar"}, where="[caption]")
    texts = sidecar.caption(PictureIndex(workspace.index.folder, tuple(entries), ()).pictures())
    return [entry for entry, text in zip(entries, texts, strict=True) if not text]


def _time(workspace: Workspace, entries: list[Entry]) -> tuple[float, float]:
    """(seconds a picture, seconds before the first): one picture alone, then some more, each with a new captioner."""
    count = ON_GPU if processes().device.type == "cuda" else ON_CPU
    section = workspace.recipe.caption.model_copy(update={"keep_existing": False})
    workspace = replace(workspace, recipe=workspace.recipe.model_copy(update={"caption": section}))
    took = []
    empty(workspace.folder("captions"))
    for chosen in (entries[:1], entries[1 : 1 + count]):
        # The stage goes on behind what it captioned before: the second time the others alone are new.
        begun = time.perf_counter()
        caption(replace(workspace, index=PictureIndex(workspace.index.folder, tuple(chosen), ())))
        took.append(time.perf_counter() - begun)
    one, more = took
    others = len(entries[1 : 1 + count])
    if not others:
        return one, 0.0
    each = max(0.0, more - one) / (others - 1) if others > 1 else more
    return each, max(0.0, one - each)


def _write(sample: Workspace, texts: list[str]) -> None:
    """Captions for all of the sample's pictures, these in turn."""
    path = sample.folder("captions") / "captions.jsonl"
    rows: list[dict[str, Any]] = [
        {"file": entry.key, "caption": text, "captioner": None, "options": {}}
        for entry, text in zip(sample.index.entries, cycle(texts), strict=False)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
