"""Checkpoints: a folder of safetensors and JSON that is there whole, verified, or not at all."""

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as serialized

from ldmkit.atomic import fsync, json_bytes, new_folder, no_room, remove_folder, write_atomic, write_file
from ldmkit.errors import LdmkitError
from ldmkit.report import megabytes
from ldmkit.run.progress import STATE, checkpoints, step_of

MANIFEST = "manifest.json"
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Keep:
    """Which checkpoints stay; a new one takes an old one's place once it was read back and found whole."""

    last: int = 2
    every: int = 0
    """those at multiples of so many steps; 0: none"""
    best: bool = False
    """the one whose state has the lowest `held_out`"""


def copied(tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """Copies in main memory that nobody else changes; tied or sliced tensors, which safetensors refuses, are parted."""
    return {key: value.detach().to("cpu", copy=True).contiguous() for key, value in tensors.items()}


def save_weights(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Writes a safetensors file that is there whole or not at all. Raises LdmkitError where it cannot."""
    try:
        write_atomic(path, serialized(copied(tensors)))
    except (OSError, SafetensorError) as error:
        raise LdmkitError(f"{path}: cannot be written: {error}") from None


def load_weights(path: Path) -> Tensors:
    """Tensors of a safetensors file on the CPU. Raises LdmkitError where it is missing or damaged."""
    try:
        return load_file(path)
    except Exception as error:  # safetensors raises its own error type for each kind of damage
        raise LdmkitError(f"{path}: no readable safetensors file: {error}") from None


def save_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, Tensors], state: Mapping[str, Any], *, keep: Keep
) -> Path:
    """Writes `step_XXXXXXXX/` under `folder`, reads it back, then removes those that are not to be kept.

    `tensors` are contiguous, in main memory and share none of it (see `copied`). The manifest holds the SHA-256 of
    the bytes that were to be written. Raises LdmkitError where it cannot be written whole, as where the disk is full,
    or does not read back; older ones are then untouched.
    """
    require_room(folder, sum(t.numel() * t.element_size() for group in tensors.values() for t in group.values()))
    target = folder / f"step_{step:08d}"
    with new_folder(target, durable=True) as temporary:
        hashes = {}
        for name, group in tensors.items():
            hashes[f"{name}.safetensors"] = _write(temporary / f"{name}.safetensors", serialized(group))
        hashes[STATE] = _write(temporary / STATE, json_bytes({"step": step, **state}))
        _write(temporary / MANIFEST, json_bytes(hashes))
    if (reason := damage(target)) is not None:
        _set_aside(target)
        raise LdmkitError(f"{target}: {reason} already: the disk does not give back what was written to it")
    prune(folder, keep)
    return target


def require_room(folder: Path, needed: int) -> None:
    """Raises LdmkitError where the disk has no room for a checkpoint of these bytes of tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < (least := needed * 1.05 + 2**20):
        raise LdmkitError(
            f"{folder}: a checkpoint needs {megabytes(least)} and {megabytes(free)} are free; "
            "make room and run the same command again"
        )


def prune(folder: Path, keep: Keep) -> None:
    """Removes the checkpoints that are not to be kept."""
    with no_room(folder):
        for old in _superfluous(folder, keep):
            remove_folder(old)


def load_newest(folder: Path) -> tuple[dict[str, Tensors], dict[str, Any]] | None:
    """Tensors and state of the newest checkpoint that passes its hashes; a damaged one is set aside with a warning."""
    for checkpoint in checkpoints(folder):
        reason = damage(checkpoint)
        if reason is None:
            tensors = {file.stem: load_weights(file) for file in checkpoint.glob("*.safetensors")}
            return tensors, _state(checkpoint)
        aside = _set_aside(checkpoint)
        warnings.warn(f"{checkpoint}: {reason}; set aside as {aside.name}, going back to the one before", stacklevel=2)
    return None


def chosen_weights(part: Path, which: str) -> tuple[Path, int] | None:
    """Weights of a part's checkpoint, averaged where there is an average, and its step; None where there is none such.

    `which`: a step, or `best`, the one that did best on the held-out pictures. Raises LdmkitError where it is damaged.
    """
    found = {str(step_of(each)): each for each in checkpoints(part / "checkpoints")}
    if which == "best":
        judged = {step: loss for step, each in found.items() if (loss := _held_out(each)) is not None}
        which = min(judged, key=judged.__getitem__) if judged else ""
    if which not in found:
        return None
    if (reason := damage(found[which])) is not None:
        raise LdmkitError(f"{found[which]}: {reason}; choose another checkpoint")
    average = found[which] / "ema.safetensors"
    return average if average.is_file() else found[which] / "model.safetensors", int(which)


def damage(checkpoint: Path) -> str | None:
    """What is wrong with the checkpoint's files, None where nothing is.

    The manifest must be, byte for byte, the one that the files beside it would get now: it vouches for them and they
    for it, and no file may be there that it does not name.
    """
    try:
        files = sorted(path for path in checkpoint.iterdir() if path.name != MANIFEST)
        if unknown := [path.name for path in files if path.is_symlink() or not path.is_file()]:
            return f"{unknown[0]} does not belong there"
        hashes = {path.name: _sha256(path) for path in files}
        written = (checkpoint / MANIFEST).read_bytes()
    except OSError as error:
        return f"{Path(error.filename or checkpoint).name} cannot be read: {error.strerror}"
    if written == json_bytes(hashes):
        return None
    try:
        told = dict(json.loads(written))
    except (ValueError, TypeError, RecursionError):
        return f"{MANIFEST} is damaged"
    wrong = sorted(name for name in told.keys() | hashes.keys() if told.get(name) != hashes.get(name))
    return f"{', '.join(wrong) or MANIFEST} is damaged"


def _superfluous(folder: Path, keep: Keep) -> list[Path]:
    found = checkpoints(folder)
    kept = set(found[: keep.last])
    if keep.every:
        kept |= {each for each in found if step_of(each) % keep.every == 0}
    if keep.best:
        judged = {each: loss for each in found if (loss := _held_out(each)) is not None}
        kept |= {min(judged, key=judged.__getitem__)} if judged else set()
    return [each for each in found if each not in kept]


def _state(checkpoint: Path) -> dict[str, Any]:
    state: dict[str, Any] = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    return state


def _held_out(checkpoint: Path) -> float | None:
    with suppress(OSError, ValueError):  # an old one that was damaged meanwhile is nobody's best
        return _state(checkpoint).get("held_out")
    return None


def _set_aside(checkpoint: Path) -> Path:
    aside = checkpoint.with_name(f"damaged_{checkpoint.name}")
    shutil.rmtree(aside, ignore_errors=True)
    checkpoint.rename(aside)
    fsync(aside.parent)
    return aside


def _write(path: Path, data: bytes) -> str:
    write_file(path, data)
    return hashlib.sha256(data).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb", buffering=0) as file:
        if hasattr(os, "posix_fadvise"):  # what the disk has, and not what the system remembers having sent there
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return hashlib.file_digest(file, "sha256").hexdigest()


def flatten_optimizer(optimizer: torch.optim.Optimizer) -> Tensors:
    """Optimizer state as `<parameter>.<key>` tensors, so that it fits into safetensors."""
    state = optimizer.state_dict()["state"]
    return {f"{i}.{key}": torch.as_tensor(value) for i, entry in state.items() for key, value in entry.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Tensors) -> None:
    """The inverse of `flatten_optimizer`."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        index, _, key = name.partition(".")
        parameter = parameters[int(index)]
        if tensor.shape == parameter.shape:
            # In the parameter's memory format (channels_last, say), which the fused kernels take for granted.
            tensor = torch.empty_like(parameter, dtype=tensor.dtype, device="cpu").copy_(tensor)
        state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
