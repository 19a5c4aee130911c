"""One optimizer step at a time: what a scaler skips, what a batch in parts adds up to, what is told on the way."""

import json
import math
from collections.abc import Iterator
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ldmkit.caches.sets import LatentSet
from ldmkit.denoising.task import DenoisingTask
from ldmkit.errors import LdmkitError
from ldmkit.models.build import build_unet
from ldmkit.report import Reporter
from ldmkit.run.workspace import Workspace
from ldmkit.training import clock
from ldmkit.training.ema import emas_of
from ldmkit.training.finite import FiniteCheck
from ldmkit.training.loop import Trainer
from ldmkit.vae.train import VaeTask


class Lines(Reporter):
    """Keeps what it is told."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.lines: list[str] = []

    def line(self, text: str) -> None:
        self.lines.append(text)


def stage(workshop: Any, part: str, *overrides: str) -> tuple[Workspace, Trainer]:
    pipeline = workshop.pipeline(*overrides)
    workspace = Workspace(
        pipeline.recipe, pipeline.registry, pipeline.index, pipeline.run_dir, pipeline.parts(), Lines()
    )
    return workspace, Trainer(workspace, workspace.parts[part], getattr(pipeline.recipe, part), num_samples=16, seed=0)


class Scripted:
    """One weight, whose gradient is what the script says for each step."""

    def __init__(self, trainer: Trainer, gradients: list[float]) -> None:
        self.trainer, self.gradients = trainer, gradients
        network = torch.nn.Linear(1, 1, bias=False)
        self.emas = emas_of(network, (0.9, 0.5), trainer.device)
        self.model, self.optimizer = trainer.accelerator.prepare(
            network, trainer.optimizer(network.parameters(), trainer.section.learning_rate)
        )
        self.modules: dict[str, torch.nn.Module] = {"model": network}
        self.optimizers: dict[str, torch.optim.Optimizer] = {"model": self.optimizer}
        self.learning_rates = {"model": trainer.section.learning_rate}
        self.memory: dict[str, Any] = {}
        self.held_out: list[float] = []

    def train_step(self, step: int) -> dict[str, torch.Tensor]:
        weight = self.model.weight.sum()
        # The derivative of a square root at 0 is not finite, though its value is.
        loss = torch.sqrt(weight * 0) if math.isnan(self.gradients[step]) else weight * self.gradients[step]
        self.trainer.check_finite(loss, lambda: ["a.png"])
        self.trainer.backward(loss)
        norm = self.trainer.step_optimizer(self.optimizer, self.model.parameters(), lambda: ["a.png", "b.png"])
        return {"loss": torch.tensor(1.0 / (step + 1)), "grad_norm": norm}

    def evaluate(self) -> dict[str, float]:
        return {"held_out_loss": self.held_out.pop(0)}

    def judge(self, step: int, metrics: dict[str, float]) -> list[str]:
        return []

    def draw(self, step: int) -> dict[str, torch.Tensor]:
        return {}

    def state(self) -> list[float]:
        weights = [self.modules["model"], *(average.module for average in self.emas.values())]
        counts = [float(average.n_averaged) for average in self.emas.values()]
        return [next(each.parameters()).item() for each in weights] + counts


@pytest.fixture
def fp16(workshop: Any) -> Trainer:
    """accelerate's fp16 with torch's scaler for CPUs; accelerate itself makes neither without a GPU."""
    _, trainer = stage(workshop, "unet", "unet.precision='fp32'", "unet.warmup_steps=4", "unet.grad_accumulation=1")
    trainer.accelerator.native_amp = True
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu")
    trainer.accelerator.state._mixed_precision = "fp16"
    return trainer


def test_step_that_the_scaler_skips(fp16: Trainer) -> None:
    task = Scripted(fp16, [1.0, 1e36, 1.0])  # times the scale of 65536 the second one overflows
    assert fp16.accelerator.scaler is not None
    rates = []
    before = task.state()
    for step, moves in enumerate((True, False, True)):
        numbers = fp16._numbers(fp16._step(task, step))
        rates.append(task.optimizer.param_groups[0]["lr"])
        (state,) = task.optimizer.state.values()
        after = task.state()
        assert all((new != old) == moves for new, old in zip(after, before, strict=True))  # neither EMA nor its count
        assert int(state["step"]) == (1, 1, 2)[step]  # Adam's bias correction
        assert numbers["fp16_scale"] == (65536, 32768, 32768)[step]
        assert numbers.get("grad_norm") == (pytest.approx(1.0) if moves else None)  # unscaled
        before = after
    peak = fp16.section.learning_rate
    assert rates == pytest.approx([peak * k / 4 for k in (1, 2, 3)])  # the clock is that of the run


def test_no_scale_helps(fp16: Trainer) -> None:
    task = Scripted(fp16, [math.nan] * 4)
    assert fp16.accelerator.scaler is not None
    before = task.state()
    fp16.accelerator.scaler.load_state_dict(fp16.accelerator.scaler.state_dict() | {"scale": 4.0})
    for step in range(3):  # with a scale of 4, 2 and 1
        fp16._step(task, step)
    with pytest.raises(LdmkitError, match=r"unet: the gradient is nan; nothing was changed .* a\.png, b\.png"):
        fp16._step(task, 3)
    assert task.state() == before


def test_finite_check_names_the_one() -> None:
    check = FiniteCheck("vae")

    def never() -> list[str]:
        raise AssertionError("reading names takes time")

    check.add(torch.tensor(1.0), never, "loss")
    assert check.settle(torch.tensor(2.0)) == 2.0
    check.add(torch.tensor(1.0, dtype=torch.bfloat16), never, "loss")
    check.add(torch.tensor(-math.inf), lambda: [f"{i}.png" for i in range(20)], "loss of gan")
    with pytest.raises(LdmkitError, match=r"vae: the loss of gan is -inf; .*: 0\.png, .* 15\.png and 4 more\."):
        check.settle(torch.tensor(math.nan))
    assert math.isnan(check.settle(torch.tensor(math.nan)))  # what was told is not told again


class Reads(TorchDispatchMode):
    """Counts what makes the CPU wait for a GPU: a number read out of a tensor."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def unet_task(trained: Any, *overrides: str) -> tuple[Trainer, DenoisingTask]:
    workspace, trainer = stage(trained, "unet", "unet.precision='fp32'", "unet.dropout=0.0", *overrides)
    train, held_out = workspace.split()
    latents = LatentSet(workspace.folder("latents"), workspace.recipe.latents, workspace.recipe.seed)
    torch.manual_seed(0)
    network = build_unet(workspace.recipe)
    return trainer, DenoisingTask(workspace, trainer, workspace.recipe.unet, network, latents, train, held_out)


