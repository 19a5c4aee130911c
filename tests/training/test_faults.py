"""A full disk, a killed decoder, a clock that jumps, a folder that cannot be written: nothing is lost."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ldmkit.errors import LdmkitError, lost_process
from ldmkit.signals import StopSignals

STAGES = {"train-vae": "vae", "train-unet": "unet", "train-t2i": "t2i"}
# Whatever else draws random numbers, sets clocks or kills, it does so here: at every line of the log.
MEDDLER = """
import itertools, os, random, signal, time
import numpy, psutil, torch
from ldmkit import hookimpl

HOW = {how!r}
true_time, looks = time.time, itertools.count()
if HOW == "clock":
    time.time = lambda: true_time() - 3600 * next(looks)  # an hour back at each look

@hookimpl
def log_metrics(run_dir, stage, step, metrics):
    if HOW == "random":
        seed = time.time_ns() % 2**32
        torch.manual_seed(seed), numpy.random.seed(seed), random.seed(seed)
    if HOW == "kill" and step == 4:
        psutil.Process().children()[0].kill()
    if HOW in ("SIGTERM", "SIGHUP") and step == 4:  # to the workers first: the process goes by its own
        own = psutil.Process()
        for process in (*own.children(), own):
            process.send_signal(getattr(signal, HOW))
"""


def meddle(folder: Path, how: str) -> None:
    (folder / "meddler.py").write_text(MEDDLER.format(how=how))
    recipe = folder / "tiny.toml"
    recipe.write_text('plugins = ["./meddler.py"]\n' + recipe.read_text())


@pytest.mark.parametrize(("how", "stage"), [("random", "train-vae"), ("random", "train-t2i"), ("clock", "train-unet")])
def test_global_generators_and_the_clock_have_no_say(
    how: str, stage: str, trained: Any, exact: Any, processes: Any, tmp_path: Path
) -> None:
    part = exact.before(trained, STAGES[stage], tmp_path)
    meddle(tmp_path, how)
    code, output = processes.run(tmp_path, (stage, "tiny.toml"), strike=12, at="/checkpoints/")
    assert code == -signal.SIGKILL, output
    code, output = processes.run(tmp_path, (stage, "tiny.toml"))
    assert code == 0, output
    exact.assert_same(part, trained.run / STAGES[stage])
    seconds = [json.loads(line)["seconds"] for line in (part / "metrics.jsonl").read_text().splitlines()]
    assert seconds == sorted(seconds)
    assert 0 <= seconds[0] <= seconds[-1] < 1000


CLOSED_TERMINAL = """
import os, signal, sys
from ldmkit.report import tell
from ldmkit.signals import StopSignals
keyboard, screen = os.openpty()
for handle in (1, 2):
    os.dup2(screen, handle)
os.close(screen)
with StopSignals("vae") as signals:
    tell("step 1")
    os.close(keyboard)  # and a write to the terminal is an error from here on
    signal.raise_signal(signal.SIGHUP)
    tell("step 2")
    print("and whatever a library says", flush=True)
