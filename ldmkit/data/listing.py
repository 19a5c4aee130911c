"""Which files of a folder are to be read as pictures, and what else lies there."""

import os
import stat
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from ldmkit.data.decode import SUFFIXES
from ldmkit.data.kinds import HEAD, kind
from ldmkit.errors import LdmkitError
from ldmkit.report import printable

# What a NAS, Windows, macOS or a disk check keeps beside one's files: thumbnails, and what was thrown away.
_NOT_THE_USERS = frozenset({"@eadir", "#recycle", "#snapshot", "$recycle.bin", "lost+found", "__macosx"})
# Captions and system files, of which nobody expects a picture.
_BESIDE = frozenset({".txt", ".caption", ".json", ".jsonl", ".csv", ".db", ".ini", ".md", ".toml"})


def list_files(
    folder: Path,
) -> tuple[dict[str, tuple[int, int]], list[tuple[str, str]], tuple[str, ...]]:
    """({key: (size, mtime_ns)} ordered by key, [(key, reason)] of what is not a regular file, lines on the unread)."""
    files: dict[str, tuple[int, int]] = {}
    rejected, like_pictures, left = [], [], []
    endings: Counter[str] = Counter()
    for entry, key in _walk(folder):
        if entry.is_dir(follow_symlinks=False):
            left.append(f"{printable(key)}: a system's folder of thumbnails or of what was thrown away")
        elif Path(entry.name).suffix.lower() in SUFFIXES or _links_to_folder(entry):
            status = entry.stat(follow_symlinks=False)
            if entry.is_symlink():
                rejected.append((key, "a symbolic link, which is not followed"))
            elif stat.S_ISREG(status.st_mode):
                files[key] = (status.st_size, status.st_mtime_ns)
            else:  # opening a named pipe would wait for ever
                rejected.append((key, "not a regular file"))
        elif Path(entry.name).suffix.lower() not in _BESIDE:
            endings[Path(entry.name).suffix or "no ending"] += 1
            name, _ = _kind(entry)
            if name is not None:
                like_pictures.append(f"{printable(key)}: by its first bytes {name}")
    counted = [f"{number} with {ending}" for ending, number in endings.most_common()]
    return dict(sorted(files.items())), rejected, (*counted, *sorted(left), *sorted(like_pictures))


def _kind(entry: "os.DirEntry[str]") -> tuple[str | None, bool]:
    if not entry.is_file(follow_symlinks=False):
        return None, False
    try:
        with Path(entry.path).open("rb") as file:
            return kind(file.read(HEAD))
    except OSError:  # counted by its ending; nobody said that it is a picture
        return None, False


def _walk(folder: Path) -> Iterator[tuple["os.DirEntry[str]", str]]:
    """(directory entry, key) of each file, and of folders that are left out.

    Raises LdmkitError for a folder that cannot be read: pictures would be missing without a word.
    """
    waiting = [""]  # not by recursion: folders may lie deeper in one another than Python calls itself
    while waiting:
        prefix = waiting.pop()
        try:
            with os.scandir(folder / prefix) as listing:
                found = list(listing)
        except OSError as error:
            raise LdmkitError(
                f"data.path: {folder / prefix} cannot be read ({error.strerror}); grant access to it, or move it away"
            ) from error
        for entry in found:
            if entry.name.startswith("."):
                continue
            is_folder = entry.is_dir(follow_symlinks=False)
            if is_folder and entry.name.lower() not in _NOT_THE_USERS:
                waiting.append(f"{prefix}{entry.name}/")
            else:
                yield entry, prefix + entry.name


def _links_to_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_symlink() and entry.is_dir()
    except OSError:  # a link to itself
        return True
