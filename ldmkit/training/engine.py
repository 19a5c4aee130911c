"""The engine under the loop: device, precision, batches, random numbers, learning rate and optimizer steps.

accelerate brings devices and processes. The order of samples and the random numbers are ldmkit's, derived from
(seed, purpose, step): a resumed run repeats what an uninterrupted one does.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list, convert_outputs_to_fp32, gather, reduce
from torch.nn.parallel import DistributedDataParallel

from ldmkit.errors import LdmkitError
from ldmkit.recipe.training import Training
from ldmkit.run.randomness import derive, numpy_generator, order_of
from ldmkit.training.clock import Clock
from ldmkit.training.device import (
    HALF,
    cpu_compiler_works,
    environment,
    processes,
    resolve_precision,
    use_deterministic_kernels,
)
from ldmkit.training.task import Metrics

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}
LONG_RUN = 5000
"""steps from which a network is compiled on a GPU"""
MANY_TOKENS = 3_000_000
"""tokens to train on from which a transformer is compiled on a CPU"""
Names = Callable[[], list[str]]
"""files of a batch, read when a message needs them"""


class Engine:
    """What a task trains its networks with; it knows nothing of what they are."""

    def __init__(
        self,
        name: str,
        section: Training,
        *,
        num_samples: int,
        seed: int,
        buckets: np.ndarray | None = None,
        num_tokens: int = 0,
    ) -> None:
        """`name`: the part of the run, by which its random numbers differ from those of others; with
        `buckets` (num_samples,) a batch holds samples of one; `num_tokens`: of a sample in a row of blocks that are
        alike, 0 for another network.

        Raises LdmkitError where nothing is to be trained on, or the batch cannot be split as asked.
        """
        if num_samples < 1:
            raise LdmkitError(f"{name}: no picture is left to train on; lower data.held_out")
        self.name = name
        self.section = section
        self.seed = derive(seed, name, 0)
        self.num_samples = num_samples
        self.processes = processes()
        self.device = self.processes.device
        self.precision = resolve_precision(section.precision)
        use_deterministic_kernels(self.device, asked=section.deterministic)
        self.scaler = torch.amp.GradScaler(self.device.type) if self.precision == "fp16" else None
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        self.skipped: set[str] = set()
        """optimizers whose step the fp16 scaler skipped, since the last `begin_step`"""
        self.clock = Clock()
        self._one_shape = buckets is None or len(np.unique(buckets)) == 1
        self._num_tokens = num_tokens
        self._peaks: dict[str, float] = {}
        self._order = order_of(self.seed, num_samples, buckets)
        self._unchecked: list[tuple[torch.Tensor, Names, str]] = []
        section.check_split(name, self.processes.num_processes)

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole training."""
        return self.section.num_steps(self.num_samples)

    @cached_property
    def compiles(self) -> bool:
        """Whether `model` is compiled: that takes a minute or more, which a short run does not earn back.

        By itself a CPU compiles only a network of blocks that are alike, where one serves all: a U-Net took five
        minutes, for a step that was 17% shorter. Nor does it where pictures have several shapes, each to be compiled.
        """
        if self.section.compile == "auto":
            return self.num_steps >= LONG_RUN if self.device.type == "cuda" else self._is_for_cpu_compiler
        return self.section.compile == "on"

    @property
    def _is_for_cpu_compiler(self) -> bool:
        tokens = self.num_steps * self.section.batch_size * self._num_tokens
        return tokens >= MANY_TOKENS and self._one_shape and cpu_compiler_works()

    # --- networks --------------------------------------------------------------------------------------------

    def add(self, name: str, network: torch.nn.Module, learning_rate: float | None = None) -> torch.nn.Module:
        """Moves the network to the device and makes its optimizer; returns what to call in training in its place.

        Its calls compute in the section's precision and return float32. `model` is compiled where that pays, in place:
        the keys of its state dict stay as they are. `learning_rate`: the peak, the section's where none is given.
        """
        section = self.section
        if name == "model" and self.compiles:
            network.compile()
        if self.precision in HALF:
            cast = torch.autocast(self.device.type, HALF[self.precision])
            network.forward = convert_outputs_to_fp32(cast(network.forward))
        network.to(self.device)
        peak = self._peaks[name] = section.learning_rate if learning_rate is None else learning_rate
        self.optimizers[name] = OPTIMIZERS[section.optimizer](
            network.parameters(), lr=peak, betas=section.betas, weight_decay=section.weight_decay, fused=True
        )
        if self.processes.num_processes == 1:
            return network
        on_gpu = self.device.type == "cuda"
        return DistributedDataParallel(network, [self.processes.local_process_index] if on_gpu else None)

    def autocast(self) -> AbstractContextManager[object]:
        """The networks compute in the section's precision within the block."""
        dtype = HALF.get(self.precision)
        return nullcontext() if dtype is None else torch.autocast(self.device.type, dtype)

    def environment(self) -> dict[str, Any]:
        """All besides the recipe and the pictures that decides about the last bits, as JSON values."""
        return {**environment(self.precision), "compiled": self.compiles}

    def summary(self, model: torch.nn.Module) -> str:
        """All that was chosen for this run, in one line."""
        kernels = [p for p in model.parameters() if p.ndim == 4 and not p.is_contiguous()]
        channels_last = any(p.is_contiguous(memory_format=torch.channels_last) for p in kernels)
        count, parts, threads = self.processes.num_processes, self.section.grad_accumulation, torch.get_num_threads()
        split = f"{_count(count, 'process', 'processes')} x {_count(parts, 'part', 'parts')}"
        on_gpu = self.device.type == "cuda"
        return ", ".join(
            [
                torch.cuda.get_device_name(self.device) if on_gpu else str(self.device),
                self.precision,
                *([_count(threads, "thread", "threads")] if self.device.type == "cpu" else []),
                "channels_last" if channels_last else "contiguous",
                f"fused {type(self.optimizers['model']).__name__}",
                "compiled" if self.compiles else "not compiled",
                f"{sum(p.numel() for p in model.parameters() if p.requires_grad):,} parameters",
                f"batch {self.section.batch_size} ({split} of {self.section.batch_size // (count * parts)})",
                f"{self.num_steps} steps",
            ]
        )

    # --- one step's batch ------------------------------------------------------------------------------------

    def begin_step(self, step: int) -> None:
        """Sets the state of every random stream and the learning rates, all of which follow from the step."""
        torch.manual_seed(
            derive(self.seed, "dropout", step * self.processes.num_processes + self.processes.process_index)
        )
        self.skipped.clear()
        for name, optimizer in self.optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(self.section, step, self.num_steps, self._peaks[name])

    def positions(self, step: int) -> np.ndarray:
        """(batch_size,) positions in the training set of the whole batch of this step, all processes."""
        return self._order.batch(step, self.section.batch_size)

    def uniform(self, purpose: str, step: int) -> np.ndarray:
        """(batch_size,) uniform numbers of the whole batch of this step."""
        return numpy_generator(self.seed, purpose, step).random(self.section.batch_size)

    def noise(self, purpose: str, step: int, shape: tuple[int, ...]) -> torch.Tensor:
        """(batch_size, *shape) unit Gaussian noise of the whole batch, on the device."""
        generator = torch.Generator(self.device).manual_seed(derive(self.seed, purpose, step))
        return torch.randn((self.section.batch_size, *shape), generator=generator, device=self.device)

    def micro_batches(self) -> Iterator[tuple[slice, bool]]:
        """(this process's part of the whole batch, whether it is the last before the optimizer's step)."""
        share = self.section.batch_size // self.processes.num_processes
        size = share // self.section.grad_accumulation
        for i in range(self.section.grad_accumulation):
            first = self.processes.process_index * share + i * size
            yield slice(first, first + size), i == self.section.grad_accumulation - 1

    # --- its update ------------------------------------------------------------------------------------------

    def exchange(self, model: torch.nn.Module, *, last: bool) -> AbstractContextManager[None]:
        """Goes around a micro-batch's forward and backward pass: processes add up gradients at the last one only."""
        return model.no_sync() if isinstance(model, DistributedDataParallel) and not last else nullcontext()

    def backward(self, loss: torch.Tensor) -> None:
        """Adds the micro-batch's share of the gradient."""
        loss = loss / self.section.grad_accumulation
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()  # type: ignore[no-untyped-call]

    def check_finite(self, value: torch.Tensor, names: Names, *, what: str = "loss") -> None:
        """Has the next `step` raise LdmkitError, naming the batch's files, where the value is not finite."""
        self._unchecked.append((value.detach(), names, what))

    def step(self, name: str, names: Names) -> torch.Tensor:
        """Clips the gradient of the network added as `name`, steps and clears it; returns its norm before clipping.

        Raises LdmkitError where the norm or a value of `check_finite` is not finite, before any weight changes. Under
        fp16 the scaler skips a step whose gradient overflowed and halves its scale, as long as that can help.
        """
        optimizer, scaler = self.optimizers[name], self.scaler
        if scaler is not None:
            scaler.unscale_(optimizer)
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.section.grad_clip or math.inf).detach()
        unchecked, self._unchecked = self._unchecked, []
        # All at once: each look makes the CPU wait for a GPU.
        *values, number = torch.stack([*(value.float() for value, _, _ in unchecked), norm.float()]).tolist()
        for value, (_, files, what) in zip(values, unchecked, strict=True):
            if not math.isfinite(value):
                raise self._not_finite(what, value, files())
        if not math.isfinite(number):
            if scaler is None or scaler.get_scale() < 1:
                raise self._not_finite("gradient", number, names())
            self.skipped.add(name)
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()
        optimizer.zero_grad(set_to_none=True)
        return norm

    def _not_finite(self, what: str, value: float, files: list[str]) -> LdmkitError:
        more = f" and {len(files) - 16} more" if len(files) > 16 else ""
        return LdmkitError(
            f"{self.name}: the {what} is {value}; nothing was changed by this batch. Its pictures: "
            f'{", ".join(files[:16])}{more}. A lower learning_rate or precision = "fp32" often helps; '
            "the last checkpoint is good"
        )

    # --- between the processes -------------------------------------------------------------------------------

    def means(self, scalars: dict[str, torch.Tensor]) -> Metrics:
        """Means over the processes. Under fp16 with the scale, and without the norm of a step that was skipped."""
        found = {key: float(value) for key, value in reduce(scalars, "mean").items()}
        if self.scaler is not None:
            found["fp16_scale"] = self.scaler.get_scale()
        return {key: value for key, value in found.items() if math.isfinite(value)}  # JSON has no infinity

    def largest(self, number: int) -> int:
        """The largest of all processes' numbers."""
        if self.processes.num_processes == 1:
            return number
        return int(gather(torch.tensor([number], device=self.device)).max())

    def from_main(self, measure: Callable[[], Metrics]) -> Metrics:
        """What the first process measures, in every process."""
        measured = [measure() if self.processes.is_main_process else {}]
        if self.processes.num_processes > 1:
            broadcast_object_list(measured)
        return measured[0]


def learning_rate(section: Training, step: int, num_steps: int, peak: float) -> float:
    """Linear warm-up, then constant or a cosine to 0, counted in optimizer steps.

    A step that the fp16 scaler skips counts too: the cosine ends with the run.
    """
    if step < section.warmup_steps:
        return peak * (step + 1) / section.warmup_steps
    if section.lr_schedule == "constant":
        return peak
    progress = (step - section.warmup_steps) / max(1, num_steps - section.warmup_steps)
    return peak * 0.5 * (1 + math.cos(math.pi * progress))


def _count(number: int, one: str, several: str) -> str:
    return f"{number} {one if number == 1 else several}"
