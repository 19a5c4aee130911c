"""What a training stage tells about how it runs."""

import os

import torch
from accelerate import Accelerator

from ldmkit.recipe.sections import Data
from ldmkit.recipe.training import Training
from ldmkit.training.task import Task

MAX_WAIT = 0.05
"""share of the time spent waiting for data that is worth a word"""


def describe(task: Task, accelerator: Accelerator, section: Training, *, compiles: bool, num_steps: int) -> str:
    """All that was chosen for this run, in one line."""
    model, optimizer = task.modules["model"], task.optimizers["model"]
    precision = {"no": "fp32"}.get(accelerator.mixed_precision, accelerator.mixed_precision)
    device = accelerator.device
    kernels = [p for p in model.parameters() if p.ndim == 4 and not p.is_contiguous()]
    last = any(p.is_contiguous(memory_format=torch.channels_last) for p in kernels)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    processes, parts = accelerator.num_processes, section.grad_accumulation
    split = f"{_count(processes, 'process', 'processes')} x {_count(parts, 'part', 'parts')}"
    return ", ".join(
        [
            torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
            precision,
            *([_count(torch.get_num_threads(), "thread", "threads")] if device.type == "cpu" else []),
            "channels_last" if last else "contiguous",
            ("fused " if optimizer.defaults.get("fused") else "") + _kind(optimizer),
            "compiled" if compiles else "not compiled",
            f"{trained:,} parameters",
            f"batch {section.batch_size} ({split} of {section.batch_size // (processes * parts)})",
            f"{num_steps} steps",
        ]
    )


def about_waiting(share: float, *, stage: str, data: Data) -> str:
    """How long the network waited for data, and what would change that."""
    if stage == "vae":
        cores = os.cpu_count() or 1
        advice = (
            f"a higher data.num_workers (now {data.num_workers}; this machine has {cores} cores) decodes more at once"
        )
    else:
        advice = "the cached latents are read slowly; keep the run on a faster disk"
    return f"{share:.0%} of the time went into waiting for data: {advice}"


def _kind(optimizer: torch.optim.Optimizer) -> str:
    return type(getattr(optimizer, "optimizer", optimizer)).__name__  # accelerate's wrapper has it inside


def _count(number: int, one: str, several: str) -> str:
    return f"{number} {one if number == 1 else several}"