def vae_task(trained: Any, *overrides: str) -> tuple[Trainer, VaeTask]:
    workspace, trainer = stage(trained, "vae", "vae.dropout=0.0", "vae.losses.gan.start_step=100", *overrides)
    torch.manual_seed(0)
    return trainer, VaeTask(workspace, trainer, *workspace.split())


def test_a_step_asks_the_device_once(trained: Any) -> None:
    """`tolist` of all losses and the norm, which the count leaves out; the averages' counts are in main memory."""
    trainer, task = unet_task(trained, "unet.grad_accumulation=3")
    with Reads() as reads:
        trainer._step(task, 0)
    assert reads.count == len(task.emas) == 2


@pytest.mark.parametrize("parts", [2, 6])
@pytest.mark.parametrize("make", [unet_task, vae_task])
def test_gradient_of_the_parts_is_that_of_the_batch(make: Any, parts: int, trained: Any) -> None:
    found = []
    for count in (1, parts):
        trainer, task = make(trained, *(f"{part}.grad_accumulation={count}" for part in ("unet", "vae")))
        kept: list[torch.Tensor] = []

        def keep(_optimizer: Any, parameters: Iterator[torch.Tensor], _names: Any, kept: Any = kept) -> torch.Tensor:
            kept += [parameter.grad for parameter in parameters]
            return torch.zeros(())

        trainer.step_optimizer = keep
        scalars = task.train_step(0)
        found.append((kept, float(scalars["loss"])))
    (whole, loss), (split, other) = found
    assert other == pytest.approx(loss, rel=1e-5)
    largest = max(float(gradient.abs().max()) for gradient in whole)
    assert largest > 1e-3
    for one, two in zip(whole, split, strict=True):
        torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-5 * largest)


