"""What data.path names, opened: a folder with the archives in it, an archive, or shards by a pattern."""

import errno
import os
import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from ldmkit.components.files import Folder
from ldmkit.components.protocols import Picture
from ldmkit.data.archives import is_archive, open_archive
from ldmkit.data.decode import MAX_BYTES, load_bytes, load_picture
from ldmkit.data.listing import Listing
from ldmkit.data.members import Archive, Member, read_member
from ldmkit.data.remote import address, cached, expanded, fetched
from ldmkit.data.tables import NoPictures, is_table, open_table
from ldmkit.errors import LdmkitError
from ldmkit.report import printable

_CAPTIONS = (".txt", ".caption")
_ENDINGS = (*_CAPTIONS, ".json", ".jsonl", ".csv", ".parquet")
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")


class Source:
    """The files of a data set by key. An archive in a folder is a folder of its name: `cats.zip/a.jpg`."""

    def __init__(self, path: Path, follow_links: Sequence[str] = ()) -> None:
        """Lists it, fetched where it is remote. Raises LdmkitError naming data.path where it cannot be read."""
        self.remote = address(path)
        """where it was fetched from"""
        if self.remote:
            path = fetched(self.remote)
        self.path = Path(os.path.abspath(path))  # noqa: PTH100 - Path.resolve would follow the user's own link
        self.folder: Folder | None = None
        self.archives: dict[str, Archive] = {}
        """by prefix, with the `/` at its end; "" where the set is one archive"""
        listing = Listing()
        if self.path.is_dir():
            self.folder = Folder(self.path, [self.path / Path(root).expanduser() for root in follow_links])
            listing.add_folder(self.folder, is_container)
            for key in listing.containers:
                try:
                    self._mount(f"{key}/", _open(self.path / key), listing)
                except LdmkitError as error:
                    reason = str(error).removeprefix(f"{self.path / key}: ")
                    if isinstance(error, NoPictures):
                        listing.left.add(f"{printable(key)}: {reason}")
                    else:
                        listing.rejected.append((key, reason))
        elif self.path.is_file() and is_container(self.path.name):
            self._mount("", _open(self.path), listing)
        elif not self.path.exists() and len(shards := expanded(str(self.path))) > 1:
            self.path = next(parent for parent in self.path.parents if "{" not in str(parent))
            for shard in map(Path, shards):
                if not shard.is_file():
                    raise LdmkitError(f"data.path: {shard} does not exist")
                self._mount(f"{shard.relative_to(self.path).as_posix()}/", _open(shard), listing)
        else:
            what = "is neither a folder nor an archive" if self.path.exists() else "does not exist"
            if re.search(r"[\a\b\f\n\r\t\v]", str(path)):
                what += " (in double quotes TOML reads \\n and \\t as a line's end and a tab; use single quotes)"
            if str(path).startswith("~"):
                what += " (a shell reads ~ as the home folder, a recipe does not: write the whole path)"
            raise LdmkitError(f"data.path: {self.path} {what}; name a folder of pictures with --set data.path=DIR")
        self.files = listing.listed()
        """the pictures, ordered by key"""
        self.rejected = listing.rejected
        """(key, reason) of what would be a picture and cannot be read"""
        self.unread = listing.unread()
        """lines on what was not looked at"""

    def _mount(self, prefix: str, archive: Archive, listing: Listing) -> None:
        if prefix not in self.archives:  # as one of the shards "{a,a}.tar"
            self.archives[prefix] = archive
            listing.add_archive(prefix, archive)

    def _at(self, key: str) -> tuple[Archive | None, str]:
        """The archive that holds a file, None for the folder; and the file's key in it."""
        if "" in self.archives:
            return self.archives[""], key
        end = len(key) if self.archives else 0
        while end := key.rfind("/", 0, end) + 1:
            if archive := self.archives.get(key[:end]):
                return archive, key[end:]
            end -= 1
        return None, key

    def archive_of(self, key: str) -> str:
        """The prefix of the archive that holds a file, "" for none but the whole set."""
        _, inner = self._at(key)
        return key[: len(key) - len(inner)]

    def in_archive(self, key: str) -> bool:
        """Whether it is a file in an archive, or an archive that files are read from."""
        return "" in self.archives or self._at(key)[0] is not None or f"{key}/" in self.archives

    def names(self, folder: str) -> list[str]:
        """Of the files right in this folder, "" being the whole."""
        archive, inner = self._at(f"{folder}/_" if folder else "_")
        if archive is not None:
            return archive.names(inner[:-2])
        return self.folder.names(folder) if self.folder else []

    def read(self, key: str, most: int) -> bytes:
        """At most `most` + 1 bytes. Raises LdmkitError for a link that is not followed, OSError where it cannot."""
        archive, inner = self._at(key)
        if archive is not None and inner not in archive.members:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.path / key))
        if archive is not None:
            return archive.read(inner, most)
        assert self.folder is not None
        return self.folder.read(key, most)

    def walk(self) -> Iterator[str]:
        """Keys of all files, those in archives too."""
        if self.folder is not None:
            yield from self.folder.walk()
        for prefix, archive in self.archives.items():
            yield from (prefix + key for key in archive.members)

    def picture(self, key: str) -> Picture:
        """To be decoded when needed; it pickles, for loader processes."""
        archive, inner = self._at(key)
        path = self.path / key
        if archive is None:
            return Picture(path, key, partial(load_picture, path), self)
        return Picture(path, key, partial(load_member, archive.path, archive.members[inner], str(path)), self)

    def caption_files(self) -> list[tuple[str, int, int]]:
        """(key, size, mtime_ns) of the files that captions are read from beside the pictures; of a link its own."""
        stems: set[str] = set()
        found = []
        for key, size, mtime_ns in self._beside():
            name = key[key.rfind("/") + 1 :]
            ending = name[name.rfind(".") :].lower() if name.rfind(".") > 0 else ""
            if ending == ".json" and not stems:
                stems = {key.rpartition(".")[0] for key in self.files.names}
            if ending in _CAPTIONS or name in METADATA or (ending == ".json" and key[:-5] in stems):
                if size < 0 and self.folder is not None:
                    path = self.path / key
                    status = path.lstat() if self.folder.leads_out(key) else path.stat()
                    size, mtime_ns = status.st_size, status.st_mtime_ns
                found.append((key, size, mtime_ns))
        return sorted(found, key=lambda row: row[0].split("/"))

    def _beside(self) -> Iterator[tuple[str, int, int]]:
        """Of all files that may be captions; a size of -1 in a folder, where it is not known yet."""
        if self.folder is not None:
            yield from ((key, -1, 0) for key in self.folder.walk())
        for prefix, archive in self.archives.items():
            begin, sizes = 0, archive.members.places["size"]
            for names in archive.members.names.parts():
                for i in np.flatnonzero(names.end_in(_ENDINGS)).tolist():
                    yield prefix + names[i], int(sizes[begin + i]), archive.mtime_ns
                begin += len(names)


def archive_by_name(key: str) -> str:
    """As `Source.archive_of`, where there are only names left."""
    return next((f"{parent}/" for parent in PurePosixPath(key).parents if is_container(parent.name)), "")


def located(path: Path) -> Path:
    """The same from any working folder."""
    return path if address(path) else path.absolute()


def is_there(path: Path) -> bool:
    """Whether it can be looked at: a remote one is fetched already."""
    if name := address(path):
        return cached(name) is not None
    return path.exists() or ("{" in str(path) and Path(expanded(str(path))[0]).exists())


def is_container(name: str) -> bool:
    """An archive or a table, by its ending."""
    return is_archive(name) or is_table(name)


def _open(path: Path) -> Archive:
    return open_archive(path) if is_archive(path.name) else open_table(path)


def load_member(path: Path, member: Member, name: str) -> Image.Image:
    """A picture in an archive, as `load_picture` gives it."""
    try:
        data = read_member(path, member, MAX_BYTES)
    except OSError as error:
        raise LdmkitError(f"{name}: cannot be read: {error.strerror or error}") from error
    return load_bytes(data, name)
