"""`pictures.safetensors`: what `scan` found of each file, kept by its size and time, with its own SHA-256."""

import hashlib
import json
import re
import struct
from pathlib import Path
from typing import Any

from ldmkit.data.columns import load_columns, save_columns
from ldmkit.data.looks import LEVELS
from ldmkit.data.rows import Rows
from ldmkit.errors import LdmkitError

INDEX = "pictures.safetensors"
# Raised whenever `decode` accepts other files or measures them otherwise.
_VERSION = 3


def index_file(folder: Path) -> Path | None:
    """The one in this folder, in today's form or the earlier one; None where there is none."""
    path = folder / INDEX
    return next((each for each in (path, path.with_suffix(".json")) if each.is_file()), None)


def read_cache(path: Path | None, folder: Path | None) -> Rows:
    """Of the pictures of a folder, of any for None; empty where there are none, or the file is not what was written.

    Where it is not there, the one in the earlier form beside it is read.
    """
    about = {"version": str(_VERSION)} | ({"folder": json.dumps(str(folder))} if folder is not None else {})
    try:
        if path is not None and (columns := load_columns(path, about)) is not None:
            return Rows.from_columns(columns)
        if path is not None and not path.exists():
            return Rows.of(sorted(_read_json(path.with_suffix(".json"), folder).items()))
    except (OSError, ValueError, KeyError, RecursionError, struct.error):
        pass  # a cache: what cannot be read is computed again
    return Rows.of(())


def _read_json(path: Path, folder: Path | None) -> dict[str, dict[str, Any]]:
    """{key: row of `Rows.of`} as it was written until 2026, in JSON with a seal in place of its last brace."""
    data = path.read_bytes()
    table = json.loads(data)
    if not isinstance(table, dict) or table.get("version") != _VERSION:
        return {}
    if folder is not None and table.get("folder") != str(folder):
        return {}
    seal = hashlib.sha256(data[: -len(_SEAL.format("0" * 64))] + b"}").hexdigest()
    sealed = data.endswith(_SEAL.format(seal).encode())
    if table.keys() - {"version", "folder", "pictures"} and not sealed:
        return {}
    rows = table.get("pictures")
    return rows if isinstance(rows, dict) and all(map(_is_row, rows.values())) else {}


_SEAL = ', "sha256": "{}"}}'


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
        and len(value[2] or ()) <= len(LEVELS)
        and all(isinstance(sharpness, float) for sharpness in value[2] or ())
    )


def write_cache(path: Path, folder: Path, rows: Rows) -> None:
    """Writes them ordered by key. Raises LdmkitError where it cannot be written."""
    try:
        save_columns(
            path, rows.take(rows.names.order()).columns(), {"version": str(_VERSION), "folder": json.dumps(str(folder))}
        )
        path.with_suffix(".json").unlink(missing_ok=True)
    except OSError as error:
        raise LdmkitError(f"{path}: the list of pictures cannot be written: {error.strerror or error}") from error
