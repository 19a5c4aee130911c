"""Lists a folder of pictures: every file decoded once, broken ones left out with the reason."""

import hashlib
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from ldmkit.components.protocols import Picture
from ldmkit.data.decode import FORMATS, LARGE_BYTES, MAX_BYTES, SUFFIXES, DecodeError, glance, one_large
from ldmkit.data.index_cache import read_cache, write_cache
from ldmkit.data.kinds import HEAD, kind
from ldmkit.data.looks import BLANK, Look, alike
from ldmkit.data.sources import Source, archive_by_name
from ldmkit.errors import LdmkitError
from ldmkit.report import printable

T = TypeVar("T")
SAME_CONTENT = "the same content as {}"


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
    look: Look | None = None
    """None where it was read by an ldmkit that did not look"""


@dataclass(frozen=True)
class PictureIndex:
    """The pictures of a folder, ordered by key."""

    folder: Path
    entries: tuple[Entry, ...]
    rejected: tuple[tuple[str, str], ...]
    """(key, reason) of each file that has a picture's ending and is left out"""
    unread: tuple[str, ...] = ()
    """what was not looked at, for a person: files by ending, those that begin like a picture, system folders"""
    news: str = field(default="", compare=False)
    """what came and went since the pictures were last read, for a person"""
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
        files = self.files
        return [files.picture(entry.key) for entry in self.entries]

    @cached_property
    def files(self) -> Source:
        """What holds them, opened where it was not."""
        return self.source or Source(self.folder)

    @cached_property
    def alike(self) -> dict[str, str]:
        """For each content the first one of its near-duplicates; blank pictures are like none. Needs `looks`."""
        contents = {e.sha256: e.look.phash for e in self.entries if e.look and e.look.contrast >= BLANK}
        names = list(contents)
        return dict(zip(names, (names[first] for first in alike(list(contents.values()))), strict=True))

    def split(self, held_out: float, seed: int = 0, *, together: bool = False) -> tuple[list[int], list[int]]:
        """Indices to train on and indices held out, about `held_out` of all.

        A picture's side depends on its key and the seed alone, so adding others moves none; copies of one content,
        and with `together` all that is alike, go with the first of them. Something is always left to train on, and
        with two contents or more and `held_out` above 0 something is held out.
        """
        if not 0 <= held_out < 1:
            raise LdmkitError(f"data.held_out must be at least 0 and below 1, not {held_out}")
        alike = self.alike if together else {}
        contents = [alike.get(entry.sha256, entry.sha256) for entry in self.entries]
        first: dict[str, str] = {}  # content -> key
        for content, entry in zip(contents, self.entries, strict=True):
            first.setdefault(content, entry.key)
        shares = {content: _share(key, seed) for content, key in first.items()}
        held = {content for content, share in shares.items() if share < held_out}
        if held and len(held) == len(shares):
            held.remove(max(shares, key=shares.__getitem__))
        elif held_out > 0 and not held and len(shares) > 1:
            held = {min(shares, key=shares.__getitem__)}
        sides: tuple[list[int], list[int]] = ([], [])
        for index, content in enumerate(contents):
            sides[content in held].append(index)
        return sides

    def remarks(self) -> list[str]:
        """What a person should know of these files beside the rejected ones: notes, copies, names that clash."""
        return [
            f"{printable(key)}: {text.format(printable(other)) if other else text}" for key, text, other in self.noted()
        ]

    def noted(self) -> list[tuple[str, str, str]]:
        """(key, remark, other key or "") of each; where another one is concerned, the remark has `{}` for it."""
        found = [(entry.key, entry.note, "") for entry in self.entries if entry.note]
        first: dict[tuple[str, str], str] = {}
        for entry in self.entries:
            for remark, value in (
                (SAME_CONTENT, entry.sha256),
                ("differs from {} by Unicode normalisation only", unicodedata.normalize("NFC", entry.key)),
                (
                    "shares its caption file with {}, which has the same stem",
                    str(PurePosixPath(entry.key).with_suffix("")),
                ),
            ):
                other = first.setdefault((remark, value), entry.key)
                if other != entry.key:
                    found.append((entry.key, remark, other))
        return found

    def summary(self, limit: int | None = None, *, findings: bool = True) -> list[str]:
        """Lines for a person: what was read and what was not, `findings`: what is left out and why, and the remarks; at
        most `limit` of each."""
        lines = []
        if self.source and (prefixes := [prefix for prefix in self.source.archives if prefix]):
            held = Counter(self.source.archive_of(entry.key) for entry in self.entries)
            named = [f"{printable(prefix[:-1])} ({held[prefix]})" for prefix in prefixes[:limit]]
            lines.append(f"archives and tables read: {', '.join(named)}{', ...' if len(prefixes) > len(named) else ''}")
        rejected = [f"{printable(key)}: {reason}" for key, reason in self.rejected if findings]
        remarks = self.remarks() if findings else []
        for title, found in (("left out", rejected), ("not read", self.unread), ("remarks", remarks)):
            if found:
                lines += [f"{len(found)} {title}", *(f"  {line}" for line in found[:limit])]
                lines += [f"  and {len(found) - limit} more"] if limit is not None and len(found) > limit else []
        return lines


