"""Which files of a folder and its archives are to be read as pictures, and what else lies there."""

import os
import stat
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from ldmkit.components.files import Folder
from ldmkit.data.columns import Names, Positions
from ldmkit.data.decode import SUFFIXES
from ldmkit.data.kinds import BESIDE, HEAD, kind
from ldmkit.data.members import Archive
from ldmkit.errors import LdmkitError
from ldmkit.report import printable

# What a NAS, Windows, macOS or a disk check keeps beside one's files: thumbnails, and what was thrown away.
_NOT_THE_USERS = frozenset({"@eadir", "#recycle", "#snapshot", "$recycle.bin", "lost+found", "__macosx"})


@dataclass(frozen=True)
class Listed:
    """Files that are to be read as pictures."""

    names: Names
    """keys"""
    sizes: NDArray[np.int64]
    """(N,) bytes"""
    times: NDArray[np.int64]
    """(N,) of the last change, nanoseconds"""

    def __len__(self) -> int:
        return len(self.names)

    def take(self, positions: Positions) -> "Listed":
        """Those at `positions`, in that order."""
        names = self.names.take(positions)
        return self if names is self.names else Listed(names, self.sizes[positions], self.times[positions])


@dataclass
class Listing:
    """The files of a data set, sorted as they are told."""

    files: dict[str, tuple[int, int]] = field(default_factory=dict)
    """{key of a picture: (size, mtime_ns)}"""
    archived: list[Listed] = field(default_factory=list)
    """of each archive those that its names tell for pictures, ordered by key"""
    rejected: list[tuple[str, str]] = field(default_factory=list)
    """(key, reason) of what would be a picture and cannot be read"""
    containers: list[str] = field(default_factory=list)
    """keys of archives and tables, not yet opened"""
    _endings: Counter[str] = field(default_factory=Counter)
    _like_pictures: list[str] = field(default_factory=list)
    left: set[str] = field(default_factory=set)

    def add(self, key: str, size: int, mtime_ns: int, kind_of: Callable[[], str | None]) -> None:
        """A regular file; `kind_of` tells what it is by its first bytes."""
        ending = key[key.rfind(".") :].lower()
        if ending in SUFFIXES:
            self.files[key] = (size, mtime_ns)
        elif ending not in BESIDE:
            self._endings[PurePosixPath(key).suffix or "no ending"] += 1
            if (name := kind_of()) is not None:
                self._like_pictures.append(f"{printable(key)}: by its first bytes {name}")

    def add_archive(self, prefix: str, archive: Archive) -> None:
        """Its files, as if they lay in a folder of the archive's name; hidden ones and a system's are left out."""
        self.rejected += [(prefix.rstrip("/") if key == "" else prefix + key, why) for key, why in archive.rejected]
        self.left |= {f"{printable(prefix)}{line}" for line in archive.said}
        names, sizes = archive.members.names, archive.members.places["size"]
        pictures, others = (np.flatnonzero(mask) for mask in _told_by_name(names))
        times = np.broadcast_to(np.int64(archive.mtime_ns), len(pictures))
        self.archived.append(Listed(names.take(pictures).prefixed(prefix), sizes[pictures], times))
        folders: dict[str, str | None] = {}
        for i in others:
            key = names[i]
            folder, _, name = key.rpartition("/")
            if folder not in folders:
                folders[folder] = _apart(folder)
            if outermost := folders[folder]:
                self._leave(prefix + outermost)
            elif outermost is None and not name.startswith("."):
                self.add(prefix + key, int(sizes[i]), archive.mtime_ns, partial(archive.kinds.get, key))

    def add_folder(self, folder: Folder, is_container: Callable[[str], bool]) -> None:
        """What lies below a folder. A folder is read once, whichever way leads there, so that no loop is endless.

        Raises LdmkitError for a folder that cannot be read: pictures would be missing without a word.
        """
        waiting, links, read = [""], list[str](), set[str]()  # no recursion: folders may lie very deep in one another
        while waiting or links:
            if not waiting:  # links last and in order, so that a folder goes by its own name where it has one
                links.sort(reverse=True)
                waiting.append(links.pop() + "/")
            prefix = waiting.pop()
            real = os.path.realpath(folder.path / prefix)
            if real in read:
                self.left.add(f"{printable(prefix)}: leads to a folder that is read under its own name")
                continue
            read.add(real)
            for entry in _entries(folder.path / prefix):
                key, ending = prefix + entry.name, Path(entry.name).suffix.lower()
                wanted = ending in SUFFIXES or is_container(entry.name)
                try:
                    status = entry.stat()
                except OSError as error:
                    status, gone = None, "a symbolic link to nothing"
                    if not entry.is_symlink():
                        gone = f"cannot be read ({error.strerror})"
                is_folder = status is not None and stat.S_ISDIR(status.st_mode)
                if entry.name.startswith("."):
                    continue
                if is_folder and entry.name.lower() in _NOT_THE_USERS:
                    self._leave(key)
                elif status is None or (entry.is_symlink() and folder.leads_out(key)):
                    if wanted or is_folder or (status is None and ending not in BESIDE):
                        self.rejected.append((key, _why(folder, key) if status else gone))
                    elif ending not in BESIDE:
                        self._endings[Path(entry.name).suffix or "no ending"] += 1
                elif is_folder:
                    (links if entry.is_symlink() else waiting).append(key if entry.is_symlink() else f"{key}/")
                elif not stat.S_ISREG(status.st_mode):  # opening a named pipe would wait for ever
                    if wanted:
                        self.rejected.append((key, "not a regular file"))
                elif is_container(entry.name):
                    self.containers.append(key)
                else:
                    self.add(key, status.st_size, status.st_mtime_ns, partial(_kind, folder, key))
        self.containers.sort()

    def listed(self) -> Listed:
        """All pictures, ordered by key."""
        keys = sorted(self.files)
        table = np.array([self.files[key] for key in keys], dtype=np.int64).reshape(-1, 2)
        parts = [part for part in (Listed(Names.of(keys), table[:, 0], table[:, 1]), *self.archived) if len(part)]
        parts.sort(key=lambda part: part.names[0])
        if not parts[1:]:
            return next(iter(parts), Listed(Names.of(()), table[:, 0], table[:, 1]))
        whole = Listed(
            Names(np.concatenate([part.names.blob for part in parts])),
            np.concatenate([part.sizes for part in parts]),
            np.concatenate([part.times for part in parts]),
        )
        if all(before.names[-1] < after.names[0] for before, after in pairwise(parts)):  # as shards are
            return whole
        return whole.take(whole.names.order())

    def unread(self) -> tuple[str, ...]:
        """Lines on what was not looked at."""
        counted = [f"{number} with {ending}" for ending, number in self._endings.most_common()]
        return (*counted, *sorted(self.left), *sorted(self._like_pictures))

    def _leave(self, key: str) -> None:
        self.left.add(f"{printable(key)}: a system's folder of thumbnails or of what was thrown away")


