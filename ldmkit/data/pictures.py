"""Lists a folder of pictures: every file decoded once, broken ones left out with the reason."""

import hashlib
import os
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from ldmkit.components.protocols import Picture
from ldmkit.data.decode import FORMATS, LARGE_BYTES, MAX_BYTES, SUFFIXES, DecodeError, glance, load_picture, one_large
from ldmkit.data.index_cache import read_cache, write_cache
from ldmkit.data.kinds import HEAD, kind
from ldmkit.data.listing import list_files
from ldmkit.data.looks import BLANK, Look, alike
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
    """where `scan` was asked for it"""


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
        paths = [self.folder / entry.key for entry in self.entries]
        return [
            Picture(path, entry.key, partial(load_picture, path))
            for path, entry in zip(paths, self.entries, strict=True)
        ]

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

    def summary(self, limit: int | None = None) -> list[str]:
        """Lines for a person: what is left out and why, then the remarks; at most `limit` of each."""
        lines = []
        rejected = [f"{printable(key)}: {reason}" for key, reason in self.rejected]
        for title, found in (("left out", rejected), ("not read", self.unread), ("remarks", self.remarks())):
            if found:
                lines += [f"{len(found)} {title}", *(f"  {line}" for line in found[:limit])]
                lines += [f"  and {len(found) - limit} more"] if limit is not None and len(found) > limit else []
        return lines


def scan(
    folder: Path,
    *,
    max_pictures: int | None = None,
    max_bad: float | None = 0.1,
    index_cache: Path | None = None,
    also: Path | None = None,
    looks: bool = False,
    excluded: frozenset[str] = frozenset(),
    progress: Callable[[int, int], None] | None = None,
    closely: bool = False,
) -> PictureIndex:
    """Decode every picture of `folder` and its subfolders; with `index_cache` only files whose size or time changed.

    Left unread: hidden files and folders, files without a picture's ending, recycle bins and the like; the index says
    so of all but the hidden. Symbolic links are not followed.
    `max_pictures` takes an even sample that does not depend on how names sort. `progress(done, total)` counts files.
    `also`: another one's `index_cache`, whose results are taken too; `looks`: each picture gets its look; `excluded`:
    keys that are passed over. `closely` hashes files of unchanged size and time as well.
    Raises LdmkitError naming data.path, or data.max_bad where a larger share of the files is unusable (None: never).
    """
    folder = Path(os.path.abspath(folder))  # noqa: PTH100 - Path.resolve would follow the user's own link
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise LdmkitError(f"data.path: {folder} {what}; name a folder of pictures with --set data.path=DIR")
    all_files, rejected, unread = list_files(folder)
    rejected = [(key, reason) for key, reason in rejected if key not in excluded]
    files = _sample({key: found for key, found in all_files.items() if key not in excluded}, max_pictures)
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
            and not (looks and "sha256" in row and "look" not in row)
            and not (closely and "sha256" in row and _sha256(folder / key) != row["sha256"])
        )

    tables = [cached, read_cache(also, folder)]
    known = {key: row for table in reversed(tables) for key in files if fits(key, row := table.get(key)) and row}
    unknown = [key for key in files if key not in known]
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        measured = pool.map(lambda key: _measure(folder / key, *files[key], looks=looks), unknown)
        for count, (key, row) in enumerate(zip(unknown, measured, strict=True), 1):
            known[key] = row
            if progress is not None:
                progress(len(files) - len(unknown) + count, len(files))
    kept = {key: row for key, row in cached.items() if key in all_files} | known  # rows beyond this sample as well
    if index_cache is not None and kept != cached:
        write_cache(index_cache, folder, kept)

    entries = _entries(known, files)
    rejected += [(key, known[key]["reason"]) for key in files if "reason" in known[key]]
    index = PictureIndex(folder, entries, tuple(sorted(rejected)), unread, _news(cached, all_files, known))
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
    index_cache: Path, folder: Path, *, max_pictures: int | None = None, looks: bool = False
) -> PictureIndex | None:
    """The pictures as `scan` last saw them, wherever they are now; None where that is not known."""
    rows = read_cache(index_cache, None)
    if looks and any("sha256" in row and "look" not in row for row in rows.values()):
        return None
    entries = _entries(rows, _sample(dict(sorted(rows.items())), max_pictures))
    return PictureIndex(Path(os.path.abspath(folder)), entries, ()) if entries else None  # noqa: PTH100 - as `scan`


def _sample(files: dict[str, T], count: int | None) -> dict[str, T]:
    if count is None:
        return files
    return dict(sorted(sorted(files.items(), key=lambda item: _share(item[0], "sample"))[:count]))


def _entries(rows: Mapping[str, dict[str, Any]], keys: Iterable[str]) -> tuple[Entry, ...]:
    good = [(key, rows[key]) for key in keys if "reason" not in rows[key]]
    return tuple(Entry(key=key, **{**row, "look": Look(*row["look"])} if "look" in row else row) for key, row in good)


def _sha256(file: Path) -> str | None:
    try:
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError:
        return None


def _measure(path: Path, size: int, mtime_ns: int, *, looks: bool) -> dict[str, Any]:
    """An Entry's fields, or size, mtime_ns and the reason why it cannot be used."""
    row: dict[str, Any] = {"size": size, "mtime_ns": mtime_ns}
    try:
        with one_large if size > LARGE_BYTES else nullcontext():
            with path.open("rb") as file:
                data = file.read(MAX_BYTES + 1)
            (width, height), note, look = glance(data, looks=looks)
    except OSError as error:
        return {**row, "reason": f"cannot be read ({error.strerror or error})"}
    except DecodeError as error:
        name, is_picture = kind(data[:HEAD])
        known = f"; by its first bytes {name}" if name and (not is_picture or name not in FORMATS) else ""
        return {**row, "reason": f"{error}{known}"}
    sha256 = hashlib.sha256(data).hexdigest()
    seen = {"look": [look.phash, look.contrast, [*look.sharpness]]} if look else {}
    return {**row, "sha256": sha256, "width": width, "height": height, "note": note, **seen}


def _key_bytes(key: str) -> bytes:
    return key.encode("utf-8", "surrogateescape")


def _share(key: str, salt: int | str) -> float:
    """A number in [0, 1) that depends on its arguments alone."""
    digest = hashlib.sha256(f"{salt}/".encode() + _key_bytes(key)).digest()
    return int.from_bytes(digest[:7], "big") / 2**56