def scan(
    folder: Path,
    *,
    follow_links: Sequence[str] = (),
    max_pictures: int | None = None,
    max_bad: float | None = 0.1,
    index_cache: Path | None = None,
    also: Path | None = None,
    looks: bool = False,
    excluded: frozenset[str] = frozenset(),
    progress: Callable[[int, int], None] | None = None,
    closely: bool = False,
) -> PictureIndex:
    """Decode every picture of `folder`, its subfolders and archives, or of an archive; with `index_cache` only files
    whose size or time changed.

    Left unread: hidden files and folders, files without a picture's ending, recycle bins and the like; the index says
    so of all but the hidden. Symbolic links are followed into the folders of `follow_links` alone, relative to
    `folder`. What lies in an archive and beside it as well is left out of the archive.
    `max_pictures` takes an even sample that does not depend on how names sort. `progress(done, total)` counts files.
    `also`: another one's `index_cache`, whose results are taken too; `looks`: each picture gets its whole look, where
    else those that are decoded now get theirs without its sharpness; `excluded`: keys that are passed over. `closely`
    hashes files of unchanged size and time as well.
    Raises LdmkitError naming data.path, or data.max_bad where a larger share of the files is unusable (None: never).
    """
    source = Source(folder, follow_links)
    folder, unread = source.path, source.unread
    all_files = {key: found for key, found in source.files.items() if key not in excluded}
    rejected = [(key, reason) for key, reason in source.rejected if key not in excluded]
    files = _sample(all_files, max_pictures)
    if not files and not rejected:
        there = "".join(f"\n  not read: {line}" for line in unread[:5])
        raise LdmkitError(
            f"data.path: {folder} holds no pictures ({', '.join(sorted(SUFFIXES))}); "
            f"name a folder that does with --set data.path=DIR{there}"
        )

    cached = read_cache(index_cache, folder)

    def fits(key: str, row: dict[str, Any] | None) -> bool:
        return (
            row is not None
            and (row["size"], row["mtime_ns"]) == files[key]
            and not (looks and "sha256" in row and (row.get("look") or [None])[-1] is None)
            and not (closely and "sha256" in row and _sha256(source, key) != row["sha256"])
        )

    tables = [cached, read_cache(also, folder)]
    known = {key: row for table in reversed(tables) for key in files if fits(key, row := table.get(key)) and row}
    unknown = [key for key in files if key not in known]
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        measured = pool.map(lambda key: _measure(source, key, *files[key], looks=looks), unknown)
        for count, (key, row) in enumerate(zip(unknown, measured, strict=True), 1):
            known[key] = row
            if progress is not None:
                progress(len(files) - len(unknown) + count, len(files))
    kept = {key: row for key, row in cached.items() if key in source.files} | known  # rows beyond this sample as well
    if index_cache is not None and kept != cached:
        write_cache(index_cache, folder, kept)

    entries, copies = _without_copies(_entries(known, files), source.archive_of if source.folder else lambda _: "")
    rejected += [(key, known[key]["reason"]) for key in files if "reason" in known[key]]
    news = _news(cached, source.files, known)
    index = PictureIndex(folder, entries, tuple(sorted(rejected)), (*unread, *copies), news, source)
    if max_bad is not None:
        require_usable(index, max_bad)
    return index


