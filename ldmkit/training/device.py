"""The device, the processes and the precision that a stage computes with."""

import os
import platform
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import torch
from accelerate.state import PartialState
from accelerate.utils import parse_flag_from_env

from ldmkit.errors import LdmkitError

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""what networks compute in below fp32"""


def processes() -> PartialState:
    """The processes that a launcher started, or this one alone; gloo connects them where there is no GPU."""
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    # accelerate by itself leaves processes on a machine without GPU to themselves, each thinking it is alone.
    on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or (several and not torch.accelerator.is_available())
    # Captioning runs in the first process alone, for hours where the pictures are many.
    return PartialState(cpu=on_cpu, timeout=timedelta(days=7))


def resolve_precision(precision: str) -> str:
    """`fp32`, `bf16` or `fp16`; `auto` is bf16 on a GPU or a CPU that computes in it, else fp32.

    Raises LdmkitError where the device cannot do it.
    """
    on_gpu = processes().device.type == "cuda"
    if precision == "auto":
        return "bf16" if (torch.cuda.is_bf16_supported() if on_gpu else _cpu_computes_bf16()) else "fp32"
    if precision == "fp16" and not on_gpu:
        raise LdmkitError('precision = "fp16" needs a GPU; use "bf16", "fp32" or "auto"')
    return precision


@cache
def cpu_compiler_works() -> bool:
    """Whether torch.compile can make code for the CPU, for which it needs a C++ compiler and Python's headers.

    Asked by compiling one sum, which takes some seconds.
    """
    try:
        torch.compile(torch.sum)(torch.zeros(16))
    except RuntimeError:  # by whichever of torch's own classes
        return False
    return True


def use_deterministic_kernels(device: torch.device, *, asked: bool) -> None:
    """Whether a GPU may use kernels whose result differs from call to call. A CPU has none among those used here."""
    if asked and device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # which cuBLAS asks for, before its first use
    torch.use_deterministic_algorithms(asked and device.type == "cuda")


def environment(precision: str) -> dict[str, Any]:
    """All besides the recipe and the pictures that decides about the last bits, as JSON values."""
    device = processes().device
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu(),
        "precision": "no" if precision == "fp32" else precision,  # accelerate's word for it
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "threads": torch.get_num_threads(),
        "world_size": processes().num_processes,
        "torch": torch.__version__,
    }


@cache
def _cpu() -> str:
    """Model and instruction set: torch chooses its kernels by it."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():  # where platform.processor() knows the architecture at best
        lines = info.read_text(encoding="utf-8", errors="replace").splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model)
    return f"{model}, {torch.backends.cpu.get_cpu_capability()}"


def memory_format(device: torch.device, *, half: bool, size: int) -> torch.memory_format:
    """The faster layout for a convolutional network whose first level is `size` pixels wide; `half`: in 16 bits.

    channels_last, but for fp32 on a CPU at more than 64 pixels, where its GroupNorms cost more than its convolutions
    save: measured as 0.87 of the time at 32 pixels, 1.1 at 128.
    """
    return torch.channels_last if device.type != "cpu" or half or size <= 64 else torch.contiguous_format


def _cpu_computes_bf16() -> bool:
    """Whether the CPU multiplies in bf16; merely storing it slows a training step down.

    Measured: three times as fast with AMX, 1.7 times with AVX-512 BF16.
    """
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()  # an older torch cannot tell
    return any(capabilities.get(name, False) for name in ("amx_bf16", "avx512_bf16"))
