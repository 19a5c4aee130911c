"""Lists a folder of pictures: every file decoded once, broken ones left out with the reason."""

import hashlib
import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from ldmkit.atomic import write_atomic
from ldmkit.components.protocols import Picture
from ldmkit.data.decode import FORMATS, LARGE_BYTES, MAX_BYTES, SUFFIXES, DecodeError, measure, one_large
from ldmkit.data.kinds import HEAD, kind
from ldmkit.data.sources import Source
from ldmkit.errors import LdmkitError
from ldmkit.report import printable

T = TypeVar("T")
# Raised whenever `decode` accepts other files or measures them otherwise.
_CACHE_VERSION = 3


@dataclass(frozen=True)
class Entry:
    """One good picture."""

    key: str
    """path relative to the folder, with ending, `/`-separated; bytes that are no UTF-8 as surrogates (PEP 383)"""
    sha256: str
    """of the file's bytes, hexadecimal"""
    width: int
    """pixels, upright"""
    height: int
    """pixels, upright"""
    size: int
    """bytes"""
    mtime_ns: int
    """time of the last change, nanoseconds"""
    note: str | None = None
    """what of the file is lost or taken on trust, as frames after the first"""


@dataclass(frozen=True)
class PictureIndex:
    """The pictures of a folder, ordered by key."""

    folder: Path
    entries: tuple[Entry, ...]
    rejected: tuple[tuple[str, str], ...]
    """(key, reason) of each file that has a picture's ending and is left out"""
    unread: tuple[str, ...] = ()
    """what was not looked at, for a person: files by ending, those that begin like a picture, system folders"""
    source: Source | None = field(default=None, compare=False, repr=False)
    """what holds them; None where they are only remembered"""

    def __len__(self) -> int:
        return len(self.entries)

    @cached_property
    def hash(self) -> str:
        """SHA-256 over all keys and contents: changes exactly when the data set does."""
        digest = hashlib.sha256()
        for entry in self.entries:
            # No file name holds a NUL, so the records cannot run into each other.
            digest.update(_key_bytes(entry.key) + b"\0" + bytes.fromhex(entry.sha256))
        return digest.hexdigest()

    def pictures(self) -> list[Picture]:
        """The same pictures in the same order, to be decoded when needed; they pickle, for loader processes."""
        source = self.source or Source(self.folder)
        return [source.picture(entry.key) for entry in self.entries]

    def split(self, held_out: float, seed: int = 0) -> tuple[list[int], list[int]]:
        """Indices to train on and indices held out, about `held_out` of all.

        A picture's side depends on its key and the seed alone, so adding others moves none; copies of one content
        go with the first of them. Something is always left to train on, and with two contents or more and `held_out`
        above 0 something is held out.
        """
        if not 0 <= held_out < 1:
            raise LdmkitError(f"data.held_out must be at least 0 and below 1, not {held_out}")
        first: dict[str, str] = {}  # content -> key
        for entry in self.entries:
            first.setdefault(entry.sha256, entry.key)
        shares = {content: _share(key, seed) for content, key in first.items()}
        held = {content for content, share in shares.items() if share < held_out}
        if held and len(held) == len(shares):
            held.remove(max(shares, key=shares.__getitem__))
        elif held_out > 0 and not held and len(shares) > 1:
            held = {min(shares, key=shares.__getitem__)}
        sides: tuple[list[int], list[int]] = ([], [])
        for index, entry in enumerate(self.entries):
            sides[entry.sha256 in held].append(index)
        return sides

    def remarks(self) -> list[str]:
        """What a person should know of these files beside the rejected ones: notes, copies, names that clash."""
        found = [f"{printable(entry.key)}: {entry.note}" for entry in self.entries if entry.note]
        first: dict[tuple[str, str], str] = {}
        for entry in self.entries:
            for remark, value in (
                ("the same content as {}", entry.sha256),
                ("differs from another name by Unicode normalisation only", unicodedata.normalize("NFC", entry.key)),
                (
                    "shares its caption file with {}, which has the same stem",
                    str(PurePosixPath(entry.key).with_suffix("")),
                ),
            ):
                other = first.setdefault((remark, value), entry.key)
                if other != entry.key:
                    found.append(f"{printable(entry.key)}: {remark.format(printable(other))}")
        return found

    def summary(self, limit: int | None = None) -> list[str]:
        """Lines for a person: what is left out and why, then the remarks; at most `limit` of each."""
        lines = []
        if self.source and (prefixes := [prefix for prefix in self.source.archives if prefix]):
            held = Counter(self.source.archive_of(entry.key) for entry in self.entries)
            named = [f"{printable(prefix[:-1])} ({held[prefix]})" for prefix in prefixes[:limit]]
            lines.append(f"archives and tables read: {', '.join(named)}{', ...' if len(prefixes) > len(named) else ''}")
        rejected = [f"{printable(key)}: {reason}" for key, reason in self.rejected]
        for title, found in (("left out", rejected), ("not read", self.unread), ("remarks", self.remarks())):
            if found:
                lines += [f"{len(found)} {title}", *(f"  {line}" for line in found[:limit])]
                lines += [f"  and {len(found) - limit} more"] if limit is not None and len(found) > limit else []
        return lines


