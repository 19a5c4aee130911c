"""A recipe that trains in a second, and real processes of ldmkit that cost no import."""

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ldmkit.components.registry import Registry
from ldmkit.pipeline import Pipeline
from ldmkit.recipe import load_recipe
from ldmkit.report import Reporter

REPOSITORY = Path(__file__).parents[1]


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """The whole suite is shared out among two processes, file by file; a single file runs in this one.

    `pytest -n 0` keeps the whole suite in this process too, and so does a Python without pytest-xdist.
    """
    options = config.option
    is_whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS and not hasattr(config, "workerinput")
    if is_whole and getattr(options, "numprocesses", 0) is None and not (options.usepdb or options.collectonly):
        options.numprocesses, options.dist, options.loadscopereorder = 2, "loadfile", False
        # Each with one thread, or they wait for each other at every operation.
        os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}


LONG = {"training", "ui", "web", "export", "vae", "test_packaging.py", "test_pipeline.py"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files come first, so that no process is left alone with one at the end."""
    items.sort(key=lambda item: LONG.isdisjoint(item.path.parts))


# Everything random is on: flips, dropout, posterior, caption dropout, an adversarial term that starts on the way.
TINY = """
[data]
path = "pictures"
size = 16
held_out = 0.2
num_workers = 0

[text]
use = "transformer"
width = 8
layers = 1
heads = 2
max_tokens = 16
vocab_size = 300

[vae]
channels = [4, 8]
latent_channels = 2
num_res_blocks = 1
norm_groups = 4
dropout = 0.1
steps = 8
batch_size = 6
learning_rate = 1e-2
lr_schedule = "cosine"
warmup_steps = 2
precision = "fp32"
ema_decays = [0.9, 0.8]
log_every = 1
eval_every = 4
checkpoint_every = 3

[vae.losses.l1]
use = "l1"

[vae.losses.kl]
use = "kl"
weight = 1e-4

[vae.losses.gan]
use = "patchgan"
weight = 0.1
start_step = 4
channels = [4, 8]
norm_groups = 4

[unet]
channels = [8, 8]
attention_levels = [1]
num_res_blocks = 1
time_dim = 8
norm_groups = 4
dropout = 0.1
steps = 8
batch_size = 6
grad_accumulation = 2
precision = "bf16"
ema_decays = [0.9, 0.8]
log_every = 1
eval_every = 4
checkpoint_every = 3

[t2i]
channels = [8, 8]
attention_levels = [1]
num_res_blocks = 1
num_heads = 2
time_dim = 8
norm_groups = 4
dropout = 0.1
caption_dropout = 0.5
precision = "fp32"
steps = 8
batch_size = 6
ema_decays = [0.9, 0.8]
log_every = 1
eval_every = 4
checkpoint_every = 3
keep_checkpoints = 1
keep_every = 3

[gate]
min_psnr = 0
min_ssim = 0
min_latent_signal = 0
max_latent_kurtosis = 0

[sampler]
use = "ddim"
steps = 2
"""
CAPTIONS = ("a red cat", "a blue cat", "a cat on a mat", "two cats")


def draw_pictures(folder: Path, count: int = 20) -> None:
    """16x16 patchworks, each with its caption beside it."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(count):
        patches = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(np.kron(patches, np.ones((4, 4, 1), np.uint8))).save(folder / f"{i:02d}.png")
        (folder / f"{i:02d}.txt").write_text(CAPTIONS[i % len(CAPTIONS)])


@dataclass
class Workshop:
    """A folder with pictures and the tiny recipe, `tiny.toml`; runs go to its `runs/`."""

    folder: Path

    @property
    def run(self) -> Path:
        return self.folder / "runs" / "tiny"

    def pipeline(self, *overrides: str) -> Pipeline:
        """The recipe's pipeline in this process, telling nothing."""
        exports, pictures = self.folder / "exports", self.folder / "pictures"
        recipe = load_recipe(
            self.folder / "tiny.toml", [f"export.path='{exports}'", f"data.path='{pictures}'", *overrides]
        )
        registry = Registry.load([self.folder / plugin for plugin in recipe.plugins])
        return Pipeline(recipe, registry=registry, reporter=Reporter(quiet=True), runs_dir=self.folder / "runs")


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    return new_workshop(tmp_path)


def new_workshop(folder: Path) -> Workshop:
    draw_pictures(folder / "pictures")
    (folder / "tiny.toml").write_text(TINY)
    assert tomllib.loads(TINY)
    return Workshop(folder)


# Imports torch and the stages once and runs a command that loads the plugins, then forks one child a job: it is a
# process of its own, with signals, exit code and open files of its own. `strike`: see tests/strike.py. Each saves the
# same figure, drawn here: matplotlib takes as long for one as a tiny stage takes for its steps.
PARENT = """
import atexit, contextlib, gc, importlib, io, json, os, sys, tempfile
from pathlib import Path
from ldmkit.run.parts import PARTS
for name in ("torch.utils.tensorboard.writer", "matplotlib.figure", "PIL.PngImagePlugin", "ldmkit.cli.train",
             "ldmkit_samplers", "ldmkit_losses", "ldmkit_patchgan", "ldmkit_transformer", "ldmkit_captions",
             *(spec.maker.split(":")[0] for name, spec in PARTS.items() if name != "bundle")):
    importlib.import_module(name)

import ldmkit.training.log
from ldmkit.cli import main
from matplotlib.figure import Figure
from tests.conftest import new_workshop
from tests.strike import strike_at

figure = Figure(figsize=(8, 10), layout="constrained")
figure.subplots(3).flat[0].plot(range(9))
figure.savefig(plot := io.BytesIO(), dpi=110)
ldmkit.training.log.plot_losses = lambda folder, title: (folder / "loss.png").write_bytes(plot.getvalue())

with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()):
    new_workshop(Path(folder))
    sys.argv = ["ldmkit", "status", "tiny.toml"]
    with contextlib.suppress(SystemExit):
        main()

def child(job):
    strike, touched = job.get("strike"), None
    os.chdir(job["cwd"])
    os.environ.update(job["env"])
    output = os.open(job["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1), os.dup2(output, 2), os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    if strike is not None:
        touched = strike_at(strike, job["at"], job["signal"])
    if job.get("largest_file") is not None:  # what a full disk is, for this process alone
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["largest_file"],) * 2)
    code = 0
    for arguments in job["commands"]:
        sys.argv = ["ldmkit", *arguments]
        try:
            main()
        except SystemExit as exit:
            code = exit.code or 0
        except BaseException:
            import traceback
            traceback.print_exc()
            code = 70
        if code:
            break
    if touched is not None:
        print("touched", touched())
    atexit._run_exitfuncs()  # as any process does: it waits for its own
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(code)

gc.freeze()  # else a child's first collection copies all of this process's memory
for line in sys.stdin:
    job = json.loads(line)
    if "wait" in job:
        print(os.waitstatus_to_exitcode(os.waitpid(job["wait"], 0)[1]), flush=True)
    else:
        pid = os.fork()
        if pid == 0:
            child(job)
        print(pid, flush=True)
"""


@dataclass
class Started:
    """One child of the processes' parent."""

    pid: int
    output: Path
    _processes: "Processes"

    def wait(self) -> int:
        """Its exit code; -N where signal N ended it."""
        return self._processes.ask({"wait": self.pid})


class Processes:
    """Starts `ldmkit` commands as processes."""

    def __init__(self, server: "subprocess.Popen[str]") -> None:
        self.server = server
        self._count = 0

    def ask(self, job: dict[str, Any]) -> int:
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        self.server.stdin.write(json.dumps(job) + "\n")
        self.server.stdin.flush()
        return int(self.server.stdout.readline())

    def start(
        self,
        cwd: Path,
        *commands: Sequence[str],
        env: dict[str, str] | None = None,
        strike: int | None = None,
        signal: int = 9,
        at: str = "runs/",
        largest_file: int | None = None,
    ) -> Started:
        """Begins the commands one after the other in one process.

        `strike`: the touch to be struck at, -1 only counts. `largest_file`: bytes; what would make a file longer fails.
        """
        self._count += 1
        output = cwd / f"output-{self._count}.txt"
        job = {"cwd": str(cwd), "commands": [list(c) for c in commands], "env": env or {}, "output": str(output)}
        job["largest_file"] = largest_file
        pid = self.ask(job | ({"strike": strike, "signal": signal, "at": at} if strike is not None else {}))
        return Started(pid, output, self)

    def run(self, cwd: Path, *commands: Sequence[str], **options: Any) -> tuple[int, str]:
        """(exit code, what it printed)."""
        started = self.start(cwd, *commands, **options)
        code = started.wait()
        return code, started.output.read_text()


@pytest.fixture(scope="session")
def processes() -> Iterator[Processes]:
    path = os.pathsep.join(
        [str(REPOSITORY), str(REPOSITORY / "plugins"), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    # One thread: a process that has started others' threads must not fork.
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as server:
        yield Processes(server)
        assert server.stdin is not None
        server.stdin.close()


@pytest.fixture(scope="session")
def trained(processes: Processes, tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """A workshop where every training stage ran to its end, undisturbed. Read only."""
    workshop = new_workshop(tmp_path_factory.mktemp("trained"))
    stages = ("caption", "train-vae", "encode", "train-unet", "train-t2i")
    code, output = processes.run(workshop.folder, *((stage, "tiny.toml") for stage in stages))
    assert code == 0, output
    return workshop


@pytest.fixture
def diffusers_in_double(monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers computes in float32 whatever it is given; under this fixture its own code runs in float64."""
    import torch

    monkeypatch.setattr(torch, "float32", torch.float64)
    monkeypatch.setattr(np, "float32", np.float64)
