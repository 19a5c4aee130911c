"""Lists a folder of pictures: every file decoded once, broken ones left out with the reason."""

import hashlib
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ldmkit.components.protocols import Picture
from ldmkit.data.columns import Lazy, Names, Positions
from ldmkit.data.decode import FORMATS, LARGE_BYTES, MAX_BYTES, SUFFIXES, DecodeError, glance, one_large
from ldmkit.data.index_cache import read_cache, write_cache
from ldmkit.data.kinds import HEAD, kind
from ldmkit.data.listing import Listed
from ldmkit.data.looks import BLANK, alike
from ldmkit.data.rows import Rows
from ldmkit.data.sources import Source, archive_by_name
from ldmkit.errors import LdmkitError
from ldmkit.report import printable

SAME_CONTENT = "the same content as {}"


@dataclass(frozen=True)
class PictureIndex:
    """The pictures of a folder, ordered by key."""

    folder: Path
    entries: Rows
    """of the good ones"""
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
        digest, contents = hashlib.sha256(), self.entries.sha256
        for i, key in enumerate(self.entries.names.raw()):
            # No file name holds a NUL, so the records cannot run into each other.
            digest.update(key + b"\0" + contents[i].tobytes())
        return digest.hexdigest()

    def pictures(self) -> Sequence[Picture]:
        """The same pictures in the same order, to be decoded when needed; they pickle, for loader processes."""
        return Lazy(len(self), partial(_picture, self.files, self.entries.names))

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
        first = self._first_of_content(self.alike if together else {})
        shares = _shares(self.entries.names, seed)
        held, leads = shares[first] < held_out, np.flatnonzero(first == np.arange(len(first)))
        if held.any() and held.all():
            held[first == leads[shares[leads].argmax()]] = False
        elif held_out > 0 and not held.any() and len(leads) > 1:
            held[first == leads[shares[leads].argmin()]] = True
        return np.flatnonzero(~held).tolist(), np.flatnonzero(held).tolist()

    def _first_of_content(self, alike: Mapping[str, str]) -> Positions:
        """(N,) the first picture of the same content, or of one that is `alike`."""
        contents = self.entries.sha256
        first, seen = np.arange(len(self)), dict[str, int]()
        # All that are the same begin alike.
        several = _several(np.ascontiguousarray(contents[:, :8]).view(np.int64)[:, 0])
        for i in range(len(first)) if alike else several:
            content = contents[i].tobytes().hex()
            first[i] = seen.setdefault(alike.get(content, content), i)
        return first

    def remarks(self) -> list[str]:
        """What a person should know of these files beside the rejected ones: notes, copies, names that clash."""
        return [
            f"{printable(key)}: {text.format(printable(other)) if other else text}" for key, text, other in self.noted()
        ]

    def noted(self) -> list[tuple[str, str, str]]:
        """(key, remark, other key or "") of each; where another one is concerned, the remark has `{}` for it."""
        names, told = self.entries.names, np.flatnonzero(self.entries.files["text"] >= 0)
        first = self._first_of_content({})
        found = [(int(i), SAME_CONTENT, int(first[i])) for i in np.flatnonzero(first != np.arange(len(first)))]
        for remark, form in (
            ("differs from {} by Unicode normalisation only", partial(unicodedata.normalize, "NFC")),
            ("shares its caption file with {}, which has the same stem", lambda key: key.rpartition(".")[0]),
        ):
            seen: dict[str, int] = {}
            for i in _several(np.fromiter((hash(form(key)) for key in names), np.int64, len(names))):
                if (other := seen.setdefault(form(names[i]), i)) != i:
                    found.append((i, remark, other))
        found.sort(key=lambda row: row[0])
        notes = [(names[i], self.entries[i].note or "", "") for i in told]
        return [*notes, *((names[i], remark, names[other]) for i, remark, other in found)]

    def summary(self, limit: int | None = None, *, findings: bool = True) -> list[str]:
        """Lines for a person: what was read and what was not, `findings`: what is left out and why, and the remarks; at
        most `limit` of each."""
        lines = []
        if self.source and (prefixes := [prefix for prefix in self.source.archives if prefix]):
            held = Counter(_held_in(self.entries.names, self.source.archive_of))
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
    rejected = [(key, reason) for key, reason in source.rejected if key not in excluded]
    chosen = _chosen(source.files.names, excluded, max_pictures)
    files = source.files.take(chosen)
    if not len(files) and not rejected:
        there = "".join(f"\n  not read: {line}" for line in unread[:5])
        raise LdmkitError(
            f"data.path: {folder} holds no pictures ({', '.join(sorted(SUFFIXES))}); "
            f"name a folder that does with --set data.path=DIR{there}"
        )

    own, other = read_cache(index_cache, folder), read_cache(also, folder)
    in_own = own.names.where(source.files.names)
    rows = np.full(len(files), -1)  # where each one lies in own + other
    for table, at, begin in ((other, other.names.where(files.names), len(own)), (own, in_own[chosen], 0)):
        same = _unchanged(source, files, table, at, looks=looks, closely=closely)
        rows[same] = at[same] + begin
    unknown = np.flatnonzero(rows < 0)
    rows[unknown] = len(own) + len(other) + np.arange(len(unknown))
    known = (own + other + Rows.of(_measured(source, files, unknown, looks=looks, progress=progress))).take(rows)
    gone, beyond = np.ones((2, len(own)), dtype=bool)
    gone[in_own[in_own >= 0]] = False
    beyond[in_own[chosen][in_own[chosen] >= 0]] = False
    kept = np.flatnonzero(beyond & ~gone)  # what is there and not in this sample
    if index_cache is not None and not (
        len(kept) + len(files) == len(own) and (rows < len(own)).all() and index_cache.is_file()
    ):
        write_cache(index_cache, folder, known + own.take(kept))
    anew = np.flatnonzero((rows >= len(own)) & (in_own[chosen] >= 0))
    changed = (own.sha256[in_own[chosen[anew]]] != known.sha256[anew]).any(axis=1)
    counts = {"came": (in_own < 0).sum(), "went": gone.sum(), "changed": changed.sum()}
    news = ", ".join(f"{number} {verb}" for verb, number in counts.items() if number) if len(own) else ""

    held_in = source.archive_of if source.folder and source.archives else None
    entries, copies = _without_copies(known.take(np.flatnonzero(known.files["good"])), held_in)
    rejected += known.reasons()
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