def scan(
    folder: Path,
    *,
    follow_links: Sequence[str] = (),
    max_pictures: int | None = None,
    max_bad: float = 0.1,
    index_cache: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    closely: bool = False,
) -> PictureIndex:
    """Decode every picture of `folder`, its subfolders and archives, or of an archive; with `index_cache` only files
    whose size or time changed.

    Left unread: hidden files and folders, files without a picture's ending, recycle bins and the like; the index says
    so of all but the hidden. Symbolic links are followed into the folders of `follow_links` alone, relative to
    `folder`. What lies in an archive and beside it as well is left out of the archive.
    `max_pictures` takes an even sample that does not depend on how names sort. `progress(done, total)` counts files.
    `closely` hashes files of unchanged size and time as well.
    Raises LdmkitError naming data.path, or data.max_bad where a larger share of the files is unusable.
    """
    source = Source(folder, follow_links)
    folder, all_files, rejected, unread = source.path, source.files, list(source.rejected), source.unread
    files = _sample(all_files, max_pictures)
    if not files and not rejected:
        there = "".join(f"\n  not read: {line}" for line in unread[:5])
        raise LdmkitError(
            f"data.path: {folder} holds no pictures ({', '.join(sorted(SUFFIXES))}); "
            f"name a folder that does with --set data.path=DIR{there}"
        )

    cached = _read_cache(index_cache, folder)
    known = {
        key: row
        for key, (size, mtime_ns) in files.items()
        if (row := cached.get(key)) is not None
        and row["size"] == size
        and row["mtime_ns"] == mtime_ns
        and not (closely and "sha256" in row and _sha256(source, key) != row["sha256"])
    }
    unknown = [key for key in files if key not in known]
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        measured = pool.map(lambda key: _measure(source, key, *files[key]), unknown)
        for count, (key, row) in enumerate(zip(unknown, measured, strict=True), 1):
            known[key] = row
            if progress is not None:
                progress(len(files) - len(unknown) + count, len(files))
    kept = {key: row for key, row in cached.items() if key in all_files} | known  # rows beyond this sample as well
    if index_cache is not None and kept != cached:
        _write_cache(index_cache, folder, kept)

    entries, copies = _without_copies(_entries(known, files), source)
    rejected += [(key, known[key]["reason"]) for key in files if "reason" in known[key]]
    index = PictureIndex(folder, entries, tuple(sorted(rejected)), (*unread, *copies), source)
    total = len(entries) + len(rejected)
    if not entries or len(rejected) > max_bad * total:
        shown = "".join(f"\n  {printable(key)}: {reason}" for key, reason in index.rejected[:5])
        more = f"\n  and {len(rejected) - 5} more" if len(rejected) > 5 else ""
        raise LdmkitError(
            f"data.path: {len(rejected)} of {total} files in {folder} cannot be used, "
            f"more than data.max_bad = {max_bad:g} allows; repair or remove them:{shown}{more}"
        )
    return index


def remembered(index_cache: Path, folder: Path, *, max_pictures: int | None = None) -> PictureIndex | None:
    """The pictures as `scan` last saw them, wherever they are now; None where that is not known."""
    rows = _read_cache(index_cache, None)
    entries = _entries(rows, _sample(dict(sorted(rows.items())), max_pictures))
    return PictureIndex(Path(os.path.abspath(folder)), entries, ()) if entries else None  # noqa: PTH100 - as `scan`


def _sample(files: dict[str, T], count: int | None) -> dict[str, T]:
    if count is None:
        return files
    return dict(sorted(sorted(files.items(), key=lambda item: _share(item[0], "sample"))[:count]))


def _entries(rows: Mapping[str, dict[str, Any]], keys: Iterable[str]) -> tuple[Entry, ...]:
    return tuple(Entry(key=key, **rows[key]) for key in keys if "reason" not in rows[key])


