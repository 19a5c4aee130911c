"""Checkpoints: killed at every touch of the disk, damaged in every file, without room."""

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from ldmkit.atomic import sweep
from ldmkit.errors import LdmkitError
from ldmkit.run.checkpoint import (
    Keep,
    Tensors,
    flatten_optimizer,
    load_newest,
    load_weights,
    restore_optimizer,
    save_checkpoint,
    save_weights,
)

# Python 3.12 warns of any fork beside threads; these children touch none of torch's.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")


def tensors(step: int) -> dict[str, Tensors]:
    generator = torch.Generator().manual_seed(step)
    return {
        "model": {"weight": torch.randn(8, 8, generator=generator), "count": torch.tensor(step)},
        "optimizer": {"0.exp_avg": torch.randn(8, 8, generator=generator)},
    }


def save(folder: Path, step: int, keep: int = 2) -> Path:
    return save_checkpoint(folder, step, tensors(step), {"seconds": step / 3}, keep=Keep(last=keep))


def assert_loads(folder: Path, step: int) -> None:
    newest = load_newest(folder)
    assert newest is not None
    found, state = newest
    assert state["step"] == step
    assert state["seconds"] == step / 3
    assert found.keys() == tensors(step).keys()
    for name, group in tensors(step).items():
        assert found[name].keys() == group.keys()
        assert all(torch.equal(found[name][key], value) for key, value in group.items())


def in_a_child(work: Callable[[], None]) -> int:
    """Runs it in a process of its own; 0, 1 after a LdmkitError, or -N where signal N ended it."""
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            work()
            code = 0
        except LdmkitError:
            code = 1
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_round_trip_and_retention(tmp_path: Path) -> None:
    assert load_newest(tmp_path / "none") is None
    for step in (5, 90, 100, 1000):
        save(tmp_path, step)
        assert_loads(tmp_path, step)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000100", "step_00001000"]


SYSTEM_CALLS = ("open", "write", "fsync", "close", "mkdir", "rename", "replace", "unlink", "rmdir", "chmod")


