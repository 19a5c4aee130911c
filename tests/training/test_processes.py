"""Two processes on one run: the curve of one, and an end that is clean whatever happens."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

REPOSITORY = Path(__file__).parents[2]
# Each process draws its own dropout, and each share of a batch has its own adaptive weight.
ALIKE = ("vae.dropout=0.0", "unet.dropout=0.0", "t2i.dropout=0.0", "vae.losses.gan.start_step=100")
ALIKE_AND_EXACT = (*ALIKE, "unet.precision='fp32'", "unet.grad_accumulation=1", "t2i.grad_accumulation=3")


TOUCH = """
import os, time
from pathlib import Path
from ldmkit import hookimpl

class Touch:
    'Nothing, but each of its calls in training touches a file, from the fifth on behind the checkpoint of step 3.'
    calls = 0

    def __call__(self, reconstruction):
        if reconstruction.output.requires_grad:
            self.calls += 1
            while self.calls > 4 and not Path("runs/tiny/vae/checkpoints/step_00000003").is_dir():
                time.sleep(0.01)  # it is saved in the background
            open(f"touched-{os.environ['RANK']}", "w").close()
        return reconstruction.output.mean() * 0

@hookimpl
def register_losses():
    return {"touch": Touch}
"""


WATCH = """
import hashlib, json, os
from ldmkit import hookimpl

class Watch:
    'Nothing, but each batch of training is written down, by its pictures.'
    def __call__(self, reconstruction):
        if reconstruction.output.requires_grad:
            seen = [hashlib.sha256(picture.numpy().tobytes()).hexdigest() for picture in reconstruction.target]
            with open(f"seen-{os.environ.get('RANK', '0')}.jsonl", "a") as file:
                print(json.dumps(seen), file=file)
        return reconstruction.output.mean() * 0

@hookimpl
def register_losses():
    return {"watch": Watch}
"""


def settings(*overrides: str) -> list[str]:
    return [argument for override in overrides for argument in ("--set", override)]


def rows(part: Path) -> list[dict[str, float]]:
    found = [json.loads(line) for line in (part / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in ("seconds", "loader_wait")} for row in found]


def both(processes: Any, folder: Path, *commands: Any, struck: str = "1", **options: Any) -> list[tuple[int, str]]:
    """(exit code, output) of the two processes that a launcher would start; `strike` hits one of them alone."""
    # The meeting point is the test's own, at a port that is bound before anybody is told of it: nobody can take it.
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    common |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
    common |= {"LOCAL_WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "true"}
    started = [
        processes.start(
            folder, *commands, env={**common, "RANK": rank, "LOCAL_RANK": rank}, **(options if rank == struck else {})
        )
        for rank in ("0", "1")
    ]
    return [(each.wait(), each.output.read_text()) for each in started]


@pytest.mark.parametrize("part", ["vae", "unet", "t2i"])
def test_same_curve_as_one_process(part: str, alone: Path, together: Path) -> None:
    one, two = rows(alone / part), rows(together / part)
    assert len(one) == len(two) == 8
    for row, other in zip(one, two, strict=True):
        assert other == pytest.approx(row, rel=1e-4)
    assert (alone / part / "model.safetensors").read_bytes() != (together / part / "model.safetensors").read_bytes()


def test_same_samples_as_one_process(alone: Path, together: Path) -> None:
    """Each process's share of a batch, one behind the other, is one process's batch: the very pictures."""
    one = [json.loads(line) for line in (alone.parents[1] / "seen-0.jsonl").read_text().splitlines()]
    shares = [(together.parents[1] / f"seen-{rank}.jsonl").read_text().splitlines() for rank in (0, 1)]
    two = [json.loads(first) + json.loads(second) for first, second in zip(*shares, strict=True)]
    assert len(one) == 8
    assert all(len(batch) == 6 for batch in one)
    assert two == one
    assert len({picture for batch in one for picture in batch}) > 12


@pytest.fixture(scope="module")
def alone(processes: Any, trained: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = watched(copied(trained, tmp_path_factory.mktemp("alone")))
    stages = ("caption", "train-vae", "encode", "train-unet", "train-t2i")
    overrides = settings(*ALIKE_AND_EXACT)
    code, output = processes.run(folder, *((stage, "tiny.toml", *overrides) for stage in stages))
    assert code == 0, output
    return folder / "runs" / "tiny"


@pytest.fixture(scope="module")
def together(processes: Any, trained: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same by two processes, the export left out."""
    folder = watched(copied(trained, tmp_path_factory.mktemp("together")))
    for stage in ("caption", "train-vae", "encode", "train-unet", "train-t2i"):
        found = both(processes, folder, (stage, "tiny.toml", *settings(*ALIKE_AND_EXACT)))
        assert [code for code, _ in found] == [0, 0], found
        assert "done in" in found[0][1]
        assert found[1][1] == ""  # the second one is quiet
    return folder / "runs" / "tiny"


def copied(trained: Any, folder: Path) -> Path:
    """The pictures and the recipe."""
    shutil.copytree(trained.folder / "pictures", folder / "pictures")
    shutil.copy(trained.folder / "tiny.toml", folder)
    return folder