def _told_by_name(names: Names) -> NDArray[np.bool_]:
    """(2, N) which are pictures without a doubt, and which of the others are more than captions."""
    told = [np.zeros((2, 0), dtype=bool)]
    for part in names.parts():
        apart = _may_be_apart(part)
        told.append(np.stack([part.end_in(SUFFIXES) & ~apart, apart | ~part.end_in(SUFFIXES | BESIDE)]))
    return np.concatenate(told, axis=1)


def _may_be_apart(names: Names) -> NDArray[np.bool_]:
    """(N,) which of them are hidden, or lie in a hidden or a system's folder."""
    lower, found = b"\0" + names.blob.tobytes().lower(), np.zeros(len(names), dtype=bool)
    for word in (b".", *(f"{name}/".encode() for name in _NOT_THE_USERS)):
        for begin in (b"\0" + word, b"/" + word):
            at = lower.find(begin)
            while at >= 0:
                found[np.searchsorted(names.ends, at)] = True
                at = lower.find(begin, at + 1)
    return found


def _apart(folder: str) -> str | None:
    """The outermost of a system's folders on the way there, "" where one is hidden; None where neither is."""
    parts = folder.split("/")
    system = next((i for i, part in enumerate(parts) if part.lower() in _NOT_THE_USERS), None)
    if system is not None:
        return "/".join(parts[: system + 1])
    return "" if any(part.startswith(".") for part in parts) else None


def _kind(folder: Folder, key: str) -> str | None:
    try:
        return kind(folder.read(key, HEAD - 1))[0]
    except OSError:  # counted by its ending; nobody said that it is a picture
        return None


def _why(folder: Folder, key: str) -> str:
    there = os.path.realpath(folder.path / key)
    outside = f": it leads to {printable(there)}, outside of data.follow_links" if folder.roots else ""
    return f"a symbolic link, which is not followed{outside}"


def _entries(folder: Path) -> list["os.DirEntry[str]"]:
    try:
        with os.scandir(folder) as listing:
            return list(listing)
    except OSError as error:
        raise LdmkitError(
            f"data.path: {folder} cannot be read ({error.strerror}); grant access to it, or move it away"
        ) from error
