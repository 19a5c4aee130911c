"""The training loop against formulas, torch's schedulers, and losses that go wrong on purpose."""

import hashlib
import json
import math
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from ldmkit.errors import LdmkitError
from ldmkit.recipe.training import Training
from ldmkit.run.lock import locked
from ldmkit.training.ema import Ema, emas_of
from ldmkit.training.engine import Engine, learning_rate

# Losses that fail on their fifth call, and a hook that writes down its calls.
PLUGIN = '''
import json
import os
import signal
from ldmkit import hookimpl

class Failing:
    """Turns bad at its fifth call."""
    def __init__(self, *, how: str = "nan"):
        self.how, self.calls = how, 0

    def __call__(self, reconstruction):
        import torch
        self.calls += reconstruction.output.requires_grad  # an evaluation does not count
        value = reconstruction.output.mean() * 0
        if self.calls < 5:
            return value
        if self.how == "nan":
            return value + float("nan")
        if self.how == "gradient":  # finite, but not its derivative
            return torch.sqrt(reconstruction.output.abs().sum() * 0)
        if self.how == "memory":
            raise torch.OutOfMemoryError("CUDA out of memory")
        if self.how.startswith("compiler"):
            from torch._dynamo.exc import TorchDynamoException
            if self.how == "compiler, Ctrl-C":
                os.kill(os.getpid(), signal.SIGINT)
            raise TorchDynamoException("no compiler\\nat line 1")
        if self.how == "host memory":
            return value + torch.empty(2**60)
        raise RuntimeError("a bug")

@hookimpl
def register_losses():
    return {"failing": Failing}

@hookimpl
def log_metrics(run_dir, stage, step, metrics):
    with open("hook.jsonl", "a") as file:
        file.write(json.dumps([str(run_dir), stage, step, dict(metrics)]) + "\\n")
'''


def rows(part: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (part / "metrics.jsonl").read_text().splitlines()]


def hashes(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


@pytest.fixture
def again(trained: Any, processes: Any, tmp_path: Path) -> Any:
    """again(folder name, stage, overrides...): the stage with another recipe in a copy of the trained workshop."""

    def run(name: str, stage: str, *overrides: str) -> Path:
        shutil.copytree(trained.folder, tmp_path / name)
        settings = [argument for override in overrides for argument in ("--set", override)]
        code, output = processes.run(tmp_path / name, (stage, "tiny.toml", *settings, "--again"))
        assert code == 0, output
        return tmp_path / name / "runs" / "tiny" / {"train-vae": "vae", "train-unet": "unet", "train-t2i": "t2i"}[stage]

    return run


def engine(workshop: Any, part: str = "unet", **changes: Any) -> Engine:
    section = getattr(workshop.pipeline().recipe, part).model_copy(update=changes)
    return Engine(part, section, num_samples=16, seed=0)


@pytest.mark.parametrize("warmup", [0, 1, 5])
@pytest.mark.parametrize("name", ["constant", "cosine"])
def test_learning_rate_is_that_of_torchs_schedulers(name: str, warmup: int) -> None:
    num_steps, peak = 20, 0.3
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    schedules: list[Any] = []
    if warmup:
        schedules.append(torch.optim.lr_scheduler.LinearLR(optimizer, 1 / warmup, total_iters=max(1, warmup - 1)))
    if name == "cosine":
        schedules.append(torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=num_steps - warmup))
    else:
        schedules.append(torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0))
    expected = []
    for i in range(num_steps):
        expected.append(schedules[int(i >= warmup) if warmup else 0].get_last_lr()[0])
        optimizer.step()
        schedules[int(i >= warmup) if warmup else 0].step()
        if i == warmup - 1:
            optimizer.param_groups[0]["lr"] = peak
            schedules[1]._last_lr = [peak]
    section = Training(steps=num_steps, learning_rate=peak, lr_schedule=name, warmup_steps=warmup)
    found = [learning_rate(section, step, num_steps, peak) for step in range(num_steps)]
    assert found == pytest.approx(expected)
    assert max(found) == peak
    assert found[0] == pytest.approx(peak / max(1, warmup))


def test_learning_rate_reaches_the_optimizers(trained: Any) -> None:
    rates = [row["learning_rate"] for row in rows(trained.run / "vae")]
    cosine = [1e-2 * 0.5 * (1 + math.cos(math.pi * i / 6)) for i in range(6)]
    assert rates == pytest.approx([5e-3, 1e-2, *cosine])


