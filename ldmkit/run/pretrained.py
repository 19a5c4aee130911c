"""Autoencoders that exist: where the one that a recipe names lies, and which one it is. No torch."""

import hashlib
import json
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from safetensors import SafetensorError, safe_open

from ldmkit.components.hub import HUB_TIMEOUT, snapshot_commit
from ldmkit.errors import LdmkitError
from ldmkit.run.files import fingerprint, trained_file
from ldmkit.run.folder import is_finished, weights_of

HUB = "hub:"
DIFFUSERS = ("AutoencoderKL", "AutoencoderTiny", "AutoencoderDC")
"""classes of diffusers that are read"""
CONFIG = "config.json"
"""of a run's autoencoder: how to build it, and which pretrained one it is a copy of"""
_ALLOWED = (
    "allowed are another run, a folder of diffusers' "
    + ", ".join(DIFFUSERS)
    + ", TAESD's files (NAME_encoder and NAME_decoder, .safetensors or .pth, or both in one .safetensors), and "
    "hub:OWNER/NAME"
)


@dataclass(frozen=True)
class Source:
    """The files of an autoencoder."""

    name: str
    """as the recipe has it"""
    form: Literal["run", "diffusers", "taesd"]
    files: tuple[Path, ...]
    """config.json and the weights; of TAESD's form the encoder's weights and the decoder's, or both in one"""

    @property
    def commit(self) -> str | None:
        """Of the hub's repository, whatever the recipe asked for."""
        return snapshot_commit(self.files[0]) if self.name.startswith(HUB) else None

    def sha256(self) -> str:
        """Of all its files."""
        hashes = []
        for path in self.files:
            with path.open("rb") as file:
                hashes.append(hashlib.file_digest(file, "sha256").hexdigest())
        if self.form == "run" and weights_of(self.files[1].parent) not in (None, hashes[1]):
            raise LdmkitError(f"{self.files[1]}: not what its run wrote: it is damaged or was changed")
        return fingerprint({"form": self.form, "files": hashes})


def find_source(name: str) -> Source:
    """The autoencoder `name` of `[vae] pretrained`, one from the hub in the hub's cache.

    Raises LdmkitError where there is none, or it cannot be had.
    """
    path = _snapshot(name) if name.startswith(HUB) else Path(name)
    if (path / "recipe.json").is_file():
        if not is_finished(path / "vae"):
            raise LdmkitError(f"{_key(name)}: this run's autoencoder is not finished")
        return Source(name, "run", (path / "vae" / CONFIG, trained_file(path / "vae")))
    for folder in (path, path / "vae"):  # as in the repository of a whole pipeline
        if (folder / CONFIG).is_file() and _class(folder / CONFIG) is not None:
            weights = sorted(folder.glob("*.safetensors"))
            plain = folder / "diffusion_pytorch_model.safetensors"
            if plain not in weights:
                raise LdmkitError(f"{_key(name)}: {folder} has no {plain.name}; pickled weights are not read")
            return Source(name, "diffusers", (folder / CONFIG, plain))
    if pair := _pair(path):
        return Source(name, "taesd", pair)
    for file in sorted(path.glob("*.safetensors")) if path.is_dir() else [path]:
        if file.is_file() and "decoder.layers.0.weight" in _tensor_names(file):
            return Source(name, "taesd", (file,))
    there = "holds none that is known" if path.exists() else "no such folder"
    raise LdmkitError(f"{_key(name)}: {there}; {_ALLOWED}")


def identity(name: str, run_dir: Path) -> str:
    """What tells this autoencoder from any other: the SHA-256 of its files, or the hub's name and revision for it.

    That of the copy in the run where the original is gone. Raises LdmkitError where there is neither.
    """
    if name.startswith(HUB):
        return name
    try:
        return find_source(name).sha256()
    except LdmkitError:
        with suppress(OSError, ValueError, KeyError, TypeError):
            kept = json.loads((run_dir / "vae" / CONFIG).read_text(encoding="utf-8"))["pretrained"]
            if kept["name"] == name and is_finished(run_dir / "vae"):
                return str(kept["sha256"])
        raise


def _key(name: str) -> str:
    return f'vae.pretrained = "{name}"'


def _class(config: Path) -> str | None:
    """The class in a diffusers config.json, where it is one that is read."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        found = json.loads(config.read_text(encoding="utf-8"))["_class_name"]
        return found if found in DIFFUSERS else None
    return None


def _tensor_names(file: Path) -> set[str]:
    with suppress(OSError, SafetensorError), safe_open(file, framework="np") as tensors:
        return set(tensors.keys())
    return set()


def _pair(path: Path) -> tuple[Path, Path] | None:
    """Encoder's and decoder's file: the only pair in a folder, or that whose names begin with `path`."""
    folder, prefix = (path, "") if path.is_dir() else (path.parent, path.name)
    found: dict[str, tuple[Path, Path]] = {}
    for ending in (".pth", ".safetensors"):  # the latter wins
        for encoder in sorted(folder.glob(f"{prefix}*encoder{ending}")):
            decoder = encoder.with_name(encoder.name.replace("encoder", "decoder"))
            if decoder.is_file():
                found[encoder.stem] = (encoder, decoder)
    if len(found) > 1:
        raise LdmkitError(
            f"{path}: {len(found)} autoencoders in one folder; name one: "
            + ", ".join(str(folder / stem.removesuffix("encoder").rstrip("_")) for stem in found)
        )
    return next(iter(found.values()), None)


def _snapshot(name: str) -> Path:
    """The repository's configuration and weights, from the hub's cache or fetched to it."""
    repository, _, revision = name.removeprefix(HUB).partition("@")
    try:
        from huggingface_hub import HfApi, snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError
    except ImportError:
        raise LdmkitError(f"{_key(name)}: needs huggingface_hub: pip install 'ldmkit[train]'") from None
    patterns = [CONFIG, f"vae/{CONFIG}", "tae*.safetensors"]
    patterns += [f"{folder}diffusion_pytorch_model.safetensors" for folder in ("", "vae/")]
    fetch = partial(snapshot_download, repository, revision=revision or None, allow_patterns=patterns)
    try:
        try:
            return Path(fetch(local_files_only=True))
        except LocalEntryNotFoundError:
            HfApi().model_info(repository, revision=revision or None, timeout=HUB_TIMEOUT)
            return Path(fetch())
    except Exception as error:  # the hub's client lets through what its HTTP library raises
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise LdmkitError(
            f"{_key(name)}: cannot be fetched from the Hugging Face hub: {reason}; connect once, copy a cache here and "
            "set HF_HOME to it, or name a folder"
        ) from error
