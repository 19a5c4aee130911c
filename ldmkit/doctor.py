"""`ldmkit doctor`: what ldmkit can use of this machine, and what to do about the rest. Imports no torch itself."""

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import ldmkit
from ldmkit.errors import LdmkitError

if TYPE_CHECKING:
    from packaging.requirements import Requirement

State = Literal["ok", "note", "broken"]

WHEELS = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino", "onnxruntime-qnn")
"""distributions that all install the one package `onnxruntime`, over each other's files"""
_LEAST_FREE = 2 << 30
_SECONDS = 60.0
"""for another program to answer"""

# y = -x on one number: `g (float[1] x) => (float[1] y) {y = Neg(x)}`, ir_version 8, opset 18.
NEGATION = bytes.fromhex(
    "08083a340a0d0a017812017922034e65673a001201675a0f0a0178120a0a08080112040a02080162"
    "0f0a0179120a0a08080112040a02080142040a001012"
)


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    name: str
    state: State
    """ok; note: it works, and could be better or is not there to be used; broken: ldmkit does not work like this"""
    found: str
    meaning: str = ""
    remedy: str = ""
    """what to do, empty where nothing needs doing"""


def examine(runs_torch: bool = True) -> list[Finding]:
    """Looks at everything; no check stops the others. `runs_torch`: import torch too, in a process of its own."""
    checks: list[Callable[[], Iterator[Finding]]] = [_python, _packages, _pillow, _onnxruntime, _gpu, _providers]
    checks += [_torch] if runs_torch else []
    checks += [_plugins, _bundle, _processors, _disk, _caches]
    findings = []
    for check in checks:
        try:
            findings += list(check())
        except Exception as error:  # a broken install leads to almost any exception, and is what this is for
            name = check.__name__.strip("_")
            findings.append(Finding(name, "broken", f"{type(error).__name__}: {error}", "this could not be checked"))
    return findings


def _python() -> Iterator[Finding]:
    found = f"{platform.python_version()} ({sys.executable}), {platform.system()} {platform.machine()}"
    yield Finding("python", "ok", found)
    yield Finding("ldmkit", "ok", f"{ldmkit.__version__} ({Path(ldmkit.__file__).parent})")


_MEANING = {
    "": "drawing needs these",
    "train": "training and `ldmkit export` need these; drawing does not",
    "ui": "`ldmkit ui` needs these",
}


def _packages() -> Iterator[Finding]:
    from packaging.requirements import Requirement

    try:
        lines = importlib.metadata.requires("ldmkit") or []
    except importlib.metadata.PackageNotFoundError:
        yield Finding(
            "packages",
            "broken",
            "ldmkit is not installed, only imported",
            "its plugins (samplers, text encoders, losses) are found through the installed package",
            "pip install . (or -e .) in the repository",
        )
        return
    left = [each for each in map(Requirement, lines) if each.name not in WHEELS]  # which of them, `_onnxruntime` says
    for extra in _MEANING:
        needed = [each for each in left if each.marker is None or each.marker.evaluate({"extra": extra})]
        left = [each for each in left if each not in needed]
        if needed:
            yield _installed(extra, needed)


def _installed(extra: str, requirements: "list[Requirement]") -> Finding:
    have, lacking = [], []
    for needed in requirements:
        version = _version(needed.name)
        if version is None:
            lacking.append(needed.name)
        elif not needed.specifier.contains(version, prereleases=True):
            lacking.append(f"{needed.name} {version} ({needed.specifier} is needed)")
        else:
            have.append(f"{needed.name} {version}")
    name = f"packages [{extra}]" if extra else "packages"
    if not lacking:
        return Finding(name, "ok", ", ".join(have), _MEANING[extra])
    whole = f"pip install 'ldmkit[{extra}]'" if extra else "pip install --upgrade ldmkit"
    found = f"missing or too old: {', '.join(lacking)}"
    return Finding(name, "note" if extra else "broken", found, _MEANING[extra], whole)


def _pillow() -> Iterator[Finding]:
    from packaging.version import Version

    version = _version("pillow")
    if version is not None and Version(version) < Version("13"):
        yield Finding(
            "pillow",
            "note",
            f"pillow {version}",
            "its decoders have holes that 13 mends (CVE-2026-112403): a stranger's picture may use them",
            "pip install --upgrade pillow; where gradio holds it back, keep ldmkit[ui] in an environment of its own",
        )