def test_averages_are_the_recurrence() -> None:
    """Both decays at once, in closed form: each weight counts by its own share times all that was kept after it."""
    model = torch.nn.BatchNorm1d(3)  # it has buffers
    averages = emas_of(model, (0.9, 0.2), torch.device("cpu"))
    assert list(averages) == ["ema", "ema_0.2"]
    assert all(isinstance(average, Ema) for average in averages.values())
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((60, 3))
    for n in range(60):
        with torch.no_grad():
            model.weight.copy_(torch.from_numpy(weights[n]))
            model.running_mean.fill_(n)
        for average in averages.values():
            average.update_parameters(model)
        for decay, average in zip((0.9, 0.2), averages.values(), strict=True):
            # n updates came before: the first is taken whole, then (1 + n) / (10 + n) up to the decay.
            kept = np.array([min(decay, (1 + i) / (10 + i)) if i else 0.0 for i in range(n + 1)])
            shares = (1 - kept) * np.append(np.cumprod(kept[:0:-1])[::-1], 1.0)
            assert shares.sum() == pytest.approx(1)
            expected = shares @ weights[: n + 1]
            np.testing.assert_allclose(average.module.weight.detach().numpy(), expected, atol=1e-5)
            assert average.module.running_mean.tolist() == [n, n, n]
            assert int(average.n_averaged) == n + 1


def test_average_in_training_lags_behind(trained: Any) -> None:
    raw, average = (load_file(trained.run / "unet" / f"{name}.safetensors") for name in ("model", "ema"))
    assert raw.keys() == average.keys()
    assert any(not torch.equal(raw[key], average[key]) for key in raw)


@pytest.mark.parametrize(("stage", "parts"), [("train-vae", 3), ("train-t2i", 2), ("train-t2i", 6)])
def test_accumulated_gradient_is_the_whole_batchs(stage: str, parts: int, again: Any) -> None:
    section = {"train-vae": "vae", "train-t2i": "t2i"}[stage]
    # Dropout draws anew for each part, and the adaptive weight is each part's own.
    common = [f"{section}.dropout=0.0", "vae.losses.gan.start_step=100"] if section == "vae" else ["t2i.dropout=0.0"]
    whole = again("whole", stage, *common)
    split = again("split", stage, *common, f"{section}.grad_accumulation={parts}")
    for one, other in zip(rows(whole), rows(split), strict=True):
        for key in ("seconds", "loader_wait"):
            del one[key], other[key]
        assert other == pytest.approx(one, rel=1e-4)
    # Not the weights: where the true gradient is 0, as before a norm, Adam makes a whole step out of rounding.
    stale = whole.parent / "stale" / f"{section}-1" / "metrics.jsonl"
    assert rows(whole)[-1]["loss"] != rows(stale.parent)[-1]["loss"]  # the overrides did reach it


def test_batch_that_cannot_be_split(workshop: Any) -> None:
    message = r"unet: batch_size = 6 must be a multiple of the number of processes \(1\) times grad_accumulation \(4\)"
    with pytest.raises(LdmkitError, match=message):
        engine(workshop, grad_accumulation=4)


