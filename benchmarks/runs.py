"""Runs of `ldmkit` in processes of their own, small recipes for them, and every number that a run consists of."""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import psutil

REPOSITORY = Path(__file__).parents[1]
PARTS = {"train-vae": "vae", "train-unet": "unet", "train-t2i": "t2i"}
"""training stage -> the part that it makes, and its section of the recipe"""
Stage = Literal["train-vae", "train-unet", "train-t2i"]
STAGES = ("caption", "train-vae", "encode", "train-unet", "train-t2i")
"""before the export"""
ANY_QUALITY = ("gate.min_psnr=0", "gate.min_ssim=0", "gate.min_latent_signal=0", "gate.max_latent_kurtosis=0")

_TINY = """
data.size=16 text.width=8 text.heads=2 text.layers=1 text.max_tokens=16 text.vocab_size=300
vae.patch_size=1 vae.channels=[4,8] vae.latent_channels=2 vae.norm_groups=4 vae.dropout=0.1
vae.losses.gan.use='patchgan' vae.losses.gan.channels=[4,8] vae.losses.gan.norm_groups=4 vae.losses.gan.start_step=4
unet.channels=[8,8] unet.attention_levels=[1] unet.norm_groups=4 unet.time_dim=8 unet.dropout=0.1
unet.precision='bf16' unet.grad_accumulation=2
t2i.width=8 t2i.depth=1 t2i.num_heads=2 t2i.dropout=0.1 t2i.caption_dropout=0.5
vae.batch_size=8 unet.batch_size=8 t2i.batch_size=8 vae.warmup_steps=2 unet.warmup_steps=2 t2i.warmup_steps=2
"""
TINY = tuple(_TINY.split())
"""makes networks of less than 100,000 parameters of toy-cats, for 16x16 pictures, with an adversarial loss on top"""


def start(
    folder: Path,
    *words: str,
    overrides: Iterable[str] = (),
    checkout: Path = REPOSITORY,
    own_group: bool = False,
    env: Mapping[str, str] = {},
) -> subprocess.Popen[str]:
    """`ldmkit WORDS --set OVERRIDE ...` in `folder`, by the code of `checkout`; stdout and stderr are one pipe."""
    settings = [word for override in overrides for word in ("--set", override)]
    return subprocess.Popen(
        [sys.executable, "-m", "ldmkit", *words, *settings],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{checkout}{os.pathsep}{checkout / 'plugins'}", **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=own_group,
    )


def finish(folder: Path, *words: str, **options: Any) -> str:
    """What `start` prints; the benchmark ends with it where the command fails."""
    process = start(folder, *words, **options)
    output, _ = process.communicate()
    if process.returncode:
        sys.exit(f"ldmkit {' '.join(words)}: exit code {process.returncode}\n{output}")
    return output


def watched(
    command: Sequence[str],
    cwd: Path,
    *,
    held: Callable[[psutil.Process], int] = lambda process: process.memory_info().rss,
) -> tuple[int, float, int, str]:
    """(exit code, seconds, most bytes `held`, what it printed) of a command in a process of its own."""
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said:
        began, peak, code = time.perf_counter(), 0, None
        process = psutil.Popen(command, cwd=cwd, stdout=said, stderr=subprocess.STDOUT)
        while code is None:
            with suppress(psutil.Error):
                peak = max(peak, held(process))
            with suppress(psutil.TimeoutExpired):
                code = process.wait(0.01)
        seconds = time.perf_counter() - began
        said.seek(0)
        return code, seconds, peak, said.read()


def numbers(part: Path) -> dict[str, str]:
    """Every logged number of a part of a run but for times, and SHA-256 of each of its weights and caches, by name."""
    found = {}
    log = part / "metrics.jsonl"
    for line in log.read_text(encoding="utf-8").splitlines() if log.exists() else []:
        row = json.loads(line)
        values = {key: float(value).hex() for key, value in row.items() if key not in ("seconds", "loader_wait")}
        found[f"{part.name} step {row['step']}"] = json.dumps(values, sort_keys=True)
    for path in sorted(part.rglob("*")):
        if path.suffix in (".safetensors", ".bin", ".npy", ".onnx", ".png") and "loss" not in path.name:  # a plot
            found[f"{part.name}/{path.relative_to(part)}"] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found
