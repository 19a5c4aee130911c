"""The loop that every training stage runs in: one clock of optimizer steps, checkpoints, logs, signals."""

import math
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext

import torch

from ldmkit.errors import LdmkitError, LostWorker, NotCompiled
from ldmkit.run.checkpoint import save_weights
from ldmkit.run.workspace import Workspace
from ldmkit.signals import StopSignals, stopped
from ldmkit.training.checkpointing import Checkpoints
from ldmkit.training.clock import Clock
from ldmkit.training.engine import Engine
from ldmkit.training.log import TrainingLog
from ldmkit.training.task import Metrics, Task


def train(workspace: Workspace, engine: Engine, task: Task) -> Metrics:
    """Trains from the newest checkpoint to the last step, saves the weights, returns the last held-out metrics.

    Raises Interrupted after saving where a signal asked to stop.
    """
    name, section, num_steps = engine.name, engine.section, engine.num_steps
    part, reporter, data = workspace.parts[name], workspace.reporter, workspace.recipe.data
    reporter.line(f"{name}: {engine.summary(task.modules['model'])}")

    checkpoints = Checkpoints(part, engine, task)
    with engine.processes.main_process_first():  # who also sets damaged ones aside
        start, seconds, differences = checkpoints.resume()
        if engine.processes.is_main_process and start < num_steps:
            checkpoints.require_room()
    if start:
        changed = f" with {'; '.join(checkpoints.changed)}" if checkpoints.changed else ""
        if checkpoints.mixes(start):
            changed += "; no longer what this recipe alone would give"
        warning = f"; not to the last bit what it would have been: {'; '.join(differences)}" if differences else ""
        reporter.line(f"{name}: going on from step {start} of {num_steps}{changed}{warning}")
    engine.clock = Clock(seconds)
    log = TrainingLog(workspace, part, start) if engine.processes.is_main_process else None
    signals = StopSignals(name, quiet=reporter.quiet)
    newest: Metrics = {}
    saved = start
    # Where it was stopped between the last checkpoint and the end, there is no step left to evaluate.
    held_out = engine.from_main(task.evaluate) if start == num_steps else {}

    with closing(log) if log else nullcontext(), signals, checkpoints, reporter.bar(name, num_steps, start) as bar:
        for step in range(start, num_steps):
            checkpoints.check()
            done, last = step + 1, step + 1 == num_steps
            row: Metrics = {}
            pictures: dict[str, torch.Tensor] = {}

            try:
                with _errors_explained(engine, max(data.shapes, key=math.prod)):
                    scalars = update(engine, task, step)
            except (LostWorker, NotCompiled) as error:  # before any weight changed: all is as the step before left it
                if saved < step and engine.processes.num_processes == 1:
                    checkpoints.save(step, seconds=engine.clock.seconds(), evaluated=held_out)
                    checkpoints.join()
                    reporter.line(f"{name}: saved at step {step} of {num_steps}")
                if signals.number and isinstance(error, NotCompiled):  # Ctrl-C in a terminal reaches the compiler too
                    raise stopped(f"{name}: stopped at step {step}; the same command goes on", signals.number) from None
                raise
            held_out = {}

            # Log.
            if done % section.log_every == 0 or last:
                newest = engine.means(scalars)
                row |= newest
                row["learning_rate"] = engine.optimizers["model"].param_groups[0]["lr"]
                row["seconds"] = round(engine.clock.seconds(), 2)
                row["loader_wait"] = round(engine.clock.share_since_mark(), 4)

            # Draw, before the evaluation, which reports on the newest samples.
            if (done % section.sample_every == 0 or last) and log:
                pictures = task.draw(done)

            # Evaluate.
            if done % section.eval_every == 0 or last:
                held_out = engine.from_main(task.evaluate)
                row |= held_out
                lines = task.review(done, held_out)
                for line in lines:
                    reporter.line(f"{name}: step {done}: {line}")
                if last and lines:  # the weights may be others than those just measured
                    held_out = engine.from_main(task.evaluate)

            if log:
                log.write(done, row, pictures)

            # Save, and stop where one of the processes was asked to.
            stop = engine.largest(signals.number)
            is_better = section.keep_best and checkpoints.is_better(held_out)
            if stop or done % section.checkpoint_every == 0 or last or is_better:
                checkpoints.save(done, seconds=engine.clock.seconds(), evaluated=held_out)
                saved = done
            bar.advance(1, newest)
            if stop:
                checkpoints.join()
                raise stopped(f"{name}: saved at step {done} of {num_steps}; the same command goes on", stop)

    if advice := engine.clock.advice(name, data):
        reporter.line(f"{name}: {advice}")
    if engine.processes.is_main_process:
        averages = {key: average.module for key, average in task.emas.items()}
        for key, module in (task.modules | averages).items():
            save_weights(part.folder / f"{key}.safetensors", module.state_dict())
    engine.processes.wait_for_everyone()
    return held_out


def update(engine: Engine, task: Task, step: int) -> dict[str, torch.Tensor]:
    """One optimizer step, and the averages' where the fp16 scaler did not skip it."""
    engine.begin_step(step)
    scalars = task.train_step(step)
    if "model" not in engine.skipped:
        for average in task.emas.values():
            average.update_parameters(task.modules["model"])
    return scalars


@contextmanager
def _errors_explained(engine: Engine, shape: tuple[int, int]) -> Iterator[None]:
    """Turns errors that memory ran out, or that torch.compile failed, into an LdmkitError; `shape`: of the largest
    pictures.
    """
    try:
        yield
    except RuntimeError as error:
        from torch._dynamo.exc import TorchDynamoException  # here, since torch takes a second to import it

        if isinstance(error, TorchDynamoException):
            first = str(error).strip().splitlines()[0]
            raise NotCompiled(
                f"{engine.name}: torch.compile failed ({first}); --set {engine.name}.compile=off goes on without it"
            ) from None
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        section, share = engine.section, engine.section.batch_size // engine.processes.num_processes
        parts = next((n for n in range(section.grad_accumulation + 1, share + 1) if share % n == 0), None)
        advice = (
            "lower data.size or the channels"
            if parts is None
            else f"--set {engine.name}.grad_accumulation={parts} computes the same update in smaller parts and goes on "
            "from the last checkpoint, which is good"
        )
        raise LdmkitError(
            f"{engine.name}: out of memory with batch_size = {section.batch_size} and pictures of "
            f"{shape[0]}x{shape[1]} pixels; {advice}"
        ) from None
