"""What a run does about each of its parts, told before it is done. No torch."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ldmkit.errors import LdmkitError
from ldmkit.run.files import Depth, read_record
from ldmkit.run.folder import Part, Status, weights_of
from ldmkit.run.grow import extends
from ldmkit.run.inputs import RunParts
from ldmkit.run.metrics import read_metrics
from ldmkit.run.parts import PARTS, PartSpec, needed
from ldmkit.run.progress import newest_state

Action = Literal["keep", "make", "resume", "go on", "restore", "remake", "renew", "extend", "take back", "open", "stop"]
_STATES: dict[Action, str] = {
    "keep": "done",
    "make": "missing",
    "resume": "interrupted",
    "go on": "changed",
    "restore": "damaged",
    "remake": "damaged",
    "renew": "stale",
    "extend": "stale",
    "take back": "set aside",
    "open": "depends",
    "stop": "blocked",
}
_OTHER_WEIGHTS = ("make", "resume", "go on", "renew")
"""after which a network may be another one, although it is made from the same"""


@dataclass(frozen=True)
class Step:
    """What is done about one part, and why."""

    action: Action
    reason: str = ""
    aside: Path | None = None
    """of `take back`: where it lies"""
    asked: bool = False
    """whether the user has named it: nothing is to be asked"""

    @property
    def state(self) -> str:
        """The word for it in the table of `--dry-run`."""
        return _STATES[self.action]


def decide(spec: PartSpec, part: Part, status: Status, *, forced: bool, fresh: bool, alone: bool) -> Step:
    """`forced`: made anew even where it is done; `fresh`: where training would go on; `alone`: its stage was named."""
    state, reason = status.state, status.reason
    if forced and state != "missing":
        return Step("renew", "asked for again", asked=True)
    if state == "done":
        return Step("keep", reason)
    if state in ("missing", "stale", "changed") and not forced and not fresh and (aside := part.aside()):
        return Step("take back", f"from {aside}", aside)
    if state in ("interrupted", "changed") and fresh:
        return Step("renew", "--fresh", asked=True)
    if state == "missing":
        return Step("make", reason)
    if state == "stale":
        if not fresh and not spec.trained and extends(part):
            return Step("extend", f"{reason}; what is unchanged is taken over")
        return Step("renew", reason)
    if state == "interrupted":
        return Step("resume", reason)
    newest = newest_state(part.folder)
    if state == "changed":
        return Step("go on", f"from step {newest['step'] if newest else 0}: {reason}")
    if spec.trained:
        if part.can_restore():
            return Step("restore", f"{reason}; taken from the last checkpoint")
        return Step(
            "stop",
            f"{part.folder}: {reason}, and no checkpoint is left to take it from; `ldmkit {spec.stage} RECIPE --again` "
            "trains it anew and keeps the old one",
        )
    if spec.edited:
        if alone:
            return Step("resume", f"{reason}; what is there is kept")
        return Step(
            "stop",
            f"{part.folder}: {reason}; `ldmkit {spec.stage} RECIPE` keeps what is there, which a correction by hand "
            "needs, and with --again makes it anew",
        )
    return Step("remake", f"{reason}; made again")


class Plan:
    """The steps of a command, in order, as they follow from what lies in the run's folder now."""

    def __init__(
        self,
        parts: RunParts,
        specs: Sequence[PartSpec],
        *,
        forced: str | None,
        fresh: bool,
        alone: bool,
        begun: Collection[str] = (),
    ) -> None:
        """`forced` names a stage to run again from nothing; see `decide`. `begun`: parts that need not be finished."""
        self._begun = begun
        self.specs = specs
        self._forced, self._fresh, self._alone = forced, fresh, alone
        self._hashed: dict[tuple[str, str, tuple[tuple[str, str], ...]], Status] = {}
        # Whatever a part is made from is hashed first, and whatever the user has named.
        self.hashed: set[str] = {spec.name for spec in specs} if alone else set()
        while True:
            self.steps = self._simulate(parts.copy())
            made = [name for name, step in self.steps.items() if step.action not in ("keep", "open", "stop")]
            used = {need for name in made for need in needed(PARTS[name], parts.recipe)}
            if used <= self.hashed:
                break
            self.hashed |= used

    def step(self, spec: PartSpec, parts: Mapping[str, Part]) -> Step:
        """What is to be done about a part when its turn comes."""
        part = parts[spec.name]
        status = self.status(part)
        return decide(spec, part, status, forced=spec.stage == self._forced, fresh=self._fresh, alone=self._alone)

    def status(self, part: Part) -> Status:
        """The part's status, its files hashed where another part is made from them."""
        depth: Depth = "hash" if part.name in self.hashed else "size"
        if part.name in self._begun and part.status().state == "interrupted":
            return Status("done", "by one of its checkpoints")
        if depth == "size":
            return part.status()
        key = (part.name, part.fingerprint, tuple(sorted(part.made_of.items())))
        if key not in self._hashed:
            self._hashed[key] = part.status(depth)
        return self._hashed[key]

    def forget(self, name: str) -> None:
        """After a part was made."""
        self._hashed = {key: status for key, status in self._hashed.items() if key[0] != name}

    def _simulate(self, parts: RunParts) -> dict[str, Step]:
        steps: dict[str, Step] = {}
        for spec in self.specs:
            step = self.step(spec, parts)
            made_from = [need for need in parts.made_from(spec) if need in steps]
            opened = [need for need in made_from if _may_differ(PARTS[need], steps[need])]
            if step.action == "keep" and opened:
                step = Step("open", f"made again where {' and '.join(opened)} comes out otherwise")
            elif step.action not in ("keep", "stop") and (lacking := self._lacking(spec, parts, steps)):
                step = Step("stop", lacking)
            steps[spec.name] = step
            if step.action in ("keep", "open", "stop", "restore"):
                continue
            if spec.name == "captions":
                parts.assume_captions()
            if step.aside is not None and (weights := weights_of(step.aside)) is not None:
                parts.weights[spec.name] = weights
            parts.refresh(spec.name)
        return steps

    def _lacking(self, spec: PartSpec, parts: RunParts, steps: Mapping[str, Step]) -> str:
        """Why a part cannot be made: one that it is made from is neither there nor made by this command."""
        for name in needed(spec, parts.recipe):
            if name in steps:
                if steps[name].action == "stop":
                    return steps[name].reason
            elif (status := self.status(parts[name])).state != "done":
                return lacking(parts[name], status, spec)
        return ""

    def work_lost(self, parts: Mapping[str, Part]) -> tuple[float, list[str]]:
        """(seconds that it took to make what is set aside without having been named, a word on each)."""
        found = [
            (name, step.reason, seconds)
            for name, step in self.steps.items()
            if step.action == "renew" and not step.asked and (seconds := work(parts[name].folder)) > 0
        ]
        return sum(seconds for *_, seconds in found), [f"{name} ({reason})" for name, reason, _ in found]


def lacking(part: Part, status: Status, spec: PartSpec) -> str:
    """What to say where `part`, which `spec` is made from, is not there."""
    reason = f" ({status.reason})" if status.reason else ""
    return (
        f"{part.folder}: {status.state}{reason}, and {spec.name} is made from it; run `ldmkit "
        f"{PARTS[part.name].stage} RECIPE` with this run's recipe first, or `ldmkit train RECIPE` for all of it"
    )


def work(folder: Path) -> float:
    """Seconds that a part took to make, over all sessions where it was trained; 0 where nobody knows."""
    try:
        rows = read_metrics(folder / "metrics.jsonl") if (folder / "metrics.jsonl").is_file() else []
        record = read_record(folder) or {}
    except (LdmkitError, OSError):
        return 0.0
    return float(max([record.get("seconds", 0.0), *(row.get("seconds", 0.0) for row in rows[-1:])]))


def _may_differ(spec: PartSpec, step: Step) -> bool:
    if spec.name == "captions":
        return step.action != "keep"
    return step.action == "open" or (spec.trained and step.action in _OTHER_WEIGHTS)
