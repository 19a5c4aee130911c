"""The loop that every training stage runs in: one clock of optimizer steps, checkpoints, logs, signals.

accelerate brings devices, precision and processes. The order of samples, the random numbers and the
checkpoints are ldmkit's, derived from (seed, purpose, step): a resumed run repeats what an uninterrupted one does.
"""

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list

from ldmkit.errors import LdmkitError
from ldmkit.recipe.training import Training
from ldmkit.run.checkpoint import save_weights
from ldmkit.run.folder import MetricsLog, Part, read_metrics
from ldmkit.run.randomness import SampleOrder, derive, numpy_generator
from ldmkit.run.signals import StopSignals, stopped
from ldmkit.run.workspace import Workspace
from ldmkit.training.checkpointing import Checkpoints, unlike
from ldmkit.training.clock import Clock
from ldmkit.training.describe import MAX_WAIT, about_waiting, describe
from ldmkit.training.engine import start_engine, use_deterministic_kernels
from ldmkit.training.finite import FiniteCheck, Names
from ldmkit.training.overfitting import find_overfitting
from ldmkit.training.plots import plot_losses, save_picture
from ldmkit.training.task import Metrics, Task


class Trainer:
    """Device, precision, batches and random numbers of one training stage, and its loop."""

    def __init__(self, workspace: Workspace, part: Part, section: Training, *, num_samples: int, seed: int) -> None:
        if num_samples < 1:
            raise LdmkitError(f"{workspace.recipe.data.path}: no picture is left to train on; lower data.held_out")
        self.workspace = workspace
        self.part = part
        self.section = section
        self.seed = derive(seed, part.name, 0)
        self.num_steps = section.num_steps(num_samples)
        self.accelerator = start_engine(section.precision)
        self.device = self.accelerator.device
        self.rank = self.accelerator.process_index
        use_deterministic_kernels(self.device, asked=section.deterministic)
        # Compiling takes a minute or more, which a short run does not earn back.
        auto = self.device.type == "cuda" and self.num_steps >= 5000
        self.compiles = auto if section.compile == "auto" else section.compile == "on"
        if section.batch_size % (self.accelerator.num_processes * section.grad_accumulation):
            raise LdmkitError(
                f"{part.name}: batch_size = {section.batch_size} must be a multiple of the number of processes "
                f"({self.accelerator.num_processes}) times grad_accumulation ({section.grad_accumulation})"
            )
        self.order = SampleOrder(self.seed, num_samples)
        self.clock = Clock()
        self._finite = FiniteCheck(part.name)
        self._skipped: list[torch.optim.Optimizer] = []

    # --- what a task asks for ------------------------------------------------------------------------------

    def optimizer(self, parameters: Iterator[torch.nn.Parameter], learning_rate: float) -> torch.optim.Optimizer:
        """The section's optimizer, fused: one kernel a step."""
        kind = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[self.section.optimizer]
        section = self.section
        extra: dict[str, Any] = {"fused": True}
        if section.optimizer == "adamw" or section.weight_decay:
            extra["weight_decay"] = section.weight_decay
        made: torch.optim.Optimizer = kind(parameters, lr=learning_rate, betas=section.betas, **extra)
        return made

    def positions(self, step: int) -> np.ndarray:
        """(batch_size,) positions in the training set of the whole batch of this step, all processes."""
        return self.order.batch(step, self.section.batch_size)

    def uniform(self, purpose: str, step: int) -> np.ndarray:
        """(batch_size,) uniform numbers of the whole batch of this step."""
        return numpy_generator(self.seed, purpose, step).random(self.section.batch_size)

    def noise(self, purpose: str, step: int, shape: tuple[int, ...]) -> torch.Tensor:
        """(batch_size, *shape) unit Gaussian noise of the whole batch, on the device."""
        generator = torch.Generator(self.device).manual_seed(derive(self.seed, purpose, step))
        return torch.randn((self.section.batch_size, *shape), generator=generator, device=self.device)

    def waiting(self) -> AbstractContextManager[None]:
        """Goes around fetching a batch: the time inside counts as waiting for data (`loader_wait`).

        On a GPU an upper bound: it may be busy with the step before meanwhile.
        """
        return self.clock.waiting()

    def micro_batches(self) -> Iterator[tuple[slice, bool]]:
        """(this process's part of the whole batch, whether it is the last before the optimizer's step)."""
        share = self.section.batch_size // self.accelerator.num_processes
        size = share // self.section.grad_accumulation
        for i in range(self.section.grad_accumulation):
            first = self.rank * share + i * size
            yield slice(first, first + size), i == self.section.grad_accumulation - 1

    def exchange(self, model: torch.nn.Module, *, last: bool) -> AbstractContextManager[None]:
        """Goes around a micro-batch's forward and backward pass: processes add up gradients at the last one only."""
        quiet: AbstractContextManager[None] = self.accelerator.no_sync(model)
        return nullcontext() if last else quiet

    def backward(self, loss: torch.Tensor) -> None:
        """Adds the micro-batch's share of the gradient."""
        self.accelerator.backward(loss / self.section.grad_accumulation)

    def check_finite(self, value: torch.Tensor, names: Names, *, what: str = "loss") -> None:
        """Has the next `step_optimizer` raise LdmkitError, naming the batch's files, where the value is not finite."""
        self._finite.add(value, names, what)

    def step_optimizer(
        self, optimizer: torch.optim.Optimizer, parameters: Iterator[torch.nn.Parameter], names: Names
    ) -> torch.Tensor:
        """Clips, steps and clears the gradient; returns its norm before clipping.

        Raises LdmkitError where the norm or a value of `check_finite` is not finite, before any weight changes. Under
        fp16 the scaler skips a step whose gradient overflowed and halves its scale, as long as that can help.
        """
        norm = self.accelerator.clip_grad_norm_(list(parameters), self.section.grad_clip or math.inf)
        assert isinstance(norm, torch.Tensor)
        number = self._finite.settle(norm)
        if not math.isfinite(number):
            scaler = self.accelerator.scaler
            if scaler is None or scaler.get_scale() < 1:
                raise self._finite.error("gradient", number, names())
            self._skipped.append(optimizer)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return norm.detach()

    def learning_rate(self, step: int, peak: float) -> float:
        """Linear warm-up, then constant or a cosine to 0, counted in optimizer steps.

        A step that the fp16 scaler skips counts too: the cosine ends with the run.
        """
        section = self.section
        if step < section.warmup_steps:
            return peak * (step + 1) / section.warmup_steps
        if section.lr_schedule == "constant":
            return peak
        progress = (step - section.warmup_steps) / max(1, self.num_steps - section.warmup_steps)
        return peak * 0.5 * (1 + math.cos(math.pi * progress))

    # --- the loop ------------------------------------------------------------------------------------------

    def fit(self, task: Task) -> Metrics:
        """Trains from the newest checkpoint to the last step, saves the weights, returns the last held-out metrics.

        Raises Interrupted after saving where a signal asked to stop.
        """
        folder, reporter, name = self.part.folder, self.workspace.reporter, self.part.name
        section = self.section
        reporter.line(
            f"{name}: " + describe(task, self.accelerator, section, compiles=self.compiles, num_steps=self.num_steps)
        )
        checkpoints = Checkpoints(self.part, section, task, self.accelerator)
        with self.accelerator.main_process_first():  # who also sweeps and sets aside
            state = checkpoints.resume()
        start = state["step"] if state else 0
        if state:
            others = unlike(state, self.accelerator)
            told = f"; not to the last bit what it would have been: {'; '.join(others)}" if others else ""
            reporter.line(f"{name}: going on from step {start} of {self.num_steps}{told}")
        self.clock.start(state["seconds"] if state else 0.0)
        log = MetricsLog(folder / "metrics.jsonl", start) if self.accelerator.is_main_process else None
        rows: list[Metrics] = read_metrics(log.path) if log is not None and start else []
        writer = self._tensorboard(start)
        newest: Metrics = {}
        evaluated: Metrics = {}
        if start == self.num_steps and log is not None:  # stopped between the last checkpoint and the end
            evaluated = task.evaluate()
        signals = StopSignals(name, quiet=reporter.quiet)
        bars = reporter.bar(name, self.num_steps, start)
        with writer or nullcontext(), signals, checkpoints, bars as bar:
            for step in range(start, self.num_steps):
                checkpoints.check()
                scalars = self._step(task, step)
                done, last = step + 1, step + 1 == self.num_steps
                row: Metrics = {}
                if done % section.log_every == 0 or last:
                    newest = self._numbers(scalars)
                    row |= newest
                    row["learning_rate"] = self.learning_rate(step, task.learning_rates["model"])
                    row["seconds"] = round(self.clock.seconds(), 2)
                    row["loader_wait"] = round(self.clock.share_since_mark(), 4)
                draws = (done % section.sample_every == 0 or last) and log is not None
                if draws:  # before the evaluation, which reports on the newest samples
                    self._draw(task, writer, done)
                evaluates = done % section.eval_every == 0 or last
                if evaluates:
                    evaluated = self._from_main(task.evaluate() if log is not None else {})
                    row |= evaluated
                    judged = task.judge(done, evaluated)
                    for line in judged:
                        reporter.line(f"{name}: step {done}: {line}")
                    if last and judged:  # the weights may be others than those just measured
                        evaluated = self._from_main(task.evaluate() if log is not None else {})
                if log is not None and row:
                    log.write(done, row)
                    rows.append({"step": done, **row})
                    for key, value in row.items():
                        writer.add_scalar(f"{name}/{key}", value, done)
                    self.workspace.registry.hook.log_metrics(
                        run_dir=self.workspace.run_dir, stage=name, step=done, metrics=row
                    )
                if evaluates and log is not None and (found := find_overfitting(rows)):
                    reporter.line(f"{name}: step {done}: {found.line(name)}")
                if draws:
                    plot_losses(folder, f"{self.workspace.recipe.name}: {name}")
                stop = self._everywhere(signals.number)
                now = evaluated if evaluates else {}
                better = section.keep_best and checkpoints.is_better(now)
                if stop or done % section.checkpoint_every == 0 or last or better:
                    checkpoints.save(done, seconds=self.clock.seconds(), evaluated=now)
                bar.advance(1, newest)
                if stop:
                    checkpoints.join()
                    raise stopped(f"{name}: saved at step {done} of {self.num_steps}; the same command goes on", stop)
        if (share := self.clock.share()) > MAX_WAIT:
            reporter.line(f"{name}: {about_waiting(share, stage=name, data=self.workspace.recipe.data)}")
        if self.accelerator.is_main_process:
            for key, module in task.modules.items():
                save_weights(folder / f"{key}.safetensors", module.state_dict())
            for key, average in task.emas.items():
                save_weights(folder / f"{key}.safetensors", average.module.state_dict())
        self.accelerator.wait_for_everyone()
        return evaluated

    def _step(self, task: Task, step: int) -> dict[str, torch.Tensor]:
        """One optimizer step and the average's; the state of every random stream follows from the step."""
        torch.manual_seed(derive(self.seed, "dropout", step * self.accelerator.num_processes + self.rank))
        for key, optimizer in task.optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = self.learning_rate(step, task.learning_rates[key])
        try:
            scalars = task.train_step(step)
        except RuntimeError as error:
            if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
                raise
            size, section = self.workspace.recipe.data.size, self.section
            raise LdmkitError(
                f"{self.part.name}: out of memory with batch_size = {section.batch_size} and pictures of {size}x{size} "
                f"pixels; {self.part.name}.grad_accumulation = {section.grad_accumulation * 2} computes the same "
                "update in smaller parts; the last checkpoint is good"
            ) from None
        skipped, self._skipped = self._skipped, []
        if not any(optimizer is task.optimizers["model"] for optimizer in skipped):
            for average in task.emas.values():
                average.update_parameters(task.modules["model"])
        return scalars

    def _numbers(self, scalars: dict[str, torch.Tensor]) -> Metrics:
        """Means over the processes. Under fp16 with the scale, and without the norm of a step that was skipped."""
        found = {key: float(value) for key, value in self.accelerator.reduce(scalars, "mean").items()}
        if self.accelerator.scaler is not None:
            found["fp16_scale"] = self.accelerator.scaler.get_scale()
        return {key: value for key, value in found.items() if math.isfinite(value)}  # JSON has no infinity

    def _everywhere(self, number: int) -> int:
        """The largest of all processes' numbers: a signal may reach one of them alone."""
        if self.accelerator.num_processes == 1:
            return number
        return int(self.accelerator.gather(torch.tensor([number], device=self.device)).max())

    def _from_main(self, metrics: Metrics) -> Metrics:
        """The first process's metrics, in every process."""
        shared = [metrics]
        if self.accelerator.num_processes > 1:
            broadcast_object_list(shared)
        return shared[0]

    def _draw(self, task: Task, writer: Any, step: int) -> None:
        for key, picture in task.draw(step).items():
            save_picture(self.part.folder / "samples" / f"step_{step:06d}_{key}.png", picture)
            writer.add_image(f"{self.part.name}/{key}", picture, step, dataformats="HWC")

    def _tensorboard(self, start: int) -> Any:
        from torch.utils.tensorboard.writer import SummaryWriter

        if self.accelerator.is_main_process:
            return SummaryWriter(self.part.folder / "tensorboard", purge_step=start + 1)
        return None
