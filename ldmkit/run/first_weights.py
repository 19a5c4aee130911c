"""First weights from elsewhere: of another run, or of a file. A run keeps its own copy of them. No torch."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from safetensors import SafetensorError, safe_open

from ldmkit.atomic import write_atomic
from ldmkit.errors import LdmkitError
from ldmkit.run.files import RECORD, check, fingerprint, read_record, read_sealed, sha256_of, trained_file, write_sealed
from ldmkit.run.folder import is_finished, weights_of
from ldmkit.run.parts import PARTS, trained_parts

FOLDER = "init"
"""of a run: the copies, so that it goes on whatever becomes of the run or file that they are from"""


@dataclass(frozen=True)
class Start:
    """The weights that one part's network starts from."""

    part: str
    file: str
    """where they lie now"""
    sha256: str
    """of the file"""
    source: str
    """where they are from, for the user"""
    name: str
    """the same for others: nothing but the run's or the file's name"""
    tokenizer: str | None = None
    """fingerprint of the tokenizer.json that a text encoder among them was trained with"""


def find_starts(source: Path, parts: Sequence[str], run_dir: Path) -> dict[str, Start]:
    """Weights in `source` for these parts of the run in `run_dir`, by part.

    `source` is another run (its finished parts; by folder, or by name beside `run_dir`), a folder of files as
    `ldmkit export safetensors` and `ldmkit convert` name them, or one safetensors file, whose part is told by the
    names of its tensors. Averaged weights, where a run has them.

    Raises LdmkitError where there are none, or they are the run's own.
    """
    if not source.exists() and (run_dir.parent / source).is_dir():
        source = run_dir.parent / source
    own = source.resolve().is_relative_to(run_dir.resolve())
    if own and not source.resolve().is_relative_to(run_dir.resolve() / "stale"):
        raise LdmkitError(
            f"--init-from {source}: lies in the run itself, {run_dir}, which sets it aside before it starts anew; "
            "give the run another name with --set name=NAME"
        )
    if source.is_file():
        part = _part_of(source)
        if part not in parts:
            raise LdmkitError(
                f"--init-from {source}: holds the weights of {part}, and this command trains {' and '.join(parts)}"
            )
        return {part: _start(part, source, name=source.name)}
    if not source.is_dir():
        raise LdmkitError(
            f"--init-from {source}: neither a run nor a safetensors file. A run that has begun keeps the weights that "
            "it started from, and goes on without --init-from"
        )
    files = {part: source / str(PARTS[part].weights) for part in parts}
    if any((source / part / RECORD).is_file() for part in trained_parts()):
        found = {part: trained_file(source / part) for part in parts if is_finished(source / part)}
    else:
        found = {part: file for part, file in files.items() if file.is_file()}
    if not found:
        raise LdmkitError(
            f"--init-from {source}: no finished {' or '.join(parts)} there; it takes another run's folder, a folder of "
            f"{', '.join(file.name for file in files.values())}, or one safetensors file"
        )
    name = source.resolve().name
    return {part: _start(part, file, name=name) for part, file in found.items()}


def keep_start(start: Start, run_dir: Path) -> None:
    """Copies the weights to the run: whole, under their hash, before anything names them.

    Raises LdmkitError where they are no longer those that were found.
    """
    folder = run_dir / FOLDER
    copy = folder / f"{start.part}-{start.sha256[:16]}.safetensors"
    data = Path(start.file).read_bytes()
    if hashlib.sha256(data).hexdigest() != start.sha256:
        raise LdmkitError(f"--init-from {start.source}: changed while it was read; run the command again")
    write_atomic(copy, data)
    write_sealed(folder / f"{start.part}.json", asdict(replace(start, file=copy.name)))
    for old in folder.glob(f"{start.part}-*.safetensors"):
        if old != copy:
            old.unlink()


def kept_starts(run_dir: Path) -> dict[str, Start]:
    """What the run in `run_dir` started from, by part. Raises LdmkitError where that cannot be read."""
    found = {}
    for path in sorted((run_dir / FOLDER).glob("*.json")):
        try:
            start = Start(**read_sealed(path))
            found[start.part] = replace(start, file=str(path.parent / Path(start.file).name))
        except (OSError, ValueError, TypeError):
            raise LdmkitError(f"{path}: damaged; {ways_on(path.parent)}") from None
    return found


def ways_on(folder: Path) -> str:
    """Where a run's copy of its first weights, in `folder`, is of no use."""
    return f"give --init-from again, or remove {folder} to train from random weights"


def shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Shape of each tensor of a safetensors file, by its header alone. Raises LdmkitError where it is none."""
    try:
        with safe_open(file, framework="np") as tensors:
            return {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError) as error:
        raise LdmkitError(f"--init-from {file}: no readable safetensors file: {error}") from None


def misfit(found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]) -> str | None:
    """What keeps the tensors found from being the network's, by name and shape; None where nothing does."""
    other = [name for name in wanted if name in found and found[name] != wanted[name]]
    told = []
    if other:
        first = other[0]
        more = f", and {len(other) - 1} more of other shapes" if len(other) > 1 else ""
        told.append(f"{first} is {_words(found[first])} there and {_words(wanted[first])} here{more}")
    for what, names in (
        ("not there", [name for name in wanted if name not in found]),
        ("not known here", [name for name in found if name not in wanted]),
    ):
        if names:
            told.append(f"{', '.join(names[:3])}{', ...' if len(names) > 3 else ''} {what} ({len(names)} in all)")
    return "; ".join(told) or None


def _words(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "a number"


def _part_of(file: Path) -> str:
    names = shapes(file)
    if any(name.startswith(("unet.", "text_encoder.")) or ".cross_attention." in name for name in names):
        return "t2i"
    if any(name.startswith("time_embedding.") for name in names):
        return "unet"
    if any(name.startswith("encoder.") for name in names):
        return "vae"
    raise LdmkitError(f"--init-from {file}: holds none of ldmkit's networks (tensors: {', '.join(sorted(names)[:3])})")


def _start(part: str, file: Path, *, name: str) -> Start:
    sha256 = sha256_of(file)
    if trained_file(file.parent) == file and weights_of(file.parent) not in (None, sha256):
        raise LdmkitError(f"--init-from {file}: not what its run wrote: it is damaged or was changed")
    tokenizer = None
    if any(key.startswith("text_encoder.") for key in shapes(file)):
        tokenizer = _tokenizer_of(file)
        if tokenizer is None:
            raise LdmkitError(
                f"--init-from {file}: holds a text encoder, and of which words cannot be told without the text/ of its "
                f"run; `ldmkit export safetensors` writes the U-Net alone, as {PARTS['t2i'].weights}"
            )
    return Start(part, str(file), sha256, str(file), name, tokenizer)


def _tokenizer_of(file: Path) -> str | None:
    """Fingerprint of the tokenizer that a run's text U-Net was trained with, by the run's records; None: not found."""
    for folder in list(file.parents)[:3]:  # the part's, or one of its checkpoints'
        if (folder / RECORD).is_file():
            # Beside it, or beside stale/ where the part was set aside; what it was trained with may be there too.
            beside = (folder.parent / "text", folder.parent.parent / "text", *folder.parent.glob("text-*"))
            with suppress(OSError, ValueError, KeyError, TypeError, LdmkitError):
                wanted = (read_record(folder) or {})["inputs"]["text"]
                for text in beside:
                    if (read_record(text) or {}).get("fingerprint") == wanted:
                        check(text / "tokenizer.json")
                        return fingerprint(json.loads((text / "tokenizer.json").read_text(encoding="utf-8")))
    return None
