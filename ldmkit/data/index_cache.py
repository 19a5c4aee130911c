"""`pictures.json`: what `scan` found of each file, kept by its size and time, with its own SHA-256."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from ldmkit.atomic import write_atomic
from ldmkit.errors import LdmkitError

# Raised whenever `decode` accepts other files or measures them otherwise.
_VERSION = 3


def read_cache(path: Path | None, folder: Path | None) -> dict[str, dict[str, Any]]:
    """{key: row of _measure}, of any folder for None; empty where there is none, or it is not what was written."""
    try:
        data = path.read_bytes() if path is not None else b"{}"
        table = json.loads(data)
    except (OSError, ValueError, RecursionError):
        return {}  # a cache: what cannot be read is computed again
    if not isinstance(table, dict) or table.get("version") != _VERSION:
        return {}
    if folder is not None and table.get("folder") != str(folder):
        return {}
    sealed = _is_sealed(data)
    if table.keys() - {"version", "folder", "pictures"} and not sealed:
        return {}
    rows = table.get("pictures")
    return rows if isinstance(rows, dict) and (sealed or all(map(_is_row, rows.values()))) else {}


def _is_row(row: Any) -> bool:
    kinds = {"size": int, "mtime_ns": int, "width": int, "height": int, "sha256": str, "note": str | None}
    wanted = {"size", "mtime_ns", "reason"} if isinstance(row, dict) and "reason" in row else set(kinds)
    return (
        isinstance(row, dict)
        and row.keys() - {"look"} == wanted
        and ("look" not in row or _is_look(row["look"]))
        and all(isinstance(row[key], kinds.get(key, str)) for key in wanted)
        and re.fullmatch("[0-9a-f]{64}", row.get("sha256", "0" * 64)) is not None
    )


def _is_look(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 3
        and isinstance(value[0], str)
        and re.fullmatch("[0-9a-f]{64}", value[0]) is not None
        and isinstance(value[1], int)
        and isinstance(value[2], list | None)
        and all(isinstance(sharpness, float) for sharpness in value[2] or ())
    )


def write_cache(path: Path, folder: Path, pictures: dict[str, dict[str, Any]]) -> None:
    # ASCII JSON keeps keys whose bytes are no UTF-8.
    table = {"version": _VERSION, "folder": str(folder), "pictures": dict(sorted(pictures.items()))}
    try:
        content = json.dumps(table).encode("ascii")
        write_atomic(path, content[:-1] + _seal(content))
    except OSError as error:
        raise LdmkitError(f"{path}: the list of pictures cannot be written: {error.strerror or error}") from error


def _seal(content: bytes) -> bytes:
    """What takes the place of the last brace: its SHA-256 as one more key."""
    return f', "sha256": "{hashlib.sha256(content).hexdigest()}"}}'.encode()


def _is_sealed(data: bytes) -> bool:
    """Whether it is as it was written; of a million pictures nothing more can be looked at in a second."""
    length = len(_seal(b""))
    return data[-length:] == _seal(data[:-length] + b"}")