os._exit(signals.number)
"""


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a pseudo-terminal")
def test_a_closed_terminal_is_no_error() -> None:
    done = subprocess.run([sys.executable, "-c", CLOSED_TERMINAL], check=False)
    assert done.returncode == signal.SIGHUP


def test_decoding_process_killed(trained: Any, exact: Any, processes: Any, tmp_path: Path) -> None:
    part = exact.before(trained, "vae", tmp_path)
    meddle(tmp_path, "kill")
    command = ("train-vae", "tiny.toml", "--set", "data.num_workers=1")
    code, output = processes.run(tmp_path, command)
    assert code == 1, output
    assert re.search(
        r"error: a process that decodes pictures has ended: (.*\(pid(\(s\) [\d, ]+| \w+)\)|its pipe broke)", output
    ), output
    assert "a lower data.num_workers helps" in output
    assert "Traceback" not in output
    goes_on_where_it_was_saved(part, output, command, trained, exact, processes, tmp_path)


def goes_on_where_it_was_saved(
    part: Path, output: str, command: Any, trained: Any, exact: Any, processes: Any, folder: Path
) -> None:
    """Behind the last step that was done, of which none is in the log without being in the checkpoint."""
    step = int(re.findall(r"vae: saved at step (\d+) of 8", output)[0])
    assert step >= 4
    assert step == len(exact.curve(part))
    (folder / "meddler.py").write_text(MEDDLER.format(how="nothing"))
    code, output = processes.run(folder, command)
    assert code == 0, output
    assert f"going on from step {step} of 8" in output
    exact.assert_same(part, trained.run / "vae")


@pytest.mark.parametrize(("how", "code"), [("SIGTERM", 143), ("SIGHUP", 129)])
def test_whole_group_asked_to_stop(
    how: str, code: int, trained: Any, exact: Any, processes: Any, tmp_path: Path
) -> None:
    """As systemd, Slurm or a closed terminal ask: the processes that decode pictures go on until the trainer ends."""
    part = exact.before(trained, "vae", tmp_path)
    meddle(tmp_path, how)
    command = ("train-vae", "tiny.toml", "--set", "data.num_workers=2")
    found, output = processes.run(tmp_path, command)
    assert found == code, output
    goes_on_where_it_was_saved(part, output, command, trained, exact, processes, tmp_path)


def test_a_hangup_that_is_ignored_changes_nothing() -> None:
    """As of nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals("vae", quiet=True) as signals:
            signal.raise_signal(signal.SIGHUP)
            assert signals.number == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_other_errors_are_not_taken_for_a_killed_process() -> None:
    assert lost_process(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None
    told = lost_process(RuntimeError("[../gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1"))
    assert isinstance(told, LdmkitError)


@pytest.mark.parametrize(
    ("stage", "parts", "sizes"),
    [
        ("caption", ("captions",), (600, 2000)),
        ("encode", ("latents", "text"), (4500, 9000, 20_000)),
        ("train-unet", ("unet",), (4500, 16_000)),
        ("train-vae", ("vae",), (4500, 50_000)),
    ],
)
def test_disk_full(
    stage: str, parts: tuple[str, ...], sizes: tuple[int, ...], trained: Any, exact: Any, processes: Any, tmp_path: Path
) -> None:
    """One line, no success that is none, and the same command goes on once there is room."""
    for part in parts:
        exact.before(trained, part, tmp_path)
    for size in sizes:
        code, output = processes.run(tmp_path, (stage, "tiny.toml"), largest_file=size)
        assert code == 1, (size, output)
        assert re.search(r"^error: .*cannot be written: .*File too large", output, re.MULTILINE), (size, output)
        assert "Traceback" not in output
    code, output = processes.run(tmp_path, (stage, "tiny.toml"))
    assert code == 0, output
    for part in parts:
        found, expected = tmp_path / "runs" / "tiny" / part, trained.run / part
        if stage.startswith("train"):
            exact.assert_same(found, expected)
        else:
            names = sorted(path.name for path in expected.iterdir())
            assert sorted(path.name for path in found.iterdir()) == names
            for name in set(names) - {"record.json"}:
                assert (found / name).read_bytes() == (expected / name).read_bytes(), name


def test_folder_that_cannot_be_written_stops_before_anything_is_computed(workshop: Any) -> None:
    (workshop.folder / "exports").write_text("a file where the bundles should go")
    with pytest.raises(LdmkitError, match=r"exports/tiny: cannot be written: Not a directory"):
        workshop.pipeline().run()
    assert [path.name for path in workshop.run.iterdir() if path.is_dir()] == []
    workshop.run.mkdir(parents=True, exist_ok=True)
    (workshop.run / "t2i").symlink_to("/proc/self")  # where not even root makes files
    with pytest.raises(LdmkitError, match=r"runs/tiny/t2i: cannot be written"):
        workshop.pipeline().run(("caption", "train-t2i"))
    assert [path.name for path in workshop.run.iterdir() if path.is_dir() and not path.is_symlink()] == []


@pytest.mark.parametrize(
    ("stage", "at", "strike", "told"),
    [
        ("caption", "pictures/05.txt", 1, r"caption: saved, 0 pictures left"),
        ("encode", "pictures/05.png", 2, r"encode latents: saved up to picture 20 of 20"),
    ],
)
def test_asked_to_stop_while_caching(
    stage: str, at: str, strike: int, told: str, trained: Any, exact: Any, processes: Any, tmp_path: Path
) -> None:
    for part in ("captions",) if stage == "caption" else ("latents", "text"):
        exact.before(trained, part, tmp_path)
    options = {"strike": strike, "at": at, "signal": int(signal.SIGTERM)}
    code, output = processes.run(tmp_path, (stage, "tiny.toml"), **options)
    assert code == 143, output
    assert re.search(told, output), output
    code, output = processes.run(tmp_path, (stage, "tiny.toml"))
    assert code == 0, output


def test_poisoned_step_is_never_saved(trained: Any, exact: Any, processes: Any, tmp_path: Path) -> None:
    """A log that ends at the last good step, and a checkpoint before it: see test_training for what is told."""
    part = exact.before(trained, "unet", tmp_path)
    exact.poison(tmp_path / "runs" / "tiny" / "latents", slice(None), np.nan)
    code, output = processes.run(tmp_path, ("train-unet", "tiny.toml"))
    assert code == 1, output
    assert exact.curve(part) == []
    assert not (part / "checkpoints").exists()