@pytest.fixture
def stopwatch(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The clock's time, which only the test moves."""
    watch = SimpleNamespace(now=0.0)
    monkeypatch.setattr(clock, "time", SimpleNamespace(monotonic=lambda: watch.now))
    return watch


def test_waiting(stopwatch: Any) -> None:
    measured = clock.Clock()
    measured.start(100.0)
    for wait, work in ((1.0, 3.0), (0.0, 6.0)):
        with measured.waiting():
            stopwatch.now += wait
        stopwatch.now += work
    assert measured.seconds() == 110.0
    assert measured.share() == pytest.approx(0.1)
    assert measured.share_since_mark() == pytest.approx(0.1)
    with suppress(ValueError), measured.waiting():
        stopwatch.now += 3.0
        raise ValueError("unreadable")
    stopwatch.now += 1.0
    assert measured.share_since_mark() == pytest.approx(0.75)


def test_what_a_stage_tells(workshop: Any, stopwatch: Any) -> None:
    """The facts at the start, overfitting at the same step whether resumed or not, the waiting at the end."""
    overrides = ("unet.steps=7", "unet.eval_every=1", "unet.checkpoint_every=3", "unet.log_every=1")
    told = []
    for stops in ((), (4,)):
        rows: list[Any] = []
        for stop in (*stops, None):
            workspace, trainer = stage(workshop, "unet", *overrides, "unet.precision='fp32'", f"name='run{len(stops)}'")
            task = Scripted(trainer, [0.1] * 7)
            begun = 3 if stops and stop is None else 0  # the last checkpoint before the stop
            task.held_out = [1.0, 0.5, 0.6, 0.6, 0.6, 0.6, 0.6][begun:]
            steps = task.train_step

            def train_step(step: int, trainer: Any = trainer, stop: Any = stop, steps: Any = steps) -> Any:
                if step == stop:
                    raise KeyError("stopped")
                with trainer.waiting():
                    stopwatch.now += 1.0
                stopwatch.now += 9.0
                return steps(step)

            task.train_step = train_step  # type: ignore[method-assign]
            workspace.folder("unet").mkdir(parents=True, exist_ok=True)
            if stop is None:
                trainer.fit(task)
            else:
                with pytest.raises(KeyError):
                    trainer.fit(task)
            rows += workspace.reporter.lines
        logged = [json.loads(line) for line in (workspace.folder("unet") / "metrics.jsonl").read_text().splitlines()]
        assert [row["loader_wait"] for row in logged] == [pytest.approx(0.1)] * 7
        told.append(rows)
    threads = torch.get_num_threads()
    start = (
        f"unet: cpu, fp32, {threads} thread{'s' * (threads != 1)}, contiguous, fused AdamW, not compiled, "
        "1 parameters, batch 6 (1 process x 2 parts of 3), 7 steps"
    )
    overfitting = [
        "unet: step 5: overfitting: the held-out loss was at its best at step 2 and has risen since, 0.5 -> 0.6 (of "
        "the raw weights), while the training loss fell, 0.5 -> 0.2611; more pictures, a higher unet.dropout, a "
        "smaller network or unet.steps = 2 help"
    ]
    waited = (
        "unet: 10% of the time went into waiting for data: the cached latents are read slowly; keep the run on a "
        "faster disk"
    )
    assert told[0] == [start, *overfitting, waited]
    assert told[1] == [start, start, "unet: going on from step 3 of 7", *overfitting, waited]
