"""The run folder: what each part of a run was made from, whether it still holds, and its metrics. No torch."""

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ldmkit.atomic import write_atomic, write_json
from ldmkit.errors import LdmkitError

if TYPE_CHECKING:
    from ldmkit.recipe import Recipe

FORMAT = 1
RECORD = "record.json"


def fingerprint(inputs: Mapping[str, Any]) -> str:
    """SHA-256 (hex) over the JSON of what a part was made from."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


@dataclass(frozen=True)
class Status:
    """State of one part of a run."""

    state: Literal["done", "missing", "interrupted", "stale"]
    reason: str = ""


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
    ) -> None:
        """`made_of`: SHA-256 of the weights of each trained part before this one, as far as they are known.

        They stand beside the inputs: a part that was trained again from the same inputs, on another machine say, may
        be another one, and what was made of the old one is then stale. `bundle`: where the files of a bundle lie, whose
        record alone is in `folder`.
        """
        self.folder = folder
        self.name = name
        self.bundle = bundle
        self.made_of = dict(made_of or {})
        # Through JSON once, so that tuples compare equal to the lists read back.
        self.inputs: dict[str, Any] = json.loads(json.dumps({"format": FORMAT, **inputs}))
        self.fingerprint = fingerprint(self.inputs)

    def status(self) -> Status:
        """Whether the folder holds this very part, whole."""
        status = self._recorded()
        gone = self.bundle is not None and not (self.bundle / "manifest.json").is_file()
        return Status("missing") if gone and status.state == "done" else status

    def _recorded(self) -> Status:
        record_file = self.folder / RECORD
        if not record_file.is_file():
            return Status("missing")
        try:
            record = json.loads(record_file.read_text(encoding="utf-8"))
            old, state, made_of = record["inputs"], record["state"], dict(record.get("made_of", {}))
        except (ValueError, KeyError, TypeError):
            return Status("stale", f"{record_file} is damaged")
        if fingerprint(old) != self.fingerprint:
            return Status("stale", "; ".join(differences(old, self.inputs)) or "made from other inputs")
        if again := [name for name, weights in self.made_of.items() if made_of.get(name, weights) != weights]:
            return Status("stale", f"{' and '.join(again)} trained again")
        return Status("done") if state == "done" else Status("interrupted")

    def begin(self) -> None:
        """Marks the part as being made; a stale one is set aside first, never deleted."""
        status = self._recorded()
        unknown = status.state == "missing" and self.folder.is_dir() and any(self.folder.iterdir())
        if status.state == "stale" or unknown:
            self.set_aside()
        if status.state in ("stale", "missing"):
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self.folder / RECORD, {**self._record(), "state": "running"})

    def _record(self) -> dict[str, Any]:
        return {"inputs": self.inputs, "fingerprint": self.fingerprint, "made_of": self.made_of}

    def finish(self, seconds: float, **facts: Any) -> None:
        """Marks the part as whole; `facts` are kept in the record."""
        write_json(
            self.folder / RECORD,
            {
                **self._record(),
                "state": "done",
                "seconds": round(seconds, 1),
                "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
                "weights": _weights_hash(self.folder),
                **facts,
            },
        )

    def record(self) -> dict[str, Any]:
        """The record of a part that is done. Raises LdmkitError where it is not."""
        if self.status().state != "done":
            raise LdmkitError(f"{self.folder}: not finished; `ldmkit train` with the run's recipe goes on")
        record: dict[str, Any] = json.loads((self.folder / RECORD).read_text(encoding="utf-8"))
        return record

    def set_aside(self) -> None:
        """Moves the folder to `stale/` of the run: nothing that was trained is deleted."""
        aside = self.folder.parent / "stale"
        aside.mkdir(exist_ok=True)
        for count in range(1, 10_000):
            target = aside / f"{self.name}-{count}"
            if not target.exists():
                self.folder.rename(target)
                return
        raise LdmkitError(f"{aside}: too many parts set aside; remove what is not needed")


def weights_of(folder: Path) -> str | None:
    """SHA-256 of a finished part's weights, by its record; None where it is not finished, or has none."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        return record.get("weights") if record["state"] == "done" else None
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None


def trained_file(folder: Path) -> Path:
    """A finished training stage's averaged weights, or the plain ones where no average was kept."""
    ema = folder / "ema.safetensors"
    return ema if ema.is_file() else folder / "model.safetensors"


def _weights_hash(folder: Path) -> str | None:
    """Of those that later stages use."""
    if not trained_file(folder).is_file():
        return None
    with trained_file(folder).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_finished(folder: Path) -> bool:
    """Whether the folder holds a part that was made whole, whatever it was made from."""
    try:
        return bool(json.loads((folder / RECORD).read_text(encoding="utf-8"))["state"] == "done")
    except (OSError, ValueError, KeyError, TypeError):
        return False


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


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the run's lock for the block; a process that dies, however it does, lets go of it.

    Raises LdmkitError where another living process has it, or the folder cannot be written.
    """
    from filelock import FileLock, Timeout  # 60 ms, which who only looks at a run can do without

    file = folder / ".lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(file, timeout=0, on_acquired=_write_process).acquire()
    except Timeout:
        time.sleep(0.2)  # the other one may be about to write its number
        holder = file.read_text().strip() if os.access(file, os.R_OK) else ""
        raise LdmkitError(
            f"{folder}: in use by process {holder or 'unknown'}; wait until it is done, or end it"
        ) from None
    except OSError as error:
        raise LdmkitError(f"{folder}: cannot be written: {error.strerror or error}") from None
    with lock:
        yield


def _write_process(handle: int) -> None:
    os.ftruncate(handle, 0)
    os.write(handle, str(os.getpid()).encode())


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
            rows.append(json.loads(line))
        except (ValueError, RecursionError):
            if number < len(lines):  # and neither cut short nor what follows the last line's end
                raise LdmkitError(f"{path}, line {number}: no JSON; correct or remove the line") from None
    return rows


def recipe_of_run(folder: Path) -> "Recipe":
    """The recipe that a run folder was made with. Raises LdmkitError where `folder` is no run."""
    from ldmkit.recipe import Recipe  # pydantic, which `--help` does without

    try:
        return Recipe.model_validate_json((folder / "recipe.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise LdmkitError(f"{folder}: not a run: it has no recipe.json; runs lie in runs/") from None
    except ValueError:
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