def _onnxruntime() -> Iterator[Finding]:
    wheels = {name: version for name in WHEELS if (version := _version(name)) is not None}
    found = ", ".join(f"{name} {version}" for name, version in wheels.items())
    if len(wheels) > 1:
        yield Finding(
            "onnxruntime",
            "broken",
            f"{len(wheels)} wheels at once: {found}",
            "they write the same files: the one installed last is used, and removing either breaks the other",
            f"pip uninstall -y {' '.join(wheels)} and then pip install only one of them",
        )
    elif not wheels or find_spec("onnxruntime") is None:
        yield Finding("onnxruntime", "broken", found or "not installed", "nothing can be drawn", "pip install ldmkit")
    else:
        import onnxruntime

        built = ", ".join(onnxruntime.get_available_providers())
        yield Finding("onnxruntime", "ok", found, f"built with {built}; which of them work stands below")


def _gpu() -> Iterator[Finding]:
    from ldmkit.runtime.providers import gpu_may_exist

    if shutil.which("nvidia-smi") is None:
        if gpu_may_exist():
            yield Finding("gpu", "note", "an NVIDIA device, and no nvidia-smi", "its driver may not be installed whole")
        else:
            yield Finding("gpu", "ok", "no NVIDIA driver", "the CPU draws and trains; Apple's GPUs: see torch")
        return
    done = _run("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader")
    if done.returncode:
        words = (done.stdout + done.stderr).strip().splitlines() or [f"exit code {done.returncode}"]
        meaning = "the driver does not answer, so nothing can use the GPU"
        yield Finding(
            "gpu", "note", f"nvidia-smi: {words[0]}", meaning, "reinstall the driver, or restart if it was just updated"
        )
        return
    for line in done.stdout.strip().splitlines():
        yield Finding("gpu", "ok", line, "name, driver, memory")


def _providers() -> Iterator[Finding]:
    """Opens a session on each provider that onnxruntime was built with, and computes one number."""
    import numpy as np
    import onnxruntime

    from ldmkit.runtime.providers import NAMES, gpu_may_exist, missing_libraries, open_session

    for provider, name in NAMES.items():
        label = f"provider {provider}"
        if name not in onnxruntime.get_available_providers():
            continue
        if provider in ("cuda", "tensorrt") and not gpu_may_exist():
            missing = [library for library in missing_libraries(provider) if "driver" not in library]
            found = "not used: no NVIDIA driver" + (f"; also missing: {', '.join(missing)}" if missing else "")
            yield Finding(label, "ok", found)
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                session, _ = open_session(NEGATION, name="a graph of one node", provider=provider)
            (output,) = session.run(None, {"x": np.array([2], np.float32)})
        except LdmkitError as error:
            meaning = f"--provider {provider} is an error; auto draws on the CPU"
            yield Finding(label, "broken" if provider == "cpu" else "note", str(error), meaning)
            continue
        if output[0] == -2:
            yield Finding(label, "ok", "draws", f"--provider {provider} works")
        else:
            yield Finding(label, "broken", f"computes -(2) = {output[0]}", "pictures would be wrong")


_TORCH = """
import json, torch
cuda = torch.cuda.is_available()
print(json.dumps({
    "version": torch.__version__,
    "cuda": torch.version.cuda,
    "cudnn": torch.backends.cudnn.version() if cuda else None,
    "devices": [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())] if cuda else [],
    "mps": torch.backends.mps.is_available(),
    "threads": torch.get_num_threads(),
}))
"""