def strike(number: int, how: Callable[[], None]) -> list[str]:
    """Has every system call of this process that changes the disk counted, and the one of that number struck.

    A write is struck when half of it is done. Returns the list that the calls' names are put into.
    """
    calls: list[str] = []

    def struck(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            calls.append(name)
            if len(calls) == number:
                if name == "write":
                    real(arguments[0], arguments[1][: len(arguments[1]) // 2])
                how()
            return real(*arguments, **options)

        return call

    for name in SYSTEM_CALLS:
        setattr(os, name, struck(name, getattr(os, name)))
    return calls


def full() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("how", [killed, full])
def test_struck_at_every_system_call_of_a_save(how: Callable[[], None], tmp_path: Path) -> None:
    """What is there afterwards is the old checkpoint or the new one, whole; never neither."""

    def save_struck(number: int) -> None:
        calls = strike(number, how)
        try:
            save(folder, 2, keep=1)
        finally:
            struck = calls[number - 1] if len(calls) >= number else "spared"
            calls += [""] * number  # this file is no part of it
            (tmp_path / struck).touch()

    found, codes = set(), set()
    number = 0
    while not (tmp_path / "spared").exists():
        number += 1
        folder = tmp_path / str(number)
        save(folder, 1)
        code = in_a_child(partial(save_struck, number))
        codes.add(code)
        sweep(folder)  # as the pipeline does before anything else
        newest = load_newest(folder)
        assert newest is not None
        step = newest[1]["step"]
        assert_loads(folder, step)
        assert code != 0 or step == 2, "a save that failed and did not say so"
        found.add(step)
        assert [p.name for p in folder.glob(".*")] == []
        if how is full:
            save(folder, 3, keep=1)  # once there is room again
            assert_loads(folder, 3)
        shutil.rmtree(folder)
    assert number > 40
    assert found == {1, 2}
    if how is full:
        assert {"open", "write", "fsync", "mkdir", "rename", "unlink"} <= {path.name for path in tmp_path.iterdir()}
        assert codes == {0, 1}
    else:
        assert codes == {0, -signal.SIGKILL}


def test_no_room_for_a_file(tmp_path: Path) -> None:
    save(tmp_path, 1)
    codes = set()
    for size in range(0, 1200, 50):

        def limited(size: int = size) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
            save(tmp_path, 2, keep=1)

        code = in_a_child(limited)
        codes.add(code)
        if code == 0:
            break
        assert code == 1
        assert_loads(tmp_path, 1)
        assert len(list(tmp_path.iterdir())) == 1
    assert codes == {0, 1}
    assert_loads(tmp_path, 2)


def test_a_disk_that_does_not_give_back_what_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old checkpoint goes only once the new one was read back."""
    save(tmp_path, 1, keep=1)
    rename = os.rename

    def rot(source: Any, target: Any) -> None:
        rename(source, target)
        if Path(target).name == "step_00000002":
            weights = Path(target) / "model.safetensors"
            weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")

    monkeypatch.setattr(os, "rename", rot)
    with pytest.raises(LdmkitError, match=r"step_00000002: model\.safetensors is damaged already: the disk"):
        save(tmp_path, 2, keep=1)
    monkeypatch.undo()
    assert_loads(tmp_path, 1)


def test_which_checkpoints_are_kept(tmp_path: Path) -> None:
    losses = {1: 0.5, 2: 0.2, 3: None, 4: 0.2, 5: 0.3, 6: None, 7: 0.4, 8: None, 9: None}

    def kept(keep: Keep) -> list[int]:
        folder = tmp_path / f"{keep.last}-{keep.every}-{keep.best}"
        for step, loss in losses.items():
            save_checkpoint(folder, step, tensors(step), {"held_out": loss}, keep=keep)
        return sorted(int(path.name.removeprefix("step_")) for path in folder.iterdir())

    assert kept(Keep(last=1)) == [9]
    assert kept(Keep(last=3)) == [7, 8, 9]
    assert kept(Keep(last=1, every=4)) == [4, 8, 9]
    assert kept(Keep(last=1, best=True)) == [4, 9]  # of two as good the newer one
    assert kept(Keep(last=2, every=5, best=True)) == [4, 5, 8, 9]
    assert kept(Keep(last=9)) == list(losses)


def test_newest_goes_by_steps_and_not_by_names(tmp_path: Path) -> None:
    save(tmp_path, 99_999_999)
    save(tmp_path, 100_000_000)
    (tmp_path / "step_notes").mkdir()
    assert_loads(tmp_path, 100_000_000)


def test_disk_too_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(LdmkitError, match=r"needs 1\.?\d* MiB and 0\.00095 MiB are free.*make room"):
        save(tmp_path, 2)
    assert_loads(tmp_path, 1)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB and 9 files and folders."""
    folder = tmp_path / "small"
    folder.mkdir()
    if sys.platform != "linux":
        pytest.skip("tmpfs is Linux's")
    command = ["mount", "-t", "tmpfs", "-o", "size=2m,nr_inodes=10", "tmpfs", folder]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"mounting needs rights that are not there: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_disk_that_is_really_full(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's own ENOSPC: no file more, then no byte more, on a disk that does not say so beforehand."""
    save(small_disk, 1)
    with pytest.raises(LdmkitError, match="No space left on device"):
        save(small_disk, 2)  # the tenth file
    assert [path.name for path in small_disk.iterdir()] == ["step_00000001"]
    assert_loads(small_disk, 1)
    subprocess.run(["mount", "-o", "remount,nr_inodes=100", small_disk], check=True)
    large = {"model": {"weight": torch.zeros(2**18)}, "optimizer": {"0.exp_avg": torch.zeros(2**18)}}
    with pytest.raises(LdmkitError, match=r"needs 3\.1 MiB and 2 MiB are free; make room"):
        save_checkpoint(small_disk, 2, large, {"seconds": 0.0}, keep=Keep())
    usage = shutil.disk_usage(small_disk)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=2**30))
    with pytest.raises(LdmkitError, match="No space left on device"):
        save_checkpoint(small_disk, 2, large, {"seconds": 0.0}, keep=Keep())
    assert [path.name for path in small_disk.iterdir()] == ["step_00000001"]
    assert_loads(small_disk, 1)
    save(small_disk, 2)
    assert_loads(small_disk, 2)


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"])
def test_damaged_file(file: str, damage: str, tmp_path: Path) -> None:
    save(tmp_path, 1)
    path = save(tmp_path, 2) / file
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    elif damage == "cut":
        path.write_bytes(data[:-3])
    else:
        path.unlink()
    with pytest.warns(UserWarning, match=f"{file if file != 'manifest.json' else ''}.*going back to the one before"):
        assert_loads(tmp_path, 1)
    assert (tmp_path / "damaged_step_00000002").is_dir()
    assert_loads(tmp_path, 1)  # and without a warning from now on
    save(tmp_path, 2)
    assert_loads(tmp_path, 2)


def test_every_flipped_byte_is_noticed(tmp_path: Path) -> None:
    checkpoint = save(tmp_path, 1)
    whole = {path: path.read_bytes() for path in checkpoint.iterdir()}
    for path, data in whole.items():
        for place in range(0, len(data), 17):
            path.write_bytes(data[:place] + bytes([data[place] ^ 0x40]) + data[place + 1 :])
            with pytest.warns(UserWarning, match="set aside"):
                assert load_newest(tmp_path) is None
            (tmp_path / "damaged_step_00000001").rename(checkpoint)
        path.write_bytes(data)
    assert_loads(tmp_path, 1)


@pytest.mark.parametrize("what", ["a file", "a folder", "an entry", "white space", "nothing"])
def test_what_does_not_belong_there(what: str, tmp_path: Path) -> None:
    """The manifest vouches for the files and they for it: neither more nor less may be there."""
    checkpoint = save(tmp_path, 1)
    manifest = checkpoint / "manifest.json"
    if what == "a file":
        (checkpoint / "ema.safetensors").write_bytes((checkpoint / "model.safetensors").read_bytes())
    elif what == "a folder":
        (checkpoint / "more").mkdir()
    elif what == "an entry":
        manifest.write_text(manifest.read_text().replace("{", '{\n "more.json": "00",', 1))
    elif what == "white space":
        manifest.write_text(manifest.read_text().replace("\n", " "))
    else:
        (checkpoint / "model.safetensors").unlink()
        manifest.write_text("{}\n")
    with pytest.warns(UserWarning, match="set aside as damaged_step_00000001"):
        assert load_newest(tmp_path) is None


def test_weights_that_share_memory(tmp_path: Path) -> None:
    table = torch.randn(4, 4)
    save_weights(tmp_path / "w.safetensors", {"in": table, "out": table, "row": table[1], "turned": table.T})
    found = load_weights(tmp_path / "w.safetensors")
    assert torch.equal(found["out"], table)
    assert torch.equal(found["row"], table[1])
    assert torch.equal(found["turned"], table.T)


@pytest.mark.parametrize("content", [None, b"", b"no safetensors"])
def test_unreadable_weights(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(LdmkitError, match=r"w\.safetensors"):
        load_weights(path)


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.Adam])
def test_optimizer_goes_on_as_if_never_stopped(kind: Any) -> None:
    def steps(model: torch.nn.Linear, optimizer: torch.optim.Optimizer, count: int) -> None:
        for i in range(count):
            optimizer.zero_grad()
            (model(torch.full((1, 3), float(i + 1))) ** 2).sum().backward()
            optimizer.step()

    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    optimizer = kind(model.parameters(), lr=0.1)
    steps(model, optimizer, 3)
    copied = torch.nn.Linear(3, 2)
    copied.load_state_dict(model.state_dict())
    resumed = kind(copied.parameters(), lr=0.1)
    restore_optimizer(resumed, {key: value.clone() for key, value in flatten_optimizer(optimizer).items()})
    steps(model, optimizer, 3)
    steps(copied, resumed, 3)
    assert torch.equal(model.weight, copied.weight)
    fresh = torch.nn.Linear(3, 2)
    assert flatten_optimizer(kind(fresh.parameters())) == {}  # nothing before the first step
