"""Data sets that lie elsewhere: files over HTTP(S), shard by shard, and repositories of the Hugging Face hub.

They are fetched into a cache once; what is there whole is not asked for again.
"""

import hashlib
import json
import re
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path, PurePath
from urllib.parse import unquote, urlsplit

from ldmkit.atomic import no_room, write_json
from ldmkit.data.cache import cache_folder
from ldmkit.errors import LdmkitError

_CHUNK = 2**20
_TIMEOUT_SECONDS = 30
_ATTEMPTS = 3
"""at one file in a row without a byte more"""
MAX_SHARDS = 100_000


def address(path: PurePath) -> str | None:
    """What a path names on another machine: `hf://…`, `https://…`; a path has lost one of the slashes. Else None."""
    found = re.fullmatch(r"(hf|https?):/+(.+)", path.as_posix(), re.DOTALL)
    return f"{found[1]}://{found[2]}" if found else None


def expanded(pattern: str) -> list[str]:
    """`a-{000..002}.tar` as `a-000.tar`, `a-001.tar`, `a-002.tar`; several ranges in turn."""
    found = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if found is None:
        return [pattern]
    first, last = int(found[1]), int(found[2])
    width = len(found[1]) if found[1].startswith("0") else 0
    if not 0 <= last - first < MAX_SHARDS:
        raise LdmkitError(f"data.path: {found[0]} must count up, to {MAX_SHARDS:,} files at most")
    rests = expanded(pattern[found.end() :])
    return [f"{pattern[: found.start()]}{number:0{width}}{rest}" for number in range(first, last + 1) for rest in rests]


def cached(name: str) -> Path | None:
    """The folder that a data set was fetched to; None where it is not there whole."""
    with suppress(OSError, ValueError, KeyError):
        record = json.loads(_mark(name).read_bytes())
        folder = Path(record["folder"])
        return folder if folder.is_dir() and all((folder / file).is_file() for file in record["files"]) else None
    return None


def fetched(name: str, progress: Callable[[int, int], None] | None = None) -> Path:
    """The folder, fetched where it is not there. Raises LdmkitError naming data.path."""
    folder = cached(name)
    if folder is None:
        folder = _from_hub(name) if name.startswith("hf://") else _shards(name, progress)
        files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("[!.]*") if path.is_file())
        write_json(_mark(name), {"folder": str(folder), "files": files, "of": name})
    return folder


def _mark(name: str) -> Path:
    return cache_folder("fetched") / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.json"


def _shards(pattern: str, progress: Callable[[int, int], None] | None) -> Path:
    folder, urls = _mark(pattern).with_suffix(""), expanded(pattern)
    names = [unquote(urlsplit(url).path).rsplit("/", 1)[-1] for url in urls]
    bad = next((n for n in names if not n or n.startswith(".") or "\\" in n or "/" in n), None)
    if bad is not None or len(set(names)) != len(names):
        raise LdmkitError(f"data.path: {pattern} must end in the name of a file, another one for each shard")
    with no_room(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for number, (url, name) in enumerate(zip(urls, names, strict=True), 1):
            _download(url, folder / name)
            if progress is not None:
                progress(number, len(urls))
    return folder


def _download(url: str, target: Path) -> None:
    """One file; after a break it goes on where it stopped, unless the server's file has changed."""
    from filelock import FileLock

    hidden = target.with_name(f".{target.name}")
    partial, tag = hidden.with_suffix(f"{hidden.suffix}.part"), hidden.with_suffix(f"{hidden.suffix}.tag")
    failed = 0
    with FileLock(hidden.with_suffix(f"{hidden.suffix}.lock")):
        while not target.is_file():
            have = partial.stat().st_size if partial.is_file() and tag.is_file() else 0
            try:
                if _go_on(url, partial, tag, have):
                    partial.replace(target)
                    tag.unlink(missing_ok=True)
                    return
                reason = "the connection broke"
            except urllib.error.HTTPError as error:
                if error.code == 416:  # not as long as what is there: another file by now
                    tag.unlink(missing_ok=True)
                elif error.code < 500:
                    raise LdmkitError(f"data.path: {url} cannot be had: HTTP {error.code} {error.reason}") from error
                reason = f"HTTP {error.code} {error.reason}"
            except (urllib.error.URLError, TimeoutError, ConnectionError, ValueError) as error:
                reason = str(getattr(error, "reason", error)) or type(error).__name__
            now = partial.stat().st_size if partial.is_file() else 0
            failed = failed + 1 if now <= have else 0
            if failed >= _ATTEMPTS:
                raise LdmkitError(
                    f"data.path: {url} cannot be had: {reason}; what has come is kept, and the same command goes on "
                    "from there"
                )


def _go_on(url: str, partial: Path, tag: Path, have: int) -> bool:
    """Whether the file is whole now."""
    request = urllib.request.Request(url, headers={"User-Agent": "ldmkit"})
    if have:
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", tag.read_text())
    with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as answer:
        if answer.status != 206:
            have = 0
        length = answer.headers.get("Content-Length")
        version = answer.headers.get("ETag") or answer.headers.get("Last-Modified")
        if version and not version.startswith("W/"):  # which says that the bytes may differ
            tag.write_text(version)
        else:
            tag.unlink(missing_ok=True)
        with partial.open("r+b" if have else "wb") as file:
            file.seek(have)
            while part := answer.read(_CHUNK):
                file.write(part)
            file.truncate()
            return length is None or file.tell() == have + int(length)


def _from_hub(name: str) -> Path:
    """The repository's files in the hub's own cache, at a revision that stays."""
    repository, _, revision = name.removeprefix("hf://").removeprefix("datasets/").partition("@")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise LdmkitError(f"data.path: {name} is no data set of the Hugging Face hub; write hf://OWNER/NAME[@REVISION]")
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise LdmkitError(f"data.path: {name} needs huggingface_hub: pip install 'ldmkit[hub]'") from error
    try:
        return Path(snapshot_download(repository, repo_type="dataset", revision=revision or None))
    except Exception as error:  # the hub's client lets through what its HTTP library raises
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise LdmkitError(f"data.path: {name} cannot be had from the Hugging Face hub: {reason}") from error
