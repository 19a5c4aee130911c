"""Opens onnxruntime sessions on the device that was asked for, and tells which one is really in use."""

import contextlib
import io
import os
import re
import sys
import warnings
from pathlib import Path
from typing import Any, Literal, cast, get_args

from ldmkit.errors import LdmkitError

Used = Literal["cpu", "cuda", "tensorrt", "coreml", "directml"]
Provider = Literal["auto", "cpu", "cuda", "tensorrt", "coreml", "directml"]
NAMES: dict[Used, str] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "directml": "DmlExecutionProvider",
}
"""as onnxruntime calls them"""
_FATAL = 4  # the highest of onnxruntime's log severities: what it says in colours on stderr, our own message says

_CUDA_REMEDY = (
    "CUDA needs an NVIDIA GPU with its driver, the package onnxruntime-gpu (without onnxruntime beside it), and the "
    "CUDA and cuDNN that it was built for (`pip install 'onnxruntime-gpu[cuda,cudnn]'`)"
)
_REMEDIES: dict[Used, str] = {
    "cuda": _CUDA_REMEDY,
    "tensorrt": f"TensorRT needs its libraries (`pip install tensorrt-cu13`) and all that CUDA needs: {_CUDA_REMEDY}",
    "coreml": "CoreML needs macOS and the package onnxruntime",
    "directml": "DirectML needs Windows and the package onnxruntime-directml in place of onnxruntime-gpu",
}


_DRIVER = {"libcuda.so.1": " (of the NVIDIA driver)", "nvcuda.dll": " (of the NVIDIA driver)"}


class ProviderWarning(UserWarning):
    """A GPU is here and does not draw."""


def check_provider(provider: str) -> Provider:
    """`provider` itself. Raises LdmkitError where there is no such one."""
    if provider not in get_args(Provider):
        raise LdmkitError(f"provider {provider!r} is unknown; choose from {', '.join(get_args(Provider))}")
    return cast(Provider, provider)


def gpu_may_exist() -> bool:
    """Whether an NVIDIA driver is here: cheap, and without onnxruntime's messages on stderr."""
    from shutil import which

    devices = [*Path("/dev").glob("nvidia[0-9]*"), Path("/dev/dxg")]  # /dev/dxg: Windows' Linux subsystem
    return any(device.exists() for device in devices) or which("nvidia-smi") is not None


def open_session(graph: bytes | Path, *, name: str, provider: Provider, prepack: bool = True) -> tuple[Any, Used]:
    """An `onnxruntime.InferenceSession` of a graph, serialized or in a file, and the provider that it got.

    `prepack`: whether a CPU keeps a second copy of the weights, in the order that its kernels read them fastest in; a
    graph that is called once opens faster without, and leaves weights in a file beside it there until they are read.

    "auto" takes CUDA where the session really gets it, else the CPU, with a `ProviderWarning` where an NVIDIA driver
    is here. A provider by name raises LdmkitError with the remedy where the session doesn't get it:
    `get_available_providers()` lists CUDA even without a GPU, so it decides nothing.
    """
    import onnxruntime as ort

    ort.set_default_logger_severity(_FATAL)
    wanted: Used = provider if provider != "auto" else "cuda" if gpu_may_exist() else "cpu"
    if wanted == "cpu":
        return _session(graph, name, [NAMES["cpu"]], prepack), wanted
    missing: list[str] = []
    built = NAMES[wanted] in ort.get_available_providers()
    if built:
        if wanted in ("cuda", "tensorrt"):
            missing = missing_libraries(wanted)
        try:
            session = _session(graph, name, _providers(wanted), prepack)
        except LdmkitError:
            # TensorRT throws where CUDA stays silent, and a graph that the CPU cannot load either says so below.
            session = _session(graph, name, [NAMES["cpu"]], prepack)
        if _draws(session, NAMES[wanted]):
            return session, wanted
    lacks = f"onnxruntime {ort.__version__} got only the CPU"
    if missing:
        lacks += f" (these libraries are missing: {', '.join(missing)})"
    elif not built:
        lacks += f" (it was built without {wanted})"
    elif wanted in ("cuda", "tensorrt") and not gpu_may_exist():
        lacks += " (no NVIDIA driver was found)"
    if provider == "auto":
        words = f"an NVIDIA GPU seems to be here, but {lacks}. {_REMEDIES[wanted]}. `ldmkit doctor` says more"
        warnings.warn(words, ProviderWarning, stacklevel=2)
        return _session(graph, name, [NAMES["cpu"]], prepack), "cpu"
    raise LdmkitError(
        f"provider '{wanted}' was asked for, but {lacks} for {name}. {_REMEDIES[wanted]}. `ldmkit doctor` says more; "
        "`--provider cpu` draws without"
    )


