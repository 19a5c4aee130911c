"""What a run's files are checked by: SHA-256 and size in a finished part's record, JSON that vouches for itself.

No torch.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ldmkit.atomic import json_bytes, write_atomic
from ldmkit.errors import LdmkitError
from ldmkit.run.parts import PARTS

RECORD = "record.json"
CONTENTS = "contents.json"
"""{key: SHA-256} of the pictures that a part is made from, in the index's order"""
SEAL = "seal"
_SMALL = 1 << 20
"""bytes up to which a file is hashed even where size alone is looked at: it takes no time"""
_SHOWN = ("loss.png",)
"""of a part's own files those that nothing reads; so it is with all in its subfolders, but for checkpoints, which have
a manifest of their own"""
_RECORD_KEYS = {"inputs", "fingerprint", "made_of", "state", "seconds", "finished", "weights", "facts"}
_RECORD_KEYS |= {"earlier", "files", "history", "caption_content", SEAL}

Depth = Literal["size", "hash"]


class Change(NamedTuple):
    """A file of a finished part that is not what it was."""

    name: str
    """relative to the part's folder"""
    what: str
    read: bool
    """whether a later stage reads it; a picture or a plot is looked at alone"""


def fingerprint(inputs: Mapping[str, Any]) -> str:
    """SHA-256 (hex) over the JSON of what a part was made from."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def sha256_of(file: Path) -> str:
    """SHA-256 (hex) of a file."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def write_sealed(path: Path, value: Mapping[str, Any]) -> None:
    """Writes a JSON object with its own SHA-256, whole or not at all."""
    write_atomic(path, _sealed(value))


def read_sealed(path: Path) -> dict[str, Any]:
    """The object of a file that `write_sealed` wrote, without its hash.

    A file without a hash is an earlier version's: whoever reads it refuses a key that it does not know. Raises
    ValueError where it is no JSON object or not, byte for byte, what was written, OSError where it cannot be read.
    """
    data = path.read_bytes()
    try:
        value = json.loads(data)
    except RecursionError:
        raise ValueError("nested too deep") from None
    if not isinstance(value, dict):
        raise ValueError("no JSON object")
    if SEAL in value:
        del value[SEAL]
        if not _is_as_written(data):
            raise ValueError("not what was written")
    return value


@lru_cache(maxsize=64)
def _is_as_written(data: bytes) -> bool:
    """A command reads the same records many times, and writing them out again takes most of it."""
    value = json.loads(data)
    del value[SEAL]
    return _sealed(value) == data


def _sealed(value: Mapping[str, Any]) -> bytes:
    return json_bytes({**value, SEAL: hashlib.sha256(json_bytes(value)).hexdigest()})


def read_record(folder: Path) -> dict[str, Any] | None:
    """The record of a part; None where there is none. Raises LdmkitError where it is damaged."""
    file = folder / RECORD
    try:
        record = read_sealed(file)
        whole = (
            record.keys() <= _RECORD_KEYS
            and record["state"] in ("running", "done")
            and record["fingerprint"] == fingerprint(record["inputs"])
            and isinstance(record.get("made_of", {}), dict)
            and all(_is_entry(entry) for entry in dict(record.get("files", {})).values())
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise LdmkitError(f"{file} is damaged; {remedy(folder)}")
    return record


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, list) and [type(value) for value in entry] == [int, str]


def list_files(folder: Path) -> dict[str, tuple[int, str]]:
    """(size, SHA-256) of each file below a part's folder but its record, by its `/`-separated path in it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / RECORD)
    return {file.relative_to(folder).as_posix(): (file.stat().st_size, sha256_of(file)) for file in files}


def changes(folder: Path, record: Mapping[str, Any], depth: Depth) -> Iterator[Change]:
    """What differs from a finished part's record: by size, and of small files that are read by hash; or all by hash.

    The record of an earlier version knows the weights' hash alone.
    """
    for name, (size, sha256) in record.get("files", {}).items():
        file, read = folder / name, "/" not in name and name not in _SHOWN
        try:
            found = file.stat().st_size
            if found != size:
                yield Change(name, f"has {found} bytes and not {size}", read)
            elif (depth == "hash" or (read and size <= _SMALL)) and sha256_of(file) != sha256:
                yield Change(name, "is not what was written: its SHA-256 differs", read)
        except FileNotFoundError:
            yield Change(name, "is gone", read)
        except OSError as error:
            yield Change(name, f"cannot be read: {error.strerror or error}", read)
    if "files" not in record and record.get("weights"):
        weights = trained_file(folder)
        if not weights.is_file():
            yield Change(weights.name, "is gone", True)
        elif depth == "hash" and sha256_of(weights) != record["weights"]:
            yield Change(weights.name, "is not what was written: its SHA-256 differs", True)


def check(*files: Path) -> None:
    """Before files of finished parts are used. Raises LdmkitError where one is not what its part's record has."""
    for folder in dict.fromkeys(file.parent for file in files):
        record = read_record(folder)
        if record is not None:
            own = {file.name for file in files if file.parent == folder}
            some = {name: entry for name, entry in record.get("files", {}).items() if name in own}
            part = {**record, "files": some} if "files" in record else record
            for change in changes(folder, part, "hash"):
                if change.name in own:
                    raise LdmkitError(f"{folder / change.name} {change.what}; {remedy(folder)}")


def trained_file(folder: Path) -> Path:
    """A finished training stage's averaged weights, or the plain ones where no average was kept."""
    ema = folder / "ema.safetensors"
    try:
        files = (read_record(folder) or {}).get("files", {})
    except LdmkitError:
        files = {}
    return ema if ema.name in files or ema.is_file() else folder / "model.safetensors"


def remedy(folder: Path) -> str:
    """What makes a part good again."""
    spec = PARTS.get(folder.name)
    if spec is None:
        return "take another copy of it"
    command = f"`ldmkit {spec.stage} RECIPE`"
    if spec.trained:
        return f"{command} with this run's recipe takes it from the last checkpoint"
    if spec.edited:
        return f"{command} keeps what is there, and with --again makes it anew"
    return f"{command} with this run's recipe makes it again"