def _without_copies(entries: tuple[Entry, ...], source: Source) -> tuple[tuple[Entry, ...], list[str]]:
    """Without those in a folder's archives that lie in the folder as files too, as in a backup; and what to say."""
    if source.folder is None or not source.archives:
        return entries, []
    inside = [source.archive_of(entry.key) for entry in entries]
    files = {entry.sha256 for entry, prefix in zip(entries, inside, strict=True) if not prefix}
    total = Counter(prefix for prefix in inside if prefix)
    copies = Counter(p for entry, p in zip(entries, inside, strict=True) if p and entry.sha256 in files)
    kept = tuple(e for e, p in zip(entries, inside, strict=True) if not p or e.sha256 not in files)
    said = "copies of files beside the archive; left out"
    return kept, [f"{printable(prefix)}: {copies[prefix]} of {total[prefix]} pictures are {said}" for prefix in copies]


def _sha256(source: Source, key: str) -> str | None:
    try:
        return hashlib.sha256(source.read(key, MAX_BYTES)).hexdigest()
    except OSError:
        return None


def _measure(source: Source, key: str, size: int, mtime_ns: int) -> dict[str, Any]:
    """An Entry's fields, or size, mtime_ns and the reason why it cannot be used."""
    row: dict[str, Any] = {"size": size, "mtime_ns": mtime_ns}
    try:
        with one_large if size > LARGE_BYTES else nullcontext():
            data = source.read(key, MAX_BYTES)
            (width, height), note = measure(data)
    except OSError as error:
        return {**row, "reason": f"cannot be read ({error.strerror or error})"}
    except DecodeError as error:
        name, is_picture = kind(data[:HEAD])
        known = f"; by its first bytes {name}" if name and (not is_picture or name not in FORMATS) else ""
        return {**row, "reason": f"{error}{known}"}
    sha256 = hashlib.sha256(data).hexdigest()
    return {**row, "sha256": sha256, "width": width, "height": height, "note": note}


def _read_cache(path: Path | None, folder: Path | None) -> dict[str, dict[str, Any]]:
    """{key: row of _measure}, of any folder for None; empty where there is none, or it is not what was written."""
    try:
        data = path.read_bytes() if path is not None else b"{}"
        table = json.loads(data)
    except (OSError, ValueError, RecursionError):
        return {}  # a cache: what cannot be read is computed again
    if not isinstance(table, dict) or table.get("version") != _CACHE_VERSION:
        return {}
    if folder is not None and table.get("folder") != str(folder):
        return {}
    if table.keys() - {"version", "folder", "pictures"} and _sealed(table) != data:
        return {}
    rows = table.get("pictures")
    return rows if isinstance(rows, dict) and all(map(_is_row, rows.values())) else {}


def _is_row(row: Any) -> bool:
    kinds = {"size": int, "mtime_ns": int, "width": int, "height": int, "sha256": str, "note": str | None}
    wanted = {"size", "mtime_ns", "reason"} if isinstance(row, dict) and "reason" in row else set(kinds)
    return (
        isinstance(row, dict)
        and row.keys() == wanted
        and all(isinstance(row[key], kinds.get(key, str)) for key in wanted)
        and re.fullmatch("[0-9a-f]{64}", row.get("sha256", "0" * 64)) is not None
    )


def _write_cache(path: Path, folder: Path, pictures: dict[str, dict[str, Any]]) -> None:
    # ASCII JSON keeps keys whose bytes are no UTF-8.
    table = {"version": _CACHE_VERSION, "folder": str(folder), "pictures": dict(sorted(pictures.items()))}
    try:
        write_atomic(path, _sealed(table))
    except OSError as error:
        raise LdmkitError(f"{path}: the list of pictures cannot be written: {error.strerror or error}") from error


def _sealed(table: dict[str, Any]) -> bytes:
    """As it is written: with its own SHA-256."""
    content = {key: value for key, value in table.items() if key != "sha256"}
    sha256 = hashlib.sha256(json.dumps(content).encode("ascii")).hexdigest()
    return json.dumps({**content, "sha256": sha256}).encode("ascii")


def _key_bytes(key: str) -> bytes:
    return key.encode("utf-8", "surrogateescape")


def _share(key: str, salt: int | str) -> float:
    """A number in [0, 1) that depends on its arguments alone."""
    digest = hashlib.sha256(f"{salt}/".encode() + _key_bytes(key)).digest()
    return int.from_bytes(digest[:7], "big") / 2**56
