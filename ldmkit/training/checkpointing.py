"""All of a training stage's state, to checkpoints and back; saved in a thread, so that training goes on meanwhile."""

import os
import threading
from collections.abc import Mapping
from copy import deepcopy
from typing import Any, Self

from ldmkit.errors import LdmkitError
from ldmkit.run.checkpoint import (
    Keep,
    Tensors,
    copied,
    flatten_optimizer,
    load_newest,
    prune,
    require_room,
    restore_optimizer,
    save_checkpoint,
)
from ldmkit.run.folder import Part, differences
from ldmkit.training.ema import names_of
from ldmkit.training.engine import Engine
from ldmkit.training.overfitting import CURVES
from ldmkit.training.task import Metrics, Task

_PATIENCE = 2.0
"""seconds that a second Ctrl-C waits for a save: an end in the middle of it costs this one checkpoint"""


class Checkpoints:
    """The checkpoints of one stage.

    A step waits for the copy off the device alone: the first process writes the copy in a thread, and no second one
    before that is done. What goes wrong there is raised at the next step. Leaving the block waits for the thread.
    """

    def __init__(self, part: Part, engine: Engine, task: Task) -> None:
        self.part = part
        self.engine = engine
        self.task = task
        self.folder = part.folder / "checkpoints"
        self.best: float | None = None
        """lowest held-out loss that was saved"""
        self.changed: list[str] = []
        """by what another recipe, which the newest checkpoint is from, differs"""
        section = engine.section
        self._keep = Keep(last=section.keep_checkpoints, every=section.keep_every, best=section.keep_best)
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def resume(self) -> tuple[int, float, list[str]]:
        """Loads the newest good checkpoint into the task; returns its step, the seconds that it took and `differences`.

        These are `key: then -> now` for all that keeps the resumed run from the bits that its own would have computed.
        Without a checkpoint (0, 0.0, []). One of another recipe is taken up where its weights mean the same; `changed`
        then says what differs. Raises LdmkitError where they do not, or the recipe ends before it.
        """
        newest = load_newest(self.folder)
        if newest is None:
            return 0, 0.0, []
        if self.engine.processes.is_main_process:
            prune(self.folder, self._keep)  # what a kill right after the last save has left
        tensors, state = newest
        task, scaler = self.task, self.engine.scaler
        then = state.get("inputs", {})
        lines = differences(then, self.part.inputs) if state["fingerprint"] != self.part.fingerprint else []
        if lines and not self.part.fits(then):
            raise LdmkitError(
                f"{self.folder}: its newest checkpoint is another recipe's ({'; '.join(lines)}); "
                "move the folder away, or go back to that recipe. To start from its weights alone, give the "
                "ema.safetensors of a checkpoint moved away to --init-from"
            )
        if state["step"] > self.engine.num_steps:
            raise LdmkitError(
                f"{self.folder}: its newest checkpoint is of step {state['step']}, and the recipe ends at step "
                f"{self.engine.num_steps}; `ldmkit train RECIPE --fresh` begins anew"
            )
        self.changed = lines
        self.part.history = [*state.get("history", []), *([{"step": state["step"], "changed": lines}] if lines else [])]
        for name, module in task.modules.items():
            module.load_state_dict(tensors[name])
        for name, optimizer in self.engine.optimizers.items():
            restore_optimizer(optimizer, tensors[f"optimizer_{name}"])
        decays = then.get(self.part.name, {}).get("ema_decays", self.engine.section.ema_decays)
        averages = dict(zip(decays, names_of(decays), strict=True))
        for average in task.emas.values():
            # One that was not kept so far begins at these weights.
            saved = averages.get(average.decay)
            average.module.load_state_dict(tensors[saved or "model"])
            numbers = state["num_averaged"]
            number = numbers[saved] if isinstance(numbers, dict) and saved else numbers  # one number: of all
            average.n_averaged.fill_(number if saved else 0)
        task.memory.clear()
        task.memory.update(state["memory"])
        if scaler is not None and state["scaler"]:
            scaler.load_state_dict(state["scaler"])
        self.best = state.get("best")
        now = {key: value for key, value in self.engine.environment().items() if key in state}
        return state["step"], state["seconds"], differences({key: state[key] for key in now}, now)

    def require_room(self) -> None:
        """Before the first step. Raises LdmkitError where the disk has no room for a checkpoint."""
        modules = [*self.task.modules.values(), *(average.module for average in self.task.emas.values())]
        tensors = [tensor for module in modules for tensor in module.state_dict().values()]
        # Adam keeps two moments of each weight that it trains.
        groups = [group for each in self.engine.optimizers.values() for group in each.param_groups]
        tensors += 2 * [weight for group in groups for weight in group["params"]]
        require_room(self.part.folder, sum(tensor.numel() * tensor.element_size() for tensor in tensors))

    def mixes(self, start: int) -> bool:
        """Whether what follows is another result than the recipe's alone: no mere addition of steps at a constant rate.

        A training that ends is evaluated once more than a longer one, unless it ends at an evaluation; what the guard
        over an adversarial loss decides may depend on it.
        """
        section = self.engine.section
        longer = all(
            line.startswith((f"{self.part.name}.steps:", f"{self.part.name}.epochs:")) for line in self.changed
        )
        return bool(self.changed) and not (
            longer and section.lr_schedule == "constant" and start % section.eval_every == 0
        )

    def is_better(self, evaluated: Metrics) -> bool:
        """Whether the held-out loss is lower than that of every checkpoint so far."""
        loss = _held_out_loss(evaluated)
        return loss is not None and (self.best is None or loss < self.best)

    def save(self, step: int, *, seconds: float, evaluated: Metrics) -> None:
        """Begins to write a checkpoint, in the first process; `evaluated` are the metrics of this very step."""
        self.join()
        loss = _held_out_loss(evaluated)
        if self.is_better(evaluated):
            self.best = loss
        if not self.engine.processes.is_main_process:
            return
        task, scaler, optimizers = self.task, self.engine.scaler, self.engine.optimizers
        tensors: dict[str, Tensors] = {name: copied(module.state_dict()) for name, module in task.modules.items()}
        tensors |= {f"optimizer_{name}": copied(flatten_optimizer(each)) for name, each in optimizers.items()}
        tensors |= {name: copied(average.module.state_dict()) for name, average in task.emas.items()}
        state = {
            **self.engine.environment(),
            "seconds": seconds,
            "fingerprint": self.part.fingerprint,
            "inputs": self.part.inputs,
            "history": self.part.history,
            "num_samples": self.engine.num_samples,
            "num_averaged": {name: int(average.n_averaged) for name, average in task.emas.items()},
            "memory": deepcopy(task.memory),
            "scaler": scaler.state_dict() if scaler is not None else None,
            "held_out": loss,
            "best": self.best,
        }
        log = os.open(self.part.folder / "metrics.jsonl", os.O_RDWR | os.O_CREAT)
        # A daemon: a second Ctrl-C does not wait for the end of a save.
        self._thread = threading.Thread(
            target=self._write, args=(log, step, tensors, state), name="checkpoint", daemon=True
        )
        self._thread.start()

    def check(self) -> None:
        """Raises what went wrong with the last save, LdmkitError for a full disk."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def join(self) -> None:
        """Waits for the last save, in every process. Raises what went wrong with it."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()
        self.engine.processes.wait_for_everyone()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_error: object) -> None:
        if kind is None:
            self.join()
        elif self._thread is not None:
            # The error that ends the stage is shown, and not what else went wrong.
            self._thread.join(None if issubclass(kind, Exception) else _PATIENCE)

    def _write(self, log: int, step: int, tensors: Mapping[str, Tensors], state: Mapping[str, Any]) -> None:
        try:
            os.fsync(log)  # so that the log reaches up to the checkpoint whatever happens
            save_checkpoint(self.folder, step, tensors, state, keep=self._keep)
        except Exception as error:
            self._error = error
        finally:
            os.close(log)


def _held_out_loss(evaluated: Metrics) -> float | None:
    """What `keep_best` goes by: of the first average, where there is one."""
    return next((evaluated[key] for key in CURVES if key in evaluated), None)
