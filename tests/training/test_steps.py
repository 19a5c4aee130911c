"""One optimizer step at a time: what a scaler skips, what a batch in parts adds up to, what is printed."""

import json
import math
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ldmkit.caches.sets import LatentSet
from ldmkit.denoising.conditioning import NoText
from ldmkit.denoising.task import DenoisingTask
from ldmkit.diffusion.process import make_schedule
from ldmkit.errors import LdmkitError
from ldmkit.models.build import build_unet
from ldmkit.report import Reporter
from ldmkit.run.networks import fresh_autoencoder, load_autoencoder
from ldmkit.run.workspace import Workspace
from ldmkit.training import clock
from ldmkit.training.ema import emas_of
from ldmkit.training.engine import Engine
from ldmkit.training.loop import train, update
from ldmkit.vae.train import VaeTask


class Lines(Reporter):
    """Keeps the lines."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.lines: list[str] = []

    def line(self, text: str) -> None:
        self.lines.append(text)


def stage(workshop: Any, part: str, *overrides: str) -> tuple[Workspace, Engine]:
    pipeline = workshop.pipeline(*overrides)
    workspace = Workspace(
        pipeline.recipe, pipeline.registry, pipeline.index, pipeline.run_dir, pipeline.parts(), Lines()
    )
    return workspace, Engine(part, getattr(pipeline.recipe, part), num_samples=16, seed=0)


class Scripted:
    """One weight, whose gradient is what the script says for each step."""

    def __init__(self, engine: Engine, gradients: list[float]) -> None:
        self.engine, self.gradients = engine, gradients
        network = torch.nn.Linear(1, 1, bias=False)
        self.emas = emas_of(network, (0.9, 0.5), engine.device)
        self.weight = network.weight
        self.modules: dict[str, torch.nn.Module] = {"model": engine.add("model", network)}
        self.memory: dict[str, Any] = {}
        self.held_out: list[float] = []

    def train_step(self, step: int) -> dict[str, torch.Tensor]:
        weight = self.weight.sum()
        # The derivative of a square root at 0 is not finite, though its value is.
        loss = torch.sqrt(weight * 0) if math.isnan(self.gradients[step]) else weight * self.gradients[step]
        self.engine.check_finite(loss, lambda: ["a.png"])
        self.engine.backward(loss)
        norm = self.engine.step("model", lambda: ["a.png", "b.png"])
        return {"loss": torch.tensor(1.0 / (step + 1)), "grad_norm": norm}

    def evaluate(self) -> dict[str, float]:
        return {"held_out_loss": self.held_out.pop(0)}

    def review(self, step: int, metrics: dict[str, float]) -> list[str]:
        return []

    def draw(self, step: int) -> dict[str, torch.Tensor]:
        return {}

    def state(self) -> list[float]:
        weights = [self.modules["model"], *(average.module for average in self.emas.values())]
        counts = [float(average.n_averaged) for average in self.emas.values()]
        return [next(each.parameters()).item() for each in weights] + counts


@pytest.fixture
def fp16(workshop: Any) -> Engine:
    """The scaler that fp16 has on a GPU, with networks in fp32 on a CPU."""
    _, engine = stage(workshop, "unet", "unet.precision='fp32'", "unet.warmup_steps=4", "unet.grad_accumulation=1")
    engine.scaler = torch.amp.GradScaler("cpu")
    return engine


def test_step_that_the_scaler_skips(fp16: Engine) -> None:
    task = Scripted(fp16, [1.0, 1e36, 1.0])  # times the scale of 65536 the second one overflows
    assert fp16.scaler is not None
    rates = []
    before = task.state()
    for step, moves in enumerate((True, False, True)):
        numbers = fp16.means(update(fp16, task, step))
        rates.append(fp16.optimizers["model"].param_groups[0]["lr"])
        (state,) = fp16.optimizers["model"].state.values()
        after = task.state()
        assert all((new != old) == moves for new, old in zip(after, before, strict=True))  # neither EMA nor its count
        assert int(state["step"]) == (1, 1, 2)[step]  # Adam's bias correction
        assert numbers["fp16_scale"] == (65536, 32768, 32768)[step]
        assert numbers.get("grad_norm") == (pytest.approx(1.0) if moves else None)  # unscaled
        before = after
    peak = fp16.section.learning_rate
    assert rates == pytest.approx([peak * k / 4 for k in (1, 2, 3)])  # the clock is that of the run


def test_no_scale_helps(fp16: Engine) -> None:
    task = Scripted(fp16, [math.nan] * 4)
    assert fp16.scaler is not None
    before = task.state()
    fp16.scaler.load_state_dict(fp16.scaler.state_dict() | {"scale": 4.0})
    for step in range(3):  # with a scale of 4, 2 and 1
        update(fp16, task, step)
    with pytest.raises(LdmkitError, match=r"unet: the gradient is nan; nothing was changed .* a\.png, b\.png"):
        update(fp16, task, 3)
    assert task.state() == before


def test_finite_check_names_the_one(workshop: Any) -> None:
    """Before a weight changes, and once; names are read only where they are needed."""
    _, engine = stage(workshop, "vae", "vae.losses.gan.start_step=100")
    weight = torch.nn.Parameter(torch.ones(1))
    engine.add("model", torch.nn.ParameterList([weight]))

    def step(gradient: float) -> float:
        weight.grad = torch.tensor([gradient])
        return engine.step("model", lambda: ["c.png"]).item()

    def never() -> list[str]:
        raise AssertionError("reading names takes time")

    engine.check_finite(torch.tensor(1.0), never)
    assert step(2.0) == 2.0
    before = weight.item()
    engine.check_finite(torch.tensor(1.0, dtype=torch.bfloat16), never)
    engine.check_finite(torch.tensor(-math.inf), lambda: [f"{i}.png" for i in range(20)], what="loss of gan")
    with pytest.raises(LdmkitError, match=r"vae: the loss of gan is -inf; .*: 0\.png, .* 15\.png and 4 more\."):
        step(math.nan)
    with pytest.raises(LdmkitError, match=r"vae: the gradient is nan; .*: c\.png\."):
        step(math.nan)
    assert weight.item() == before


class Reads(TorchDispatchMode):
    """Counts what makes the CPU wait for a GPU: a number read out of a tensor."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def unet_task(trained: Any, *overrides: str) -> tuple[Engine, DenoisingTask]:
    workspace, engine = stage(trained, "unet", "unet.precision='fp32'", "unet.dropout=0.0", *overrides)
    train, held_out = workspace.split()
    latents = LatentSet(workspace.folder("latents"), workspace.recipe.latents, workspace.recipe.seed)
    torch.manual_seed(0)
    network = build_unet(workspace.recipe, workspace.recipe.vae.latent_channels)
    schedule = make_schedule(**workspace.recipe.diffusion.schedule_options())
    autoencoder = load_autoencoder(workspace.recipe, workspace.folder("vae"))
    return engine, DenoisingTask(
        workspace, engine, network, NoText(), latents, train, held_out, schedule=schedule, autoencoder=autoencoder
    )