def _unchanged(source: Source, files: Listed, table: Rows, at: Positions, *, looks: bool, closely: bool) -> Positions:
    """Which of `files` are as they were when the table's rows `at` (-1: none) were made of them."""
    there = np.flatnonzero(at >= 0)
    was = at[there]
    fits = table.files["size"][was] == files.sizes[there]
    fits &= table.files["mtime_ns"][was] == files.times[there]
    if looks:
        fits &= ~table.lacks_look()[was]
    if closely:
        for i in np.flatnonzero(fits & table.files["good"][was]):
            fits[i] = _sha256(source, files.names[there[i]]) == table.sha256[was[i]].tobytes()
    same: Positions = there[fits]
    return same


def remembered(
    index_cache: Path,
    folder: Path,
    *,
    max_pictures: int | None = None,
    looks: bool = False,
    excluded: frozenset[str] = frozenset(),
) -> PictureIndex | None:
    """The pictures as `scan` last saw them, wherever they are now; None where that is not known."""
    rows = read_cache(index_cache, None)
    if looks and rows.take(_chosen(rows.names, excluded, None)).lacks_look().any():
        return None
    rows = rows.take(_chosen(rows.names, excluded, max_pictures))
    entries, _ = _without_copies(rows.take(np.flatnonzero(rows.files["good"])), archive_by_name)
    return PictureIndex(Path(os.path.abspath(folder)), entries, ()) if len(entries) else None  # noqa: PTH100 - as `scan`


