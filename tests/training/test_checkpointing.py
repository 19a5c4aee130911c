"""Checkpoints written beside training: what a step waits for, what it raises, and whose checkpoint is refused."""

import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ldmkit.errors import LdmkitError
from ldmkit.recipe.training import UNetTraining
from ldmkit.run.checkpoint import load_newest
from ldmkit.run.folder import Part
from ldmkit.training import checkpointing, device
from ldmkit.training.checkpointing import Checkpoints
from ldmkit.training.engine import Engine

INPUTS = {"latents": "a" * 64, "unet": {"steps": 8, "channels": [4, 8]}, "diffusion": {"schedule": "flow"}}


def checkpoints(folder: Path, inputs: Any = INPUTS, **section: Any) -> Checkpoints:
    """Of a network of two weights."""
    model = torch.nn.Linear(1, 1)
    engine = Engine("unet", UNetTraining(steps=8, precision="fp32", **section), num_samples=32, seed=0)
    engine.add("model", model)
    task: Any = SimpleNamespace(modules={"model": model}, emas={}, memory={"a": [1]})
    part = Part(folder, "unet", inputs, goes_on=UNetTraining.goes_on_keys())
    part.folder.mkdir(exist_ok=True)
    return Checkpoints(part, engine, task)


def save_and_raise(saved: Checkpoints, error: BaseException) -> None:
    """A stage that ends with this error right after it began to save."""
    with saved:
        saved.save(1, seconds=0.0, evaluated={})
        raise error


class Disk:
    """Stands before the real saving: lets nothing through until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open = threading.Event()
        self.error: Exception | None = None
        self.busy = self.most = 0
        real = checkpointing.save_checkpoint

        def slow(*arguments: Any, **options: Any) -> Any:
            self.busy += 1
            self.most = max(self.most, self.busy)
            assert self.open.wait(60)
            self.busy -= 1
            if self.error is not None:
                raise self.error
            return real(*arguments, **options)

        monkeypatch.setattr(checkpointing, "save_checkpoint", slow)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    disk = Disk(monkeypatch)
    yield disk
    disk.open.set()


def test_a_step_waits_for_the_copy_alone(disk: Disk, tmp_path: Path) -> None:
    with checkpoints(tmp_path / "unet") as saved:
        weight = saved.task.modules["model"].weight
        before = weight.detach().clone()
        saved.save(1, seconds=0.0, evaluated={})  # returns although nothing can be written
        with torch.no_grad():
            weight += 1
        saved.task.memory["a"].append(2)
        saved.check()
        assert load_newest(saved.folder) is None
        disk.open.set()
    newest = load_newest(saved.folder)
    assert newest is not None
    assert torch.equal(newest[0]["model"]["weight"], before)
    assert newest[1]["memory"] == {"a": [1]}


def test_never_two_at_once(disk: Disk, tmp_path: Path) -> None:
    with checkpoints(tmp_path / "unet", keep_checkpoints=9) as saved:
        saved.save(1, seconds=0.0, evaluated={})
        second = threading.Thread(target=lambda: saved.save(2, seconds=0.0, evaluated={}))
        second.start()
        second.join(0.2)
        assert second.is_alive()  # until the first one is on the disk
        disk.open.set()
        second.join()
    assert disk.most == 1
    assert sorted(path.name for path in saved.folder.iterdir()) == ["step_00000001", "step_00000002"]


def test_what_goes_wrong_is_raised_at_the_next_step_and_once(disk: Disk, tmp_path: Path) -> None:
    disk.open.set()
    disk.error = LdmkitError("no room")
    with checkpoints(tmp_path / "unet") as saved:
        saved.save(1, seconds=0.0, evaluated={})
        assert saved._thread is not None
        saved._thread.join()
        with pytest.raises(LdmkitError, match="no room"):
            saved.check()
        saved.check()
    ending = checkpoints(tmp_path / "unet")
    with pytest.raises(LdmkitError, match="no room"), ending:
        ending.save(1, seconds=0.0, evaluated={})
    with pytest.raises(RuntimeError, match="a bug"):  # which is what the user must hear of
        save_and_raise(checkpoints(tmp_path / "unet"), RuntimeError("a bug"))


def test_an_error_waits_for_the_save_and_a_second_signal_does_not(
    disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpointing, "_PATIENCE", 0.01)
    saved = checkpoints(tmp_path / "unet")
    with pytest.raises(KeyboardInterrupt):
        save_and_raise(saved, KeyboardInterrupt())
    assert load_newest(saved.folder) is None
    disk.open.set()
    saved = checkpoints(tmp_path / "other")
    with pytest.raises(LdmkitError, match="the loss is nan"):
        save_and_raise(saved, LdmkitError("the loss is nan"))
    assert load_newest(saved.folder) is not None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"latents": "b" * 64}, "latents changed"),
        ({"unet": {"steps": 9, "channels": [4, 4]}}, r"unet.channels: \[4, 8\] -> \[4, 4\]; unet.steps: 8 -> 9"),
        ({"unet": {"steps": 8, "channels": [4, 4]}}, r"unet.channels: \[4, 8\] -> \[4, 4\]"),
        ({"diffusion": {"schedule": "cosine"}}, 'diffusion.schedule: "flow" -> "cosine"'),
        ({"text": "c" * 64}, "text changed"),
    ],
)
def test_another_recipes_checkpoint_is_refused(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    with checkpoints(tmp_path / "unet") as saved:
        saved.save(1, seconds=0.0, evaluated={})
    other = checkpoints(tmp_path / "unet", {**INPUTS, **change})
    before = other.task.modules["model"].weight.detach().clone()
    with pytest.raises(LdmkitError, match=rf"its newest checkpoint is another recipe's \({words}\).* --init-from"):
        other.resume()
    assert torch.equal(other.task.modules["model"].weight, before)
    same = checkpoints(tmp_path / "unet")
    assert same.resume()[0] == 1


def test_what_differs_on_another_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with checkpoints(tmp_path / "unet") as saved:
        saved.save(1, seconds=0.0, evaluated={})
    step, _, differences = saved.resume()
    assert (step, differences) == (1, [])
    newest = load_newest(saved.folder)
    assert newest is not None
    assert set(newest[1]) >= {"device", "precision", "deterministic", "threads", "world_size", "torch", "seconds"}
    monkeypatch.setattr(device, "_cpu", lambda: "another, AVX2")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 48)
    monkeypatch.setattr(torch, "__version__", "2.0.0")
    found = [line.partition(":")[0] for line in saved.resume()[2]]
    assert found == ["device", "threads", "torch"]


def test_best_of_the_held_out_losses(tmp_path: Path) -> None:
    """The average's where there is one; kept over restarts."""
    losses = [0.5, 0.3, 0.4, None, 0.35]
    for step, loss in enumerate(losses, 1):
        saved = checkpoints(tmp_path / "unet", keep_checkpoints=1, keep_best=True)
        saved.resume()
        evaluated = {} if loss is None else {"held_out_loss_ema": loss, "held_out_loss": 1 - loss}
        assert saved.is_better(evaluated) == (loss in (0.5, 0.3))
        with saved:
            saved.save(step, seconds=0.0, evaluated=evaluated)
    assert sorted(path.name for path in saved.folder.iterdir()) == ["step_00000002", "step_00000005"]