def _session(graph: bytes | Path, name: str, providers: list[Any], prepack: bool) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = _FATAL
    options.intra_op_num_threads = num_threads()
    if not prepack:
        options.add_session_config_entry("session.disable_prepacking", "1")
    if providers != [NAMES["cpu"]]:
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if isinstance(graph, Path) and any("\ud800" <= letter <= "\udfff" for letter in str(graph)):
        graph = graph.read_bytes()  # its path is text to onnxruntime, and a file's name may hold any bytes
    try:
        # Its own way of falling back prints to stdout.
        return ort.InferenceSession(graph, options, providers=providers, enable_fallback=0)
    except Exception as error:  # onnxruntime's exceptions share no base class below Exception
        raise LdmkitError(f"{name} cannot be loaded by onnxruntime {ort.__version__}: {error}") from error


def _providers(wanted: Used) -> list[Any]:
    """For `InferenceSession`: the one that is wanted, and those that take the nodes it cannot."""
    # The default, EXHAUSTIVE, tries every algorithm of every convolution at each new shape, for hundreds of ms.
    cuda = (NAMES["cuda"], {"cudnn_conv_algo_search": "HEURISTIC"})
    first: dict[str, list[Any]] = {"cuda": [cuda], "tensorrt": [NAMES["tensorrt"], cuda]}
    return [*first.get(wanted, [NAMES[wanted]]), NAMES["cpu"]]


def _draws(session: Any, name: str) -> bool:
    """Whether the session really gave nodes to a provider; one that only stands in its list may have got none."""
    if name not in session.get_providers():
        return False
    if not hasattr(session, "get_provider_graph_assignment_info"):  # onnxruntime before 1.24
        return True
    return any(part.ep_name == name for part in session.get_provider_graph_assignment_info())


def num_threads() -> int:
    """Threads of a session, 0 for onnxruntime's own choice: a thread for each core of the machine.

    In a container or under `taskset` fewer cores than that may be ours, and threads that wait for each other's cores
    make it several times slower.
    """
    usable = _usable_cores()
    return 0 if usable >= (os.cpu_count() or 1) else usable


def _usable_cores(quota_file: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):  # no such file, or "max": no limit
        quota, period = map(int, quota_file.read_text().split())
        cores = min(cores, max(1, quota // period))
    return cores


def missing_libraries(provider: Literal["cuda", "tensorrt"]) -> list[str]:
    """Names of the shared libraries that onnxruntime's CUDA or TensorRT provider needs and that cannot be loaded.

    Loads those of pip's wheels first, where `onnxruntime.preload_dlls` finds them, so that a session finds them too.
    """
    import onnxruntime as ort

    words = io.StringIO()
    if hasattr(ort, "preload_dlls"):
        with contextlib.redirect_stdout(words):  # it prints what it did not find
            ort.preload_dlls()
    names = {Path(found).name: None for found in re.findall(r"Failed to load (\S+):", words.getvalue())}
    library = Path(ort.__file__).parent / "capi" / f"libonnxruntime_providers_{provider}.so"
    if library.is_file():
        with library.open("rb") as file:
            head = file.read(1 << 20)  # the names of what it is linked with stand near its beginning
        names |= {found.decode(): None for found in re.findall(rb"\0(lib(?:cu|nv)[\w-]*\.so\.\d+)(?=\0)", head)}
    return [f"{name}{_DRIVER.get(name, '')}" for name in names if not _loads(name)]


def _loads(library: str) -> bool:
    import ctypes

    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True