def test_random_numbers_of_a_step(workshop: Any) -> None:
    one, other = engine(workshop), engine(workshop)
    assert torch.equal(one.noise("noise", 3, (2, 8, 8)), other.noise("noise", 3, (2, 8, 8)))
    assert np.array_equal(one.uniform("flip", 3), other.uniform("flip", 3))
    different = [("noise", 4), ("posterior", 3)]
    assert not any(torch.equal(one.noise("noise", 3, (2,)), one.noise(*which, (2,))) for which in different)
    assert not torch.equal(one.noise("noise", 3, (2,)), engine(workshop, "t2i").noise("noise", 3, (2,)))
    assert [(part.start, part.stop, last) for part, last in one.micro_batches()] == [(0, 3, False), (3, 6, True)]
    assert np.array_equal(np.sort(np.concatenate([one.positions(step) for step in range(8)])), np.arange(48) // 3)


def test_poisoned_latent(trained: Any, exact: Any, processes: Any, tmp_path: Path) -> None:
    shutil.copytree(trained.folder, tmp_path, dirs_exist_ok=True)
    part = tmp_path / "runs" / "tiny" / "unet"
    shutil.rmtree(part)
    code, output = processes.run(
        tmp_path, ("train-unet", "tiny.toml"), strike=2, at="/unet/metrics.jsonl", signal=int(signal.SIGTERM)
    )
    assert code == 143, output
    before = hashes(part / "checkpoints")
    train, _ = trained.pipeline().index.split(0.2, 0)
    exact.poison(tmp_path / "runs" / "tiny" / "latents", train[5], np.inf)
    code, output = processes.run(tmp_path, ("train-unet", "tiny.toml"))
    assert code == 1, output
    assert "error: unet: the loss is nan; nothing was changed by this batch. Its pictures: " in output
    assert f"Its pictures: {train[5]:02d}.png. " in output  # the one among six
    assert "the last checkpoint is good" in output
    found = hashes(part / "checkpoints")
    assert {name: found[name] for name in before} == before
    assert not (part / "model.safetensors").exists()


@pytest.fixture
def failing(workshop: Any) -> Any:
    """The workshop with the plugin of this test in its recipe."""
    (workshop.folder / "failing.py").write_text(PLUGIN)
    recipe = workshop.folder / "tiny.toml"
    loss = '[vae.losses.failing]\nuse = "failing"\n'
    text = recipe.read_text().replace("start_step = 4", "start_step = 100")
    recipe.write_text('plugins = ["./failing.py"]\n' + text + loss)
    return workshop


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("nan", r"vae: the loss is nan; nothing was changed by this batch\. Its pictures: \d\d\.png, "),
        ("gradient", r"vae: the gradient is nan; nothing was changed by this batch\. Its pictures: \d\d\.png, "),
        *[
            (
                how,
                r"vae: out of memory with batch_size = 6 and pictures of 16x16 pixels; --set vae\.grad_accumulation=2 "
                r"computes the same update in smaller parts and goes on from the last checkpoint, which is good",
            )
            for how in ("memory", "host memory")
        ],
        ("compiler", r"vae: torch\.compile failed \(no compiler\); --set vae\.compile=off goes on without it"),
    ],
)
def test_step_that_fails(how: str, message: str, failing: Any, processes: Any) -> None:
    options = ["--set", f"vae.losses.failing.how='{how}'", "--set", "vae.checkpoint_every=1"]
    code, output = processes.run(failing.folder, ("train-vae", "tiny.toml", *options))
    assert code == 1, output
    assert re.search("error: " + message, output), output
    assert len(rows(failing.run / "vae")) == 4
    checkpoints = sorted(path.name for path in (failing.run / "vae" / "checkpoints").iterdir())
    assert checkpoints == ["step_00000003", "step_00000004"]
    tensors = load_file(failing.run / "vae" / "checkpoints" / "step_00000004" / "model.safetensors")
    assert all(bool(torch.isfinite(value).all()) for value in tensors.values())
    assert "Traceback" not in output
    if how == "memory":  # the advice, word for word
        advice = re.search(r"--set (\S+)", output)
        assert advice is not None
        _, output = processes.run(failing.folder, ("train-vae", "tiny.toml", *options, "--set", advice[1]))
        assert "vae: going on from step 4 of 8 with vae.grad_accumulation: 1 -> 2" in output


def test_a_compiler_that_a_stop_took_with_it(failing: Any, processes: Any) -> None:
    """Ctrl-C in a terminal reaches the compiler that runs for the first step."""
    options = ["--set", "vae.losses.failing.how='compiler, Ctrl-C'", "--set", "vae.checkpoint_every=3"]
    code, output = processes.run(failing.folder, ("train-vae", "tiny.toml", *options))
    assert code == 130, output
    assert "vae: stopped at step 4; the same command goes on" in output
    checkpoints = sorted(path.name for path in (failing.run / "vae" / "checkpoints").iterdir())
    assert checkpoints == ["step_00000003", "step_00000004"]


def test_other_errors_keep_their_traceback(failing: Any, processes: Any) -> None:
    code, output = processes.run(failing.folder, ("train-vae", "tiny.toml", "--set", "vae.losses.failing.how='bug'"))
    assert code == 70
    assert "RuntimeError: a bug" in output
    assert "out of memory" not in output


