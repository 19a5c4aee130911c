"""`ldmkit generate` that is stopped, or met with what has no end: pictures that were done stay, and it ends."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from ldmkit.cli import cli
from ldmkit.errors import LdmkitError
from ldmkit.runtime.onnx_backend import OnnxBackend
from tests.runtime.command import invoke

MakeBundle = Callable[..., Path]


def test_each_picture_is_written_when_it_is_done(
    make_bundle: MakeBundle, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stop in the second batch keeps the first one's eight; so does a disk that is full by then."""
    make_bundle()
    run, calls = OnnxBackend.run, []

    def stopped(self: OnnxBackend, name: str, **inputs: np.ndarray) -> np.ndarray:
        calls.append(name)
        if calls.count("vae_decoder.onnx") == 2:
            raise KeyboardInterrupt
        return run(self, name, **inputs)

    monkeypatch.setattr(OnnxBackend, "run", stopped)
    with pytest.raises(click.Abort):
        invoke("-n", "12", "--out", "kept")
    assert sorted(path.name for path in (work / "kept").iterdir()) == [f"unconditional-{k}.png" for k in range(8)]
    monkeypatch.undo()
    monkeypatch.chdir(work)
    opened, taken = Path.open, []

    def full(self: Path, mode: str = "r", **options: Any) -> Any:
        taken.append(self) if mode == "xb" else None
        if len(taken) == 11:
            raise OSError(errno.ENOSPC, "No space left on device", str(self))
        return opened(self, mode, **options)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(LdmkitError, match=r"unconditional-10\.png cannot be written: No space left"):
        invoke("-n", "12", "--out", "full")
    assert len(list((work / "full").iterdir())) == 10
    for path in (work / "full").iterdir():
        with Image.open(path) as picture:
            picture.load()


def test_a_reader_that_leaves_early_gets_its_pictures(make_bundle: MakeBundle, work: Path) -> None:
    """`ldmkit generate -n 3 | head -1`, with pipefail."""
    make_bundle()
    read, write = os.pipe()
    with subprocess.Popen(
        [sys.executable, "-m", "ldmkit", "generate", "-n", "3", "--provider", "cpu"],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        os.close(write)
        os.close(read)
        _, err = process.communicate()
    assert (process.returncode, err) == (0, "")
    assert len(list((work / "outputs").iterdir())) == 4


ENDLESS = """
        forever = Constant<value = int64 {9223372036854775807}>()
        go_on = Constant<value = int64 {1}>()
        true = Cast<to = 9>(go_on)
        output = Loop(forever, true, nothing) <body = body (int64 i, bool condition, float[n,c,h,w] x) =>
            (bool again, float[n,c,h,w] y) { again = Identity(condition)  y = Identity(x) }>
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="POSIX's signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_endless_graph_ends_at_a_signal(
    make_bundle: MakeBundle, unet_text: Callable[[str], str], work: Path, number: signal.Signals
) -> None:
    """onnxruntime is in one call that never returns to Python."""
    make_bundle(unet=unet_text(ENDLESS))
    code = """
import signal, sys, ldmkit.signals, onnxruntime
from ldmkit.runtime.onnx_backend import Binding
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a script's background job has ignored
ldmkit.signals._PATIENCE = 0.1
call = Binding.__call__
Binding.__call__ = lambda self, **given: (print("drawing", flush=True), call(self, **given))[1]
sys.argv = ["ldmkit", "generate", "--provider", "cpu"]
from ldmkit.cli import main
main()
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert "drawing\n" in iter(process.stdout.readline, "")
        process.send_signal(number)
        assert process.wait(20) == 128 + number
    assert not (work / "outputs").exists()


@pytest.mark.parametrize(
    ("graph", "found"),
    [
        ("output = Cast<to = 7>(nothing)", "int64"),
        ("output = Cast<to = 8>(nothing)", "string|object"),
        ("one = Constant<value = int64[1] {1}> () all = ReduceSum(nothing, one) output = Identity(all)", "1, 1, 2, 2"),
        ("output = SequenceConstruct(nothing)", "list|[Ss]equence|Tensor"),
    ],
)
def test_a_graph_of_another_kind_is_one_message(
    make_bundle: MakeBundle, unet_text: Callable[[str], str], work: Path, graph: str, found: str, capfd: Any
) -> None:
    """Numbers of another type would be taken, and of another shape be broadcast, in silence."""
    text = unet_text(graph)
    for name, kind in (("Cast<to = 7>", "int64[b,2,2,2]"), ("Cast<to = 8>", "string[b,2,2,2]")):
        text = text.replace("=> (float[batch,2,2,2] output)", f"=> ({kind} output)") if name in text else text
    if "Sequence" in text:
        text = text.replace("=> (float[batch,2,2,2] output)", "=> (seq(float[b,2,2,2]) output)")
    elif "ReduceSum" in text:
        text = text.replace("=> (float[batch,2,2,2] output)", "=> (float[b,1,2,2] output)")
    make_bundle(unet=text)
    with pytest.raises(LdmkitError, match=rf"unet\.onnx (returns|failed).*({found})"):
        invoke("--out", "none")
    assert capfd.readouterr().err == ""  # of onnxruntime, with its colours
    assert not (work / "none").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "1000000000"], "steps is 1000000000; it must be a whole number from 1 to 10000"),
        (["-n", "1000000000"], "n is 1000000000; it must be a whole number from 1 to 100000"),
        (["--variations", "1000000000"], "variations is 1000000000"),
        (["--seed", "1", "--to-seed", "2", "--interpolate", "1000000000"], "frames is 1000000000"),
        (["--size", "9" * 5000 + "x9"], "is not a width and a height"),
        (["--same-seed"], "--same-seed requires --prompts"),
    ],
)
def test_bounds(make_bundle: MakeBundle, work: Path, arguments: list[str], message: str) -> None:
    make_bundle()
    result = CliRunner().invoke(cli, ["generate", *arguments])
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_bundle_of_endless_steps(make_bundle: MakeBundle, work: Path) -> None:
    make_bundle(defaults={"sampler": "euler", "steps": 10**9, "guidance_scale": 1.0})
    with pytest.raises(LdmkitError, match=r"exports/hand-made is not a bundle: .*steps.*10000"):
        invoke("--bundle", "exports/hand-made")
