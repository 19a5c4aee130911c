"""The run folder: what each part of a run was made from, and whether it still holds. No torch."""

import json
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ldmkit.atomic import remove_folder
from ldmkit.errors import LdmkitError
from ldmkit.run.files import (
    RECORD,
    Depth,
    changes,
    fingerprint,
    list_files,
    read_record,
    read_sealed,
    trained_file,
    write_sealed,
)
from ldmkit.run.progress import newest_state

if TYPE_CHECKING:
    from ldmkit.recipe import Recipe

FORMAT = 1


@dataclass(frozen=True)
class Status:
    """State of one part of a run."""

    state: Literal["done", "missing", "interrupted", "stale", "changed", "damaged"]
    """`changed`: trained by another recipe, whose weights this one trains on; `damaged`: not what was written"""
    reason: str = ""
    """of one that is done: what else is no longer there"""
    whole: bool = True
    """whether each file that lies there is what was written"""


class Part:
    """One folder of a run (`vae/`, `latents/`, ...) with the record of what it was made from."""

    def __init__(
        self,
        folder: Path,
        name: str,
        inputs: Mapping[str, Any],
        made_of: Mapping[str, str] | None = None,
        *,
        bundle: Path | None = None,
        goes_on: Collection[str] = (),
        note: str = "",
    ) -> None:
        """`made_of`: SHA-256 of the weights of each trained part before this one, as far as they are known.

        They stand beside the inputs: a part that was trained again from the same inputs, on another machine say, may
        be another one, and what was made of the old one is then stale. `bundle`: where the files of a bundle lie, whose
        record alone is in `folder`. `goes_on`: keys of `inputs[name]` by whose change training goes on. `note`: what is
        to be said of the part where it is done.
        """
        self.folder = folder
        self.name = name
        self.bundle = bundle
        self.made_of = dict(made_of or {})
        # Through JSON once, so that tuples compare equal to the lists read back.
        self.inputs: dict[str, Any] = json.loads(json.dumps({"format": FORMAT, **inputs}))
        self.fingerprint = fingerprint(self.inputs)
        self.goes_on = goes_on
        self.note = note
        self.earlier: Path | None = None
        """of a part that is being made: an earlier one, set aside, whose rows it takes over where they are the same"""
        self.history: list[dict[str, Any]] = []
        """of a trained part: `step` from which it was trained by another recipe, and what that `changed`"""

    def status(self, depth: Depth = "size") -> Status:
        """Whether the folder holds this very part, whole; see `changes` for what `depth` looks at."""
        try:
            record = read_record(self.folder)
        except LdmkitError:
            return Status("damaged", f"{RECORD} is damaged", whole=False)
        if record is None:
            return Status("missing")
        made_of = record.get("made_of", {})
        again = [name for name, weights in self.made_of.items() if made_of.get(name, weights) != weights]
        if record["fingerprint"] != self.fingerprint:
            reason = "; ".join(differences(record["inputs"], self.inputs)) or "made from other inputs"
            return Status("changed" if not again and self._takes_up(record["inputs"]) else "stale", reason)
        if again:
            return Status("stale", f"{' and '.join(again)} trained again")
        if record["state"] != "done":
            return Status("interrupted")
        if self.bundle is not None:
            return self._bundle(depth)
        found = list(changes(self.folder, record, depth))
        told = [f"{name} {what}" for name, what, read in found if read] or [f"{name} {what}" for name, what, _ in found]
        more = f", and {len(told) - 1} more" if len(told) > 1 else ""
        damaged = any(change.read for change in found)
        return Status("damaged" if damaged else "done", told[0] + more if told else self.note, whole=not found)

    def _bundle(self, depth: Depth) -> Status:
        assert self.bundle is not None
        try:
            manifest = json.loads((self.bundle / "manifest.json").read_bytes())
            files = {name: (entry["size"], entry["sha256"]) for name, entry in manifest["files"].items()}
            other = manifest["fingerprint"] != self.fingerprint
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return Status("missing", f"{self.bundle} holds no bundle")
        if other:
            return Status("missing", f"{self.bundle} holds another bundle")
        found = list(changes(self.bundle, {"files": files}, depth))
        if found:
            return Status("missing", f"{self.bundle / found[0].name} {found[0].what}", whole=False)
        return Status("done")

    def fits(self, inputs: Mapping[str, Any]) -> bool:
        """Whether what was trained from these inputs can be trained on from this part's."""
        return self._hard(inputs) == self._hard(self.inputs)

    def _hard(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        own = inputs.get(self.name)
        if not isinstance(own, dict):
            return dict(inputs)
        return {**inputs, self.name: {key: value for key, value in own.items() if key not in self.goes_on}}

    def _takes_up(self, inputs: Mapping[str, Any]) -> bool:
        """Whether training goes on from where these inputs brought it: not beyond where it is to end."""
        newest = newest_state(self.folder) if self.goes_on and self.fits(inputs) else None
        if newest is None or not self.fits(newest["inputs"]):
            return False
        own, number = self.inputs[self.name], newest.get("num_samples")
        if own["steps"] is not None:
            return bool(newest["step"] <= own["steps"])
        return number is not None and newest["step"] <= -(-own["epochs"] * number // own["batch_size"])

    def can_restore(self) -> bool:
        """Whether a damaged part has a checkpoint that this recipe goes on from."""
        newest = newest_state(self.folder)
        return newest is not None and self._takes_up(newest["inputs"])

    def begin(self, *, anew: bool = False, extend: bool = False) -> None:
        """Marks the part as being made; a stale one, or any where it is made `anew`, is set aside, never deleted.

        With `extend` what was set aside becomes `earlier`, which an interrupted one still knows.
        """
        status = self.status()
        filled = self.folder.is_dir() and any(self.folder.iterdir())
        earlier = ""
        if filled and (anew or status.state in ("stale", "missing")):
            aside = self.set_aside()
            earlier = aside.name if extend else ""
        elif status.state == "interrupted":
            earlier = (read_record(self.folder) or {}).get("earlier", "")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.earlier = self.folder.parent / "stale" / earlier if earlier else None
        known = {"earlier": earlier} if earlier else {}
        write_sealed(self.folder / RECORD, {**self._record(), "state": "running", **known})

    def discard(self) -> None:
        """Removes the folder of a cache that is no longer what was written."""
        remove_folder(self.folder)

    def take_back(self, aside: Path) -> None:
        """Moves a folder of `stale/` back, and what is in its place there."""
        if self.folder.exists():
            self.set_aside()
        aside.rename(self.folder)

    def aside(self) -> Path | None:
        """The newest folder of `stale/` that holds this very part, whole."""
        if self.bundle is not None:
            return None
        for folder in sorted(self.folder.parent.glob(f"stale/{self.name}-*"), key=_number, reverse=True):
            part = Part(folder, self.name, {}, self.made_of)
            part.inputs, part.fingerprint = self.inputs, self.fingerprint
            if part.status("hash").state == "done":
                return folder
        return None

    def _record(self) -> dict[str, Any]:
        return {"inputs": self.inputs, "fingerprint": self.fingerprint, "made_of": self.made_of}

    def finish(self, seconds: float, **facts: Any) -> None:
        """Marks the part as whole; `facts` are kept in the record."""
        weights = trained_file(self.folder)
        files = {} if self.bundle is not None else list_files(self.folder)
        write_sealed(
            self.folder / RECORD,
            {
                **self._record(),
                "state": "done",
                "seconds": round(seconds, 1),
                "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
                "weights": files[weights.name][1] if weights.name in files else None,
                "files": files,
                **({"history": self.history} if self.history else {}),
                **facts,
            },
        )

    def record(self) -> dict[str, Any]:
        """The record of a part that is done. Raises LdmkitError where it is not."""
        status = self.status()
        if status.state != "done":
            raise LdmkitError(
                f"{self.folder}: not finished{f' ({status.reason})' if status.reason else ''}; `ldmkit train` with the "
                "run's recipe goes on"
            )
        return read_record(self.folder) or {}

    def set_aside(self) -> Path:
        """Moves the folder to `stale/` of the run: nothing that was trained is deleted; returns where it lies there."""
        aside = self.folder.parent / "stale"
        aside.mkdir(exist_ok=True)
        for count in range(1, 10_000):
            target = aside / f"{self.name}-{count}"
            if not target.exists():
                return self.folder.rename(target)
        raise LdmkitError(f"{aside}: too many parts set aside; remove what is not needed")


def weights_of(folder: Path) -> str | None:
    """SHA-256 of a finished part's weights, by its record; None where it is not finished, or has none."""
    record = _finished(folder)
    return record.get("weights") if record else None


def is_finished(folder: Path) -> bool:
    """Whether the folder holds a part that was made whole, whatever it was made from."""
    return _finished(folder) is not None


def _finished(folder: Path) -> dict[str, Any] | None:
    try:
        record = read_record(folder)
    except LdmkitError:
        return None
    return record if record is not None and record["state"] == "done" else None


def _number(folder: Path) -> int:
    last = folder.name.rpartition("-")[2]
    return int(last) if last.isdecimal() else 0


def differences(old: Any, new: Any, key: str = "") -> list[str]:
    """`key: old -> new` for each leaf that differs."""
    if isinstance(old, dict) and isinstance(new, dict):
        lines: list[str] = []
        for name in sorted(old.keys() | new.keys()):
            lines += differences(old.get(name), new.get(name), f"{key}.{name}" if key else name)
        return lines
    if old == new:
        return []
    if any(isinstance(v, str) and len(v) == 64 for v in (old, new)):
        return [f"{key} changed"]
    return [f"{key}: {json.dumps(old)} -> {json.dumps(new)}"]


def recipe_of_run(folder: Path) -> "Recipe":
    """The recipe that a run folder was made with. Raises LdmkitError where `folder` is no run."""
    from ldmkit.recipe import Recipe  # pydantic, which `--help` does without

    try:
        return Recipe.model_validate_json(json.dumps(read_sealed(folder / "recipe.json")))
    except FileNotFoundError:
        what = "not a run: it has no recipe.json" if folder.is_dir() else "no such folder"
        raise LdmkitError(f"{folder}: {what}; runs lie in runs/") from None
    except NotADirectoryError:
        raise LdmkitError(f"{folder}: a file, not a run; the run of a recipe is the folder runs/NAME") from None
    except (OSError, ValueError):
        raise LdmkitError(
            f"{folder / 'recipe.json'}: damaged, or of another version of ldmkit; "
            "`ldmkit train` with the run's recipe writes it anew"
        ) from None


def newest_finished_run(runs_dir: Path) -> Path:
    """The run that a network which draws was finished in last. Raises LdmkitError where there is none."""
    records = [record for name in ("unet", "t2i") for record in runs_dir.glob(f"*/{name}/{RECORD}")]
    finished = [record for record in records if is_finished(record.parent)]
    if not finished:
        raise LdmkitError(f"{runs_dir}: no finished run here; `ldmkit train RECIPE` makes one")
    return max(finished, key=lambda record: record.stat().st_mtime_ns).parent.parent