def watched(folder: Path) -> Path:
    """The recipe with a loss that writes down what it sees."""
    (folder / "watch.py").write_text(WATCH)
    recipe = (folder / "tiny.toml").read_text()
    (folder / "tiny.toml").write_text(f'plugins = ["./watch.py"]\n{recipe}\n[vae.losses.watch]\nuse = "watch"\n')
    return folder


def test_discriminator_of_two_processes(processes: Any, trained: Any, tmp_path: Path) -> None:
    """The adversarial term, with a batch split in both ways."""
    folder = copied(trained, tmp_path / "w")
    overrides = settings("vae.losses.gan.start_step=2", "vae.batch_size=8", "vae.grad_accumulation=2")
    found = both(processes, folder, ("train-vae", "tiny.toml", *overrides))
    assert [code for code, _ in found] == [0, 0], found
    part = folder / "runs" / "tiny" / "vae"
    assert all(("gan_discriminator" in row) == (row["step"] > 2) for row in rows(part))
    initial = load_file(trained.run / "vae" / "discriminator_gan.safetensors")
    assert load_file(part / "discriminator_gan.safetensors").keys() == initial.keys()


def test_signal_to_one_of_two(processes: Any, trained: Any, tmp_path: Path, alone: Path) -> None:
    folder = copied(trained, tmp_path / "w")
    # Pictures are decoded ahead of their use, so that which step a touch of theirs falls into is anybody's guess.
    (folder / "touch.py").write_text(TOUCH)
    (folder / "tiny.toml").write_text('plugins = ["./touch.py"]\n' + (folder / "tiny.toml").read_text())
    command = ("train-vae", "tiny.toml", *settings(*ALIKE_AND_EXACT, "vae.losses.touch.use='touch'"))
    options = {"strike": 3, "at": "touched-1", "signal": int(signal.SIGTERM)}
    found = both(processes, folder, command, **options)
    assert [code for code, _ in found] == [143, 143], found
    assert "the same command goes on" in found[0][1]
    assert "error" not in found[1][1]
    part = folder / "runs" / "tiny" / "vae"
    assert len(rows(part)) == 3
    assert (part / "checkpoints" / "step_00000003").is_dir()
    found = both(processes, folder, command)
    assert [code for code, _ in found] == [0, 0], found
    for row, other in zip(rows(alone / "vae"), rows(part), strict=True):
        common = row.keys() & other.keys()
        assert {key: other[key] for key in common} == pytest.approx({key: row[key] for key in common}, rel=1e-4)


@pytest.mark.parametrize("struck", ["0", "1"])
def test_one_of_two_killed(struck: str, processes: Any, trained: Any, tmp_path: Path) -> None:
    """The other one ends with one line, and both go on from the checkpoint."""
    folder = copied(trained, tmp_path / "w")
    (folder / "touch.py").write_text(TOUCH)
    (folder / "tiny.toml").write_text('plugins = ["./touch.py"]\n' + (folder / "tiny.toml").read_text())
    command = ("train-vae", "tiny.toml", *settings(*ALIKE_AND_EXACT, "vae.losses.touch.use='touch'"))
    options = {"strike": 5, "at": f"touched-{struck}", "struck": struck}
    found = both(processes, folder, command, **options)
    assert found[int(struck)][0] == -signal.SIGKILL, found
    code, output = found[1 - int(struck)]
    assert code == 1, output
    assert "error: another process of this run has ended. The last checkpoint is whole" in output
    assert "Traceback" not in output
    found = both(processes, folder, command)
    assert [code for code, _ in found] == [0, 0], found
    assert "going on from step 3 of 8" in found[0][1]
    assert [row["step"] for row in rows(folder / "runs" / "tiny" / "vae")] == list(range(1, 9))


def test_batch_for_two(processes: Any, trained: Any, tmp_path: Path) -> None:
    folder = copied(trained, tmp_path / "w")
    found = both(processes, folder, ("train-vae", "tiny.toml", *settings("vae.batch_size=5")))
    assert [code for code, _ in found] == [1, 1]
    assert "vae: batch_size = 5 must be a multiple of the number of processes (2)" in found[0][1]


def test_launcher(trained: Any, tmp_path: Path) -> None:
    """torch's own launcher, which `accelerate launch` calls for several processes."""
    folder = copied(trained, tmp_path / "w")
    shutil.copytree(trained.run, folder / "runs" / "tiny")
    shutil.rmtree(folder / "runs" / "tiny" / "unet")
    path = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "plugins")])
    # Without a GPU nobody needs to say so.
    on_cpu = {"ACCELERATE_USE_CPU": "true"} if torch.accelerator.is_available() else {}
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    done = subprocess.run(
        [*launch, "-m", "ldmkit", "train-unet", "tiny.toml", *settings("unet.batch_size=8")],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"} | on_cpu,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("train-unet: done in") == 1
    assert len(rows(folder / "runs" / "tiny" / "unet")) == 8