def vae_task(trained: Any, *overrides: str) -> tuple[Engine, VaeTask]:
    workspace, engine = stage(trained, "vae", "vae.dropout=0.0", "vae.losses.gan.start_step=100", *overrides)
    torch.manual_seed(0)
    return engine, VaeTask(workspace, engine, fresh_autoencoder(workspace.recipe), *workspace.split())


def test_a_step_asks_the_device_once(trained: Any) -> None:
    """`tolist` of all losses and the norm, which the count leaves out; the averages' counts are in main memory."""
    engine, task = unet_task(trained, "unet.grad_accumulation=3")
    with Reads() as reads:
        update(engine, task, 0)
    assert reads.count == len(task.emas) == 2


@pytest.mark.parametrize("parts", [2, 6])
@pytest.mark.parametrize("make", [unet_task, vae_task])
def test_gradient_of_the_parts_is_that_of_the_batch(make: Any, parts: int, trained: Any) -> None:
    found = []
    for count in (1, parts):
        engine, task = make(trained, *(f"{part}.grad_accumulation={count}" for part in ("unet", "vae")))
        kept: list[torch.Tensor] = []

        def keep(name: str, _names: Any, kept: Any = kept, modules: Any = task.modules) -> torch.Tensor:
            kept += [parameter.grad for parameter in modules[name].parameters()]
            return torch.zeros(())

        engine.step = keep
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
    measured = clock.Clock(100.0)
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


def test_what_a_stage_prints(workshop: Any, stopwatch: Any) -> None:
    """What was chosen at the start, overfitting at the same step whether resumed or not, the waiting at the end."""
    overrides = ("unet.steps=7", "unet.eval_every=1", "unet.checkpoint_every=3", "unet.log_every=1")
    printed = []
    for stops in ((), (4,)):
        rows: list[Any] = []
        for stop in (*stops, None):
            workspace, engine = stage(workshop, "unet", *overrides, "unet.precision='fp32'", f"name='run{len(stops)}'")
            task = Scripted(engine, [0.1] * 7)
            begun = 3 if stops and stop is None else 0  # the last checkpoint before the stop
            task.held_out = [1.0, 0.5, 0.6, 0.6, 0.6, 0.6, 0.6][begun:]
            steps = task.train_step

            def train_step(step: int, engine: Any = engine, stop: Any = stop, steps: Any = steps) -> Any:
                if step == stop:
                    raise KeyError("stopped")
                with engine.clock.waiting():
                    stopwatch.now += 1.0
                stopwatch.now += 9.0
                return steps(step)

            task.train_step = train_step  # type: ignore[method-assign]
            workspace.folder("unet").mkdir(parents=True, exist_ok=True)
            if stop is None:
                train(workspace, engine, task)
            else:
                with pytest.raises(KeyError):
                    train(workspace, engine, task)
            rows += workspace.reporter.lines
        logged = [json.loads(line) for line in (workspace.folder("unet") / "metrics.jsonl").read_text().splitlines()]
        assert [row["loader_wait"] for row in logged] == [pytest.approx(0.1)] * 7
        printed.append(rows)
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
    assert printed[0] == [start, *overfitting, waited]
    assert printed[1] == [start, start, "unet: going on from step 3 of 7", *overfitting, waited]
