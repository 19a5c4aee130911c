"""The npm packages that the page runs on, pinned by version and hash."""

import base64
import gzip
import hashlib
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

from ldmkit.data.cache import cache_folder
from ldmkit.errors import LdmkitError


@dataclass(frozen=True)
class Package:
    """A package of the npm registry, at one version."""

    name: str
    version: str
    sha512: str
    """of its archive, in base64, as npm's lockfiles have it"""

    @property
    def archive(self) -> str:
        """The archive's name, as `npm pack` gives it."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"


ONNXRUNTIME = Package(
    "onnxruntime-web",
    "1.30.0",
    "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ==",
)
TOKENIZERS = Package(
    "@huggingface/tokenizers",
    "0.2.0",
    "LidMHe1FpcSYH4vcSjXooda34pC0M8m1gmDOv7SQi6Iv+ib1zX7J3sHBCC9/3FPCkn2k1b55FneVqMRxrr99pg==",
)
PACKAGES = (ONNXRUNTIME, TOKENIZERS)
COMMAND = f"npm pack {' '.join(map(str, PACKAGES))}"
"""leaves the archives in the folder it is run in"""
TIMEOUT = 600
"""seconds, of one archive"""


def read_members(package: Package, names: tuple[str, ...], folder: Path | None) -> dict[str, bytes]:
    """Files of a package by their names in it: from its archive in `folder`, or fetched once and kept for this user.

    Raises LdmkitError where there is no archive to be had, or it is not the pinned one.
    """
    if folder is not None:
        path = folder / package.archive
        if not path.is_file():
            raise LdmkitError(f"--runtime {folder}: there is no {package.archive}: run `{COMMAND}` there")
        data = path.read_bytes()
        if not _is_pinned(package, data):
            raise LdmkitError(f"{path} is damaged or another file: its SHA-512 is not that of {package}")
    else:
        data = _kept_or_fetched(package)
    return _members(data, {f"package/{name}": name for name in names})


def _kept_or_fetched(package: Package) -> bytes:
    path = cache_folder("npm") / package.archive
    if path.is_file() and _is_pinned(package, data := path.read_bytes()):
        return data
    data = _fetched(package)
    if not _is_pinned(package, data):
        raise LdmkitError(f"what the npm registry gave as {package} is another file: its SHA-512 is not the pinned one")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(data)
    Path(file.name).replace(path)
    return data


def _fetched(package: Package) -> bytes:
    """The archive by npm itself, which knows its own registry, proxy and certificates; else from the registry that
    npm_config_registry names."""
    registry = next((value for key, value in os.environ.items() if key.lower() == "npm_config_registry"), None)
    reason = "npm is not installed, and npm_config_registry names no registry"
    with tempfile.TemporaryDirectory(prefix="ldmkit-npm-") as folder:
        try:
            if npm := shutil.which("npm"):
                command = [npm, "pack", str(package), "--silent", "--ignore-scripts"]
                done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT, check=False)
                if done.returncode == 0:
                    return (Path(folder) / package.archive).read_bytes()
                reason = f"npm says: {(done.stderr or done.stdout).strip()[:300] or done.returncode}"
            elif registry:
                name = f"{package.name.rpartition('/')[2]}-{package.version}.tgz"
                address = f"{registry.rstrip('/')}/{package.name}/-/{name}"
                if not address.startswith(("https://", "http://")):
                    raise OSError(f"npm_config_registry is {registry}, which is no web address")
                with urlopen(address, timeout=TIMEOUT) as response:
                    return bytes(response.read())
        except (OSError, subprocess.SubprocessError) as error:
            reason = str(error)
    raise LdmkitError(
        f"{package} cannot be had from the npm registry ({reason}). Run `{COMMAND}` in a folder where npm works, and "
        "name that folder with --runtime DIR"
    )


def _is_pinned(package: Package, data: bytes) -> bool:
    return base64.b64encode(hashlib.sha512(data).digest()).decode() == package.sha512


def _members(archive: bytes, wanted: dict[str, str]) -> dict[str, bytes]:
    """Members of a gzipped tar whose hash was checked; {member: name it goes by}. Nothing is extracted to a path."""
    content = memoryview(gzip.decompress(archive))
    found: dict[str, bytes] = {}
    position = 0
    while position + 512 <= len(content):
        header = bytes(content[position : position + 512])
        name, size = header[:100].rstrip(b"\0").decode(errors="replace"), header[124:136].strip(b"\0 ")
        position += 512
        length = int(size, 8) if size else 0
        if name in wanted:
            found[wanted[name]] = bytes(content[position : position + length])
        position += -(-length // 512) * 512
    assert len(found) == len(wanted), "a pinned archive holds what it held"
    return found
