"""Gets a data set that is not there yet: drawn here, or a zip from a data set repository of the Hugging Face hub."""

import json
import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path, PurePosixPath

from ldmkit.atomic import new_folder
from ldmkit.data.decode import SUFFIXES
from ldmkit.data.toy_cats import make_toy_cats
from ldmkit.errors import LdmkitError

Progress = Callable[[int, int], None]

REVISION = "main"
_TIMEOUT_SECONDS = 10
DEFAULT_TOY_CATS = 4000
# Caps on an archive, against bombs: pictures hardly compress, so a high ratio is no data set.
MAX_MEMBERS = 1_000_000
MAX_UNPACKED_BYTES = 100 * 2**30
MAX_RATIO = 200
# What every zip tool writes. LZMA's header asks for up to 4 GiB of memory before a byte is unpacked.
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
# Beside its own error zipfile lets through those of what it reads by: names that are no UTF-8, numbers too large.
_BROKEN = (zipfile.BadZipFile, zlib.error, struct.error, NotImplementedError, EOFError, ValueError, OverflowError)
_SUFFIXES = SUFFIXES | {".txt", ".caption", ".jsonl"}
_LOCAL = "use --set data.path=DIR to name a folder of your own instead"


class _Refused(Exception):
    """What is wrong with an archive or one of its members."""


def fetch(
    source: str, folder: Path, *, num_pictures: int | None = None, size: int = 64, progress: Progress | None = None
) -> None:
    """Make sure that `folder` holds a data set; a folder that holds something is left as it is.

    `source` is "folder" (nothing is fetched), "toy-cats" (`num_pictures` are drawn, `size` pixels wide) or
    "hub:OWNER/NAME[@COMMIT]/FILE.zip". The folder appears whole or not at all. Raises LdmkitError naming data.path,
    data.source or data.num_pictures.
    """
    folder = Path(folder)
    if folder.is_dir() and any(folder.iterdir()):
        if source == "toy-cats" and num_pictures is not None and 0 < (num := _count_toy_cats(folder)) < num_pictures:
            raise LdmkitError(
                f"data.num_pictures is {num_pictures}, and {folder} holds {num} toy cats: "
                "remove the folder to have them drawn again, or set data.path to another one"
            )
    elif source == "folder":
        what = "is empty" if folder.is_dir() else "does not exist"
        raise LdmkitError(f"data.path: {folder} {what}; name a folder of pictures with --set data.path=DIR")
    elif source == "toy-cats":
        make_toy_cats(folder, num_pictures=num_pictures or DEFAULT_TOY_CATS, size=size, progress=progress)
    else:
        unzip(_download(source), folder, progress=progress)