def _torch() -> Iterator[Finding]:
    from ldmkit.runtime.providers import gpu_may_exist

    if find_spec("torch") is None:
        meaning = "drawing needs none; training does"
        yield Finding("torch", "note", "not installed", meaning, "pip install 'ldmkit[train]'")
        return
    done = _run(sys.executable, "-c", _TORCH)
    if done.returncode:
        words = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        found = f"cannot be imported: {words[-1]}"
        yield Finding("torch", "broken", found, "training stops", "pip install --upgrade torch")
        return
    facts = json.loads(done.stdout.splitlines()[-1])
    found = f"{facts['version']}, {facts['threads']} threads"
    if facts["devices"]:
        found += f", CUDA {facts['cuda']}, cuDNN {facts['cudnn']}"
        yield Finding("torch", "ok", found, f"trains on {', '.join(facts['devices'])}")
    elif facts["mps"]:
        yield Finding("torch", "ok", found, "trains on the CPU; Apple's GPU is here, and ldmkit does not train on it")
    elif gpu_may_exist():
        found += f", built for CUDA {facts['cuda']}" if facts["cuda"] else ", built without CUDA"
        meaning = "there is an NVIDIA driver, and torch trains on the CPU all the same"
        remedy = "install the build for your driver: https://pytorch.org/get-started/locally"
        yield Finding("torch", "note", found, meaning, remedy)
    else:
        yield Finding("torch", "ok", found, "trains on the CPU")
    if not facts["devices"]:
        yield _compiler()


def _compiler() -> Finding:
    """What torch.compile makes code for a CPU with."""
    programs = {"Darwin": "clang++", "Windows": "cl"}
    compiler = os.environ.get("CXX") or programs.get(platform.system(), "g++")
    header = Path(sysconfig.get_path("include")) / "Python.h"
    missing = [each for each, there in ((compiler, shutil.which(compiler)), (header, header.is_file())) if not there]
    if not missing:
        return Finding("compiler", "ok", compiler, "long trainings of a transformer are compiled")
    found = f"missing: {', '.join(map(str, missing))}"
    meaning = "long trainings of a transformer are not compiled, and take up to twice the time"
    return Finding("compiler", "note", found, meaning, "on Debian and Ubuntu: apt install g++ python3-dev")


def _plugins() -> Iterator[Finding]:
    from ldmkit.components.registry import Registry

    registry = Registry.load()
    for failure in registry.failures:
        yield Finding("plugin", "broken", str(failure), "what it offers cannot be named in a recipe")
    yield Finding("plugins", "ok", f"{len(registry.components)} components")


def _bundle() -> Iterator[Finding]:
    from ldmkit import shipped
    from ldmkit.runtime.bundle import Bundle
    from ldmkit.runtime.find import default_bundle

    try:
        folder = default_bundle(Path("exports"), shipped.exports_dir())
    except LdmkitError as error:
        yield Finding("bundle", "note", str(error), "`ldmkit generate` needs --bundle DIR")
        return
    try:
        Bundle.load(folder).verify()
    except LdmkitError as error:
        yield Finding("bundle", "broken", str(error), "`ldmkit generate` would draw from this one")
        return
    yield Finding("bundle", "ok", str(folder), "what `ldmkit generate` draws from; its files match their hashes")


def _processors() -> Iterator[Finding]:
    from ldmkit.runtime.providers import num_threads

    threads = num_threads()
    found = f"{os.cpu_count()} cores" + (f", {threads} of them for this process" if threads else "")
    yield Finding("cores", "ok", found, "drawing takes a thread for each core that it may use")


def _disk() -> Iterator[Finding]:
    free = shutil.disk_usage(Path.cwd()).free
    found = f"{free / 2**30:.1f} GiB free in {Path.cwd()}"
    if free >= _LEAST_FREE:
        yield Finding("disk", "ok", found)
    else:
        meaning = "a run keeps latents, checkpoints and averages; `ldmkit plan` says how much"
        yield Finding("disk", "note", found, meaning, "make room before you train")


def _caches() -> Iterator[Finding]:
    """Folders of downloads, as the libraries' own environment variables place them."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    hub = Path(os.environ.get("HF_HOME") or home / "huggingface")
    places = {
        "hub cache": Path(os.environ.get("HF_HUB_CACHE") or hub / "hub"),
        "torch cache": Path(os.environ.get("TORCH_HOME") or home / "torch"),
    }
    for name, folder in places.items():
        if not folder.is_dir():
            yield Finding(name, "ok", f"{folder} is not there yet", "models that a recipe names are downloaded to it")
            continue
        size = sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
        meaning = "may be deleted; is downloaded again when needed"
        yield Finding(name, "ok", f"{folder}: {size / 2**20:.0f} MiB", meaning)


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _run(*command: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=_SECONDS)