def test_log_metrics_hook_and_tensorboard(failing: Any, processes: Any) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    # It fails at its fifth step and goes on from the third, then from the sixth: some steps are taken twice.
    for expected in (1, 1, 0):
        code, output = processes.run(failing.folder, ("train-vae", "tiny.toml"))
        assert code == expected, output
    part = failing.run / "vae"
    calls = [json.loads(line) for line in (failing.folder / "hook.jsonl").read_text().splitlines()]
    assert [step for _, _, step, _ in calls] == [1, 2, 3, 4, 4, 5, 6, 7, 7, 8]
    assert all((run, stage) == ("runs/tiny", "vae") for run, stage, _, _ in calls)
    written = rows(part)
    last = {step: {"step": step, **metrics} for _, _, step, metrics in calls}
    assert list(last.values()) == written

    events = EventAccumulator(str(part / "tensorboard"), size_guidance={"scalars": 0, "images": 0}).Reload()
    for key in ("loss", "l1", "kl", "grad_norm", "learning_rate", "held_out_loss", "held_out_psnr_ema_0.8"):
        expected = [(row["step"], row[key]) for row in written if key in row]
        found = [(event.step, event.value) for event in events.Scalars(f"vae/{key}")]
        assert [step for step, _ in found] == [step for step, _ in expected]
        assert [value for _, value in found] == pytest.approx([value for _, value in expected], rel=1e-6)
    (image,) = events.Images("vae/original_raw_ema_ema_0.8")
    assert (image.step, image.height, image.width) == (8, 4 * 16 + 5 * 2, 2 * 16 + 3 * 2)  # two are held out
    with Image.open(part / "samples" / "step_000008_original_raw_ema_ema_0.8.png") as grid:
        assert grid.size == (image.width, image.height)
    with Image.open(part / "loss.png") as plot:
        assert plot.width > 300


@pytest.mark.parametrize(("start", "first"), [("vae.losses.gan.start_step=4", 5), ("vae.losses.gan.start_epoch=1", 4)])
def test_adversarial_term_starts_late(start: str, first: int, again: Any) -> None:
    """18 pictures in batches of 6: the second epoch begins with the fourth step."""
    overrides = [] if "step" in start else ["vae.losses.gan.start_step=0"]
    part = again("gan", "train-vae", start, *overrides, "vae.checkpoint_every=1", "vae.keep_checkpoints=9")
    for row in rows(part):
        gan = {key for key in row if key.startswith("gan")}
        parts = ("", "_weight", "_adaptive_weight", "_discriminator", "_logits_real", "_logits_fake")
        assert gan == ({f"gan{part}" for part in parts} if row["step"] >= first else set())
        if gan:
            assert 0 <= row["gan_adaptive_weight"] <= 1
            total = row["l1"] + 1e-4 * row["kl"] + 0.1 * row["gan_adaptive_weight"] * row["gan"]
            assert row["loss"] == pytest.approx(total, rel=1e-5)
    weights = []
    for step in range(1, 9):
        checkpoint = part / "checkpoints" / f"step_{step:08d}"
        weights.append((checkpoint / "discriminator_gan.safetensors").read_bytes())
        optimizer = load_file(checkpoint / "optimizer_discriminator_gan.safetensors")
        assert {int(value) for key, value in optimizer.items() if key.endswith("step")} == (
            {step - first + 1} if step >= first else set()
        )
    assert len(set(weights[: first - 1])) == 1
    assert len(set(weights)) == 8 - first + 2
    assert (part / "discriminator_gan.safetensors").read_bytes() == weights[-1]


def test_nothing_held_out_and_no_average(again: Any) -> None:
    part = again("bare", "train-vae", "data.held_out=0.0", "vae.ema_decays=[]")
    assert not any("held_out" in key for row in rows(part) for key in row)
    assert not (part / "ema.safetensors").exists()
    assert (part / "samples" / "step_000008_original_raw.png").is_file()


def test_second_process_on_a_run(trained: Any, processes: Any, tmp_path: Path) -> None:
    shutil.copytree(trained.folder, tmp_path, dirs_exist_ok=True)
    before = hashes(tmp_path / "runs")
    with locked(tmp_path / "runs" / "tiny"):
        code, output = processes.run(tmp_path, ("train-vae", "tiny.toml", "--again"))
    assert code == 1
    assert output == f"error: runs/tiny: in use by process {os.getpid()}; wait until it is done, or end it\n"
    before["tiny/.lock"] = hashlib.sha256(str(os.getpid()).encode()).hexdigest()
    assert hashes(tmp_path / "runs") == before
