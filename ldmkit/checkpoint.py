"""Checkpoints: a folder of safetensors and JSON that is there whole, verified, or not at all."""

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ldmkit.atomic import new_folder, sweep, write_json
from ldmkit.errors import LdmkitError

MANIFEST = "manifest.json"
Tensors = dict[str, torch.Tensor]


def save_weights(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Writes a safetensors file by way of a temporary one in the same folder. Raises LdmkitError where it cannot."""
    temporary = path.with_name(f".{path.name}.partial")
    # Cloned: tied or sliced tensors share memory, which safetensors refuses.
    whole = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    try:
        save_file(whole, temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        raise LdmkitError(f"{path}: cannot be written: {error}") from None
    finally:
        temporary.unlink(missing_ok=True)


def load_weights(path: Path) -> Tensors:
    """Tensors of a safetensors file on the CPU. Raises LdmkitError where it is missing or damaged."""
    try:
        return load_file(path)
    except Exception as error:  # safetensors raises its own error type for each kind of damage
        raise LdmkitError(f"{path}: no readable safetensors file: {error}") from None


def save_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, Tensors], state: Mapping[str, Any], *, keep: int
) -> Path:
    """Writes `step_XXXXXXXX/` under `folder`, then removes all but the newest `keep`.

    Raises LdmkitError where it cannot be written whole, as where the disk is full; older ones are then untouched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    needed = sum(t.numel() * t.element_size() for group in tensors.values() for t in group.values())
    free = shutil.disk_usage(folder).free
    if free < needed * 1.05 + 2**20:
        raise LdmkitError(
            f"{folder}: a checkpoint needs {needed / 2**20:.0f} MiB and {free / 2**20:.0f} MiB are free; "
            "make room and run the same command again"
        )
    target = folder / f"step_{step:08d}"
    with new_folder(target, durable=True) as temporary:
        for name, group in tensors.items():
            save_weights(temporary / f"{name}.safetensors", group)
        write_json(temporary / "state.json", {"step": step, **state})
        hashes = {file.name: _sha256(file) for file in sorted(temporary.iterdir())}
        write_json(temporary / MANIFEST, hashes)
    for old in _folders(folder)[keep:]:
        shutil.rmtree(old)
    return target


def load_newest(folder: Path) -> tuple[dict[str, Tensors], dict[str, Any]] | None:
    """Tensors and state of the newest checkpoint that passes its hashes; a damaged one is set aside with a warning.

    What a killed save left is removed, so nobody may be saving meanwhile.
    """
    sweep(folder)
    for checkpoint in _folders(folder):
        reason = _damage(checkpoint)
        if reason is None:
            tensors = {file.stem: load_weights(file) for file in checkpoint.glob("*.safetensors")}
            return tensors, json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
        aside = checkpoint.with_name(f"damaged_{checkpoint.name}")
        shutil.rmtree(aside, ignore_errors=True)
        checkpoint.rename(aside)
        warnings.warn(f"{checkpoint}: {reason}; set aside as {aside.name}, going back to the one before", stacklevel=2)
    return None


def _folders(folder: Path) -> list[Path]:
    """Newest first."""
    return sorted(folder.glob("step_*"), reverse=True) if folder.is_dir() else []


def _damage(checkpoint: Path) -> str | None:
    try:
        hashes = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return "its manifest cannot be read"
    files = {path.name for path in checkpoint.iterdir()} - {MANIFEST}
    if not isinstance(hashes, dict) or not files <= hashes.keys() or any(Path(name).name != name for name in hashes):
        return "its manifest does not list its files"
    for name, expected in hashes.items():
        file = checkpoint / name
        if file.is_symlink() or not file.is_file() or _sha256(file) != expected:
            return f"{name} is damaged"
    return None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
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