def _chosen(names: Names, excluded: frozenset[str], count: int | None) -> Positions:
    """Where those lie that are not excluded, or an even sample of them."""
    found = np.arange(len(names))
    if excluded:
        found = np.array([i for i, key in enumerate(names) if key not in excluded], dtype=np.int64)
    if count is not None:
        found = np.sort(found[np.argsort(_shares(names, "sample")[found], kind="stable")[:count]])
    return found


def _without_copies(entries: Rows, archive_of: Callable[[str], str] | None) -> tuple[Rows, list[str]]:
    """Without those in a folder's archives that lie in the folder as files too, as in a backup; and what to say."""
    if archive_of is None:
        return entries, []
    inside = list(_held_in(entries.names, archive_of))
    contents = [content.tobytes() for content in entries.sha256]
    files = {content for content, prefix in zip(contents, inside, strict=True) if not prefix}
    copy = [prefix != "" and content in files for content, prefix in zip(contents, inside, strict=True)]
    total, copies = Counter(inside), Counter(prefix for prefix, is_copy in zip(inside, copy, strict=True) if is_copy)
    said = "copies of files beside the archive; left out"
    lines = [f"{printable(prefix)}: {copies[prefix]} of {total[prefix]} pictures are {said}" for prefix in copies]
    return entries.take(np.flatnonzero(~np.array(copy, dtype=bool))), lines


def _held_in(names: Names, archive_of: Callable[[str], str]) -> Iterator[str]:
    """What `archive_of` says of each, asked once a folder."""
    known = cache(lambda folder: archive_of(f"{folder}/_"))
    return (known(key.rpartition("/")[0]) if "/" in key else "" for key in names)


def _several(codes: Positions) -> list[int]:
    """Where those of (N,) lie that occur more than once, rising."""
    order = codes.argsort()
    again = codes[order[1:]] == codes[order[:-1]]
    return [int(i) for i in np.union1d(order[1:][again], order[:-1][again])]


def _sha256(source: Source, key: str) -> bytes | None:
    try:
        return hashlib.sha256(source.read(key, MAX_BYTES)).digest()
    except OSError:
        return None


def _measured(
    source: Source, files: Listed, which: Positions, *, looks: bool, progress: Callable[[int, int], None] | None
) -> Iterator[tuple[str, dict[str, Any]]]:
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        found = pool.map(partial(_measure, source, files, looks=looks), which)
        for done, row in enumerate(found, len(files) - len(which) + 1):
            yield row
            if progress is not None:
                progress(done, len(files))


def _measure(source: Source, files: Listed, i: int, *, looks: bool) -> tuple[str, dict[str, Any]]:
    """What `Rows.of` takes."""
    key, size = files.names[i], int(files.sizes[i])
    row: dict[str, Any] = {"size": size, "mtime_ns": int(files.times[i])}
    try:
        with one_large if size > LARGE_BYTES else nullcontext():
            data = source.read(key, MAX_BYTES)
            (width, height), note, look = glance(data, sharpness=looks)
    except OSError as error:
        return key, {**row, "reason": f"cannot be read ({error.strerror or error})"}
    except DecodeError as error:
        name, is_picture = kind(data[:HEAD])
        known = f"; by its first bytes {name}" if name and (not is_picture or name not in FORMATS) else ""
        return key, {**row, "reason": f"{error}{known}"}
    sha256 = hashlib.sha256(data).hexdigest()
    seen = [look.phash, look.contrast, None if look.sharpness is None else [*look.sharpness]]
    return key, {**row, "sha256": sha256, "width": width, "height": height, "note": note, "look": seen}


def _picture(files: Source, names: Names, i: int) -> Picture:
    return files.picture(names[i])


def _shares(names: Names, salt: int | str) -> NDArray[np.float64]:
    """(N,) numbers in [0, 1), each dependent on its name and the salt alone."""
    before = hashlib.sha256(f"{salt}/".encode())

    def leading(name: bytes) -> int:
        digest = before.copy()
        digest.update(name)
        return int.from_bytes(digest.digest()[:7], "big")

    return np.fromiter(map(leading, names.raw()), np.uint64, len(names)) / 2**56