def _count_toy_cats(folder: Path) -> int:
    """Number of toy cats that the folder's metadata.jsonl lists; 0 where it is a folder of something else."""
    try:
        lines = (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
        row = json.loads(lines[0])
    except (OSError, ValueError, IndexError):
        return 0
    return len(lines) if isinstance(row, dict) and {"fur", "eyes", "coat", "background"} <= set(row) else 0


def _download(source: str) -> Path:
    """The zip in the hub's own cache; what is cached is not asked for again."""
    parts = source.removeprefix("hub:").split("/", 2)
    if not source.startswith("hub:") or len(parts) != 3 or not all(parts) or not source.endswith(".zip"):
        raise LdmkitError(
            f'data.source is "{source}"; allowed: "folder", "toy-cats", "hub:OWNER/NAME[@COMMIT]/FILE.zip"'
        )
    name, _, revision = parts[1].partition("@")
    repository, filename, revision = f"{parts[0]}/{name}", parts[2], revision or REVISION
    try:
        from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
        from huggingface_hub.errors import LocalEntryNotFoundError
    except ImportError as error:
        raise LdmkitError(
            f"data.source: {source} needs huggingface_hub: pip install 'ldmkit[train]'; {_LOCAL}"
        ) from error
    ask_hub = partial(hf_hub_download, repository, filename, repo_type="dataset", revision=revision)
    try:
        try:
            return Path(ask_hub(local_files_only=True))
        except LocalEntryNotFoundError:
            # Asked once beforehand, since a download tries an unreachable hub over and over, printing each time.
            url = hf_hub_url(repository, filename, repo_type="dataset", revision=revision)
            get_hf_file_metadata(url, timeout=_TIMEOUT_SECONDS)
            return Path(ask_hub(etag_timeout=_TIMEOUT_SECONDS))
    except Exception as error:  # the hub's client lets through what its HTTP library raises
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise LdmkitError(
            f"data.source: {filename} of the data set {repository} (revision {revision}) cannot be downloaded from the "
            f"Hugging Face hub: {reason}\n{_LOCAL}"
        ) from error


def unzip(archive: Path, folder: Path, *, progress: Progress | None = None) -> None:
    """Unpack an archive's pictures and captions into a new folder; hidden and other files are left out.

    Raises LdmkitError, and leaves nothing behind, where a member would land outside, is a link or encrypted, where
    two have one name, and where there are too many, too large or too strongly compressed ones.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            members = _check_members(opened, archive)
            with new_folder(folder) as unpacked:
                for count, member in enumerate(members, 1):
                    _unpack(opened, member, unpacked.joinpath(*PurePosixPath(member.filename).parts))
                    if progress is not None:
                        progress(count, len(members))
    except _Refused as error:
        raise LdmkitError(f"{archive}: {error}; {_LOCAL}") from error
    except OSError as error:
        raise LdmkitError(f"{archive} cannot be read: {error.strerror or error}; {_LOCAL}") from error
    except _BROKEN as error:
        raise LdmkitError(f"{archive}: not a zip archive that can be read: {error}; {_LOCAL}") from error


def _unpack(opened: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path) -> None:
    """One member. It never yields more bytes than it declares, and its checksum is verified at its end."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        # "x": names that differ in the archive may be the same on this file system.
        with opened.open(member) as packed, target.open("xb") as file:
            shutil.copyfileobj(packed, file, 2**20)
    except FileExistsError as error:
        raise _Refused(f"{member.filename!r} is there twice") from error


def _check_members(opened: zipfile.ZipFile, archive: Path) -> list[zipfile.ZipInfo]:
    """The members to unpack; nothing is unpacked of an archive that holds a hostile one."""
    listed = opened.infolist()
    total = sum(member.file_size for member in listed)
    if len(listed) > MAX_MEMBERS:
        raise _Refused(f"{len(listed):,} members, more than {MAX_MEMBERS:,}")
    if total > MAX_UNPACKED_BYTES or total > MAX_RATIO * archive.stat().st_size:
        raise _Refused(
            f"would unpack to {total:,} bytes; allowed are {MAX_UNPACKED_BYTES:,} and {MAX_RATIO} times the archive"
        )
    if any(member.header_offset < 0 for member in listed):
        raise zipfile.BadZipFile("its beginning is missing")
    if not all(member.filename for member in listed):  # zipfile ends a name at its first NUL
        raise zipfile.BadZipFile("a member has no name")
    pictures = []
    for member in listed:
        name = PurePosixPath(member.filename)
        if name.is_absolute() or ".." in name.parts or "\\" in member.filename or ":" in member.filename:
            raise _Refused(f"{member.filename!r} would land outside the folder")
        kind = stat.S_IFMT(member.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise _Refused(f"{member.filename!r} is a link or a device")
        hidden = any(part.startswith(".") for part in name.parts)
        if member.is_dir() or hidden or name.suffix.lower() not in _SUFFIXES:
            continue
        if member.compress_type not in _METHODS:
            raise _Refused(f"{member.filename!r} is packed otherwise than by deflate")
        if member.flag_bits & 1:
            raise _Refused(f"{member.filename!r} is encrypted")
        pictures.append(member)
    if not pictures:
        raise _Refused("holds no pictures")
    return pictures
