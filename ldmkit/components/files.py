"""The files of a folder, as captioners and the list of pictures see them."""

import errno
import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from ldmkit.errors import LdmkitError


class Folder:
    """A folder's files by key; symbolic links are followed into `roots` alone, and in a hub cache to its blobs."""

    def __init__(self, path: Path, roots: Sequence[Path] = ()) -> None:
        self.path = path
        self.roots = tuple(os.path.realpath(root) for root in roots)
        self._led_out: dict[str, bool] = {}
        # The Hugging Face hub's cache: datasets--OWNER--NAME/snapshots/COMMIT/a.jpg -> ../../blobs/SHA256
        for parent in Path(os.path.abspath(path), "_").parents:  # noqa: PTH100 - Path.resolve would follow links
            if parent.name == "snapshots" and re.match("(datasets|models|spaces)--", parent.parent.name):
                self.roots += (os.path.realpath(parent.parent / "blobs"),)

    def leads_out(self, key: str) -> bool:
        """Whether a link on the way to this file leads to where none may lead."""
        path, (folder, _, _) = self.path / key, key.rpartition("/")
        if folder not in self._led_out:  # once a folder: each file of a large one is asked for
            real = os.path.realpath(path.parent)
            plain = os.path.join(os.path.realpath(self.path), *folder.split("/")).rstrip(os.sep)  # noqa: PTH118
            self._led_out[folder] = real != plain and not self._in_roots(real)
        if not path.is_symlink():
            return self._led_out[folder]
        real = os.path.realpath(path)
        return Path(real).is_symlink() or not self._in_roots(real)  # the first: one that leads to itself

    def _in_roots(self, real: str) -> bool:
        return any(real == root or real.startswith(root.rstrip(os.sep) + os.sep) for root in self.roots)

    def names(self, folder: str) -> list[str]:
        """Of the files and links right in this folder, "" being the whole; empty where there is no such folder."""
        try:
            with os.scandir(self.path / folder) as found:
                return [e.name for e in found if e.is_symlink() or e.is_file(follow_symlinks=False)]
        except (FileNotFoundError, NotADirectoryError):
            return []

    def read(self, key: str, most: int) -> bytes:
        """At most `most` + 1 bytes. Raises LdmkitError for a link that is not followed, OSError where it is no file."""
        path = self.path / key
        if self.leads_out(key):
            raise LdmkitError(
                f"{path}: a symbolic link, which is not followed; put the file itself there, remove it, or name the "
                "folder it leads to in data.follow_links"
            )
        if not stat.S_ISREG(path.stat().st_mode):  # opening a named pipe would wait for ever
            raise OSError(errno.EINVAL, "not a regular file")
        with path.open("rb") as file:
            return file.read(most + 1)

    def walk(self) -> Iterator[str]:
        """Keys of all files, and of links that are not followed; those of hidden folders too."""
        waiting, links, read = [""], list[str](), set[str]()
        while waiting or links:
            if not waiting:  # links last and in order, so that a folder goes by its own name where it has one
                links.sort(reverse=True)
                waiting.append(links.pop())
            prefix = waiting.pop()
            real = os.path.realpath(self.path / prefix)
            if real in read:
                continue
            read.add(real)
            with suppress(PermissionError), os.scandir(self.path / prefix) as found:
                for entry in found:
                    key, is_link = prefix + entry.name, entry.is_symlink()
                    if is_link and (self.leads_out(key) or not os.path.isdir(entry.path)):  # noqa: PTH112 - of a loop false
                        yield key
                    elif is_link:
                        links.append(f"{key}/")
                    elif entry.is_dir():
                        waiting.append(f"{key}/")
                    elif entry.is_file():
                        yield key
