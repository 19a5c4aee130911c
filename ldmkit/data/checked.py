"""What `ldmkit data check` leaves for a run: what it has read of each file, and which pictures to leave out."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath

from ldmkit.atomic import write_atomic
from ldmkit.data.index_cache import INDEX
from ldmkit.data.pictures import PictureIndex, scan
from ldmkit.data.remote import address, expanded
from ldmkit.data.sources import Source, is_container
from ldmkit.errors import LdmkitError
from ldmkit.recipe.data import Data
from ldmkit.report import printable


def checked_folder(path: str, runs_dir: Path = Path("runs")) -> Path:
    """Where `data check` writes on the pictures of a folder; no run's name begins with an underscore."""
    whole = os.path.abspath(path)  # noqa: PTH100 - as `scan`
    return runs_dir / "_checks" / f"{Path(whole).name}-{hashlib.sha256(os.fsencode(whole)).hexdigest()[:8]}"


def scan_data(
    data: Data,
    *,
    index_cache: Path | None = None,
    checking: bool = False,
    progress: Callable[[int, int], None] | None = None,
    closely: bool = False,
) -> PictureIndex:
    """The pictures of a recipe, as `scan` reads them; of what `data check` has read none is decoded again.

    `checking`: as `data check` reads them, with their looks, however many cannot be used, and with its own cache.
    """
    checked = checked_folder(data.path) / INDEX
    return scan(
        Path(data.path),
        follow_links=data.follow_links,
        max_pictures=data.num_pictures,
        max_bad=None if checking else data.max_bad,
        index_cache=checked if checking else index_cache,
        also=None if checking else checked,
        looks=checking or data.group_duplicates,
        excluded=read_excluded(data.exclude),
        progress=progress,
        closely=closely,
    )


def read_excluded(file: str) -> frozenset[str]:
    """The keys that a list for `data.exclude` names; none without a list.

    Raises LdmkitError where it cannot be read, or a line is no `{"file": ...}`.
    """
    if not file:
        return frozenset()
    try:
        lines = Path(file).read_bytes().split(b"\n")
    except OSError as error:
        raise LdmkitError(f"data.exclude: {file} cannot be read: {error.strerror or error}") from error
    keys = set()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            keys.add(PurePosixPath(json.loads(line)["file"]).as_posix())
        except (ValueError, TypeError, KeyError, RecursionError):
            raise LdmkitError(f'data.exclude: {file}, line {number}: needs an object as {{"file": "a.jpg"}}') from None
    return frozenset(keys)


def write_excluded(file: Path, reasons: Mapping[str, str]) -> None:
    """`reasons` by key, a line of JSON each: to be looked through, and named by `data.exclude`."""
    rows = [json.dumps({"file": key, "reason": reason}) + "\n" for key, reason in sorted(reasons.items())]
    write_atomic(file, "".join(rows).encode("ascii"))


def require_movable(path: Path, to: Path) -> None:
    """Raises LdmkitError where nothing could be moved to `to`, since it is no folder of files: said before the work."""
    if address(path) or (path.is_file() and is_container(path.name)) or expanded(str(path))[1:]:
        raise LdmkitError(f"--quarantine {to}: nothing is moved out of {path}; leave pictures out with data.exclude")


def quarantine(files: Source, reasons: Mapping[str, str], to: Path, captions: Mapping[str, list[str]]) -> int:
    """Moves these files of a folder to the same place below `to`, each with its `captions`, and lists them there.

    The list, `moved.jsonl`, comes first: a move that is stopped half-way is known by it. Returns how many there were.
    Raises LdmkitError, before anything is moved, where `to` lies inside the folder or holds a file of the same name, or
    where one of them lies in an archive; `require_movable` has refused what is no folder of one's own.
    """
    folder = files.path
    if apart := [key for key in reasons if files.in_archive(key)]:
        where = f"an archive: {printable(apart[0]) or folder}"
        raise LdmkitError(f"--quarantine {to}: nothing is moved out of {where}; leave them out with data.exclude")
    if Path(os.path.abspath(to)).is_relative_to(os.path.abspath(folder)):  # noqa: PTH100 - as `scan`
        raise LdmkitError(f"--quarantine {to}: lies inside {folder}, where it would be read again; name another folder")
    moves = {key: [key, *captions.get(key, [])] for key in reasons if os.path.lexists(folder / key)}
    names = dict.fromkeys(name for own in moves.values() for name in own)
    if taken := [name for name in names if os.path.lexists(to / name)]:
        raise LdmkitError(f"--quarantine {to}: holds {printable(taken[0])} already; name another folder")
    if moves:
        earlier = (to / "moved.jsonl").read_bytes().decode("ascii") if (to / "moved.jsonl").exists() else ""
        rows = [json.dumps({"file": key, "reason": reasons[key]}) + "\n" for key in moves]
        write_atomic(to / "moved.jsonl", (earlier + "".join(rows)).encode("ascii"))
    for name in names:
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.move(folder / name, to / name)
    return len(moves)
