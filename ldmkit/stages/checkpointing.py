"""All of a training stage's state, to a checkpoint and back."""

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from ldmkit.checkpoint import Tensors, flatten_optimizer, load_newest, restore_optimizer, save_checkpoint
from ldmkit.stages.task import Task


def resume(folder: Path, task: Task, accelerator: Accelerator) -> dict[str, Any] | None:
    """Loads the newest good checkpoint into the task; returns its state, None where there is none."""
    newest = load_newest(folder)
    if newest is None:
        return None
    tensors, state = newest
    for name, module in task.modules.items():
        module.load_state_dict(tensors[name])
    for name, optimizer in task.optimizers.items():
        restore_optimizer(optimizer, tensors[f"optimizer_{name}"])
    for name, average in task.emas.items():
        average.module.load_state_dict(tensors[name])
        average.n_averaged.fill_(state["num_averaged"])
    task.memory.clear()
    task.memory.update(state["memory"])
    if accelerator.scaler is not None and state["scaler"]:
        accelerator.scaler.load_state_dict(state["scaler"])
    return state


def is_repeatable(state: dict[str, Any], accelerator: Accelerator) -> bool:
    """Whether this run computes to the last bit what the checkpoint's run would have."""
    same: bool = state["world_size"] == accelerator.num_processes and state["threads"] == torch.get_num_threads()
    return same


def save(
    folder: Path, task: Task, accelerator: Accelerator, *, step: int, seconds: float, fingerprint: str, keep: int
) -> None:
    """Writes a checkpoint, in the first process; the others wait for it."""
    if accelerator.is_main_process:
        tensors: dict[str, Tensors] = {name: module.state_dict() for name, module in task.modules.items()}
        tensors |= {f"optimizer_{name}": flatten_optimizer(each) for name, each in task.optimizers.items()}
        tensors |= {name: average.module.state_dict() for name, average in task.emas.items()}
        state = {
            "seconds": seconds,
            "world_size": accelerator.num_processes,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "fingerprint": fingerprint,
            "num_averaged": max((int(average.n_averaged) for average in task.emas.values()), default=0),
            "memory": task.memory,
            "scaler": accelerator.scaler.state_dict() if accelerator.scaler is not None else None,
        }
        save_checkpoint(folder, step, tensors, state, keep=keep)
    accelerator.wait_for_everyone()