def require_usable(index: PictureIndex, max_bad: float) -> None:
    """Raises LdmkitError where nothing can be used, or a larger share than `max_bad` cannot."""
    bad, total = len(index.rejected), len(index) + len(index.rejected)
    if not len(index) or bad > max_bad * total:
        shown = "".join(f"\n  {printable(key)}: {reason}" for key, reason in index.rejected[:5])
        more = f"\n  and {bad - 5} more" if bad > 5 else ""
        raise LdmkitError(
            f"data.path: {bad} of {total} files in {index.folder} cannot be used, "
            f"more than data.max_bad = {max_bad:g} allows; repair or remove them:{shown}{more}"
        )


def _news(
    then: Mapping[str, dict[str, Any]], files: Mapping[str, tuple[int, int]], now: Mapping[str, dict[str, Any]]
) -> str:
    """What differs from the rows that were read last time; nothing where there was no such time."""
    changed = [key for key in then.keys() & now.keys() if then[key].get("sha256") != now[key].get("sha256")]
    counts = {"came": len(files.keys() - then), "went": len(then.keys() - files), "changed": len(changed)}
    return ", ".join(f"{number} {verb}" for verb, number in counts.items() if number) if then else ""


def remembered(
    index_cache: Path,
    folder: Path,
    *,
    max_pictures: int | None = None,
    looks: bool = False,
    excluded: frozenset[str] = frozenset(),
) -> PictureIndex | None:
    """The pictures as `scan` last saw them, wherever they are now; None where that is not known."""
    rows = {key: row for key, row in sorted(read_cache(index_cache, None).items()) if key not in excluded}
    if looks and any("sha256" in row and "look" not in row for row in rows.values()):
        return None
    entries, _ = _without_copies(_entries(rows, _sample(rows, max_pictures)), archive_by_name)
    return PictureIndex(Path(os.path.abspath(folder)), entries, ()) if entries else None  # noqa: PTH100 - as `scan`


def _sample(files: dict[str, T], count: int | None) -> dict[str, T]:
    if count is None:
        return files
    return dict(sorted(sorted(files.items(), key=lambda item: _share(item[0], "sample"))[:count]))


def _entries(rows: Mapping[str, dict[str, Any]], keys: Iterable[str]) -> tuple[Entry, ...]:
    good = [(key, rows[key]) for key in keys if "reason" not in rows[key]]
    return tuple(Entry(key=key, **{**row, "look": Look(*row["look"])} if "look" in row else row) for key, row in good)


def _without_copies(
    entries: tuple[Entry, ...], archive_of: Callable[[str], str]
) -> tuple[tuple[Entry, ...], list[str]]:
    """Without those in a folder's archives that lie in the folder as files too, as in a backup; and what to say."""
    inside = [archive_of(entry.key) for entry in entries]
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


def _measure(source: Source, key: str, size: int, mtime_ns: int, *, looks: bool) -> dict[str, Any]:
    """An Entry's fields, or size, mtime_ns and the reason why it cannot be used."""
    row: dict[str, Any] = {"size": size, "mtime_ns": mtime_ns}
    try:
        with one_large if size > LARGE_BYTES else nullcontext():
            data = source.read(key, MAX_BYTES)
            (width, height), note, look = glance(data, sharpness=looks)
    except OSError as error:
        return {**row, "reason": f"cannot be read ({error.strerror or error})"}
    except DecodeError as error:
        name, is_picture = kind(data[:HEAD])
        known = f"; by its first bytes {name}" if name and (not is_picture or name not in FORMATS) else ""
        return {**row, "reason": f"{error}{known}"}
    sha256 = hashlib.sha256(data).hexdigest()
    seen = [look.phash, look.contrast, None if look.sharpness is None else [*look.sharpness]]
    return {**row, "sha256": sha256, "width": width, "height": height, "note": note, "look": seen}


def _key_bytes(key: str) -> bytes:
    return key.encode("utf-8", "surrogateescape")


def _share(key: str, salt: int | str) -> float:
    """A number in [0, 1) that depends on its arguments alone."""
    digest = hashlib.sha256(f"{salt}/".encode() + _key_bytes(key)).digest()
    return int.from_bytes(digest[:7], "big") / 2**56
