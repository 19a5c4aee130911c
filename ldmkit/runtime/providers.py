"""Opens onnxruntime sessions on the device that was asked for, and tells which one is really in use."""

import contextlib
import io
import shutil
from pathlib import Path
from typing import Any, Literal, cast, get_args

from ldmkit.errors import LdmkitError

Provider = Literal["auto", "cpu", "cuda"]
_CPU, _CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
_WARNING, _ERROR, _FATAL = 2, 3, 4  # onnxruntime's log severities, the first its default


def check_provider(provider: str) -> Provider:
    """`provider` itself. Raises LdmkitError where there is no such one."""
    if provider not in get_args(Provider):
        raise LdmkitError(f"provider {provider!r} is unknown; choose from {', '.join(get_args(Provider))}.")
    return cast(Provider, provider)


def gpu_may_exist() -> bool:
    """Whether an NVIDIA driver is here: cheap, and without onnxruntime's messages on stderr."""
    devices = [*Path("/dev").glob("nvidia[0-9]*"), Path("/dev/dxg")]  # /dev/dxg: Windows' Linux subsystem
    return any(device.exists() for device in devices) or shutil.which("nvidia-smi") is not None


def open_session(graph: bytes, *, name: str, provider: Provider) -> tuple[Any, Literal["cpu", "cuda"]]:
    """An `onnxruntime.InferenceSession` of a serialized graph, and the provider that it got.

    "auto" takes CUDA where the session really gets it, else the CPU, in silence. "cuda" raises LdmkitError where
    the session doesn't get it: `get_available_providers()` lists CUDA even without a GPU, so it decides nothing.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = _ERROR  # the graph optimizer's warnings are of no use to who draws
    providers = [_CPU]
    gpu = gpu_may_exist()
    tries_cuda = (provider == "cuda" or (provider == "auto" and gpu)) and _CUDA in ort.get_available_providers()
    if tries_cuda:
        providers = [_CUDA, _CPU]
        if provider == "auto" or not gpu:  # else its words on stderr say what CUDA lacks
            ort.set_default_logger_severity(_FATAL)
        if hasattr(ort, "preload_dlls"):
            with contextlib.redirect_stdout(io.StringIO()):  # it prints what it did not find
                ort.preload_dlls()
    try:
        session = ort.InferenceSession(graph, options, providers=providers)
    except Exception as error:  # onnxruntime's exceptions share no base class below Exception
        raise LdmkitError(f"{name} cannot be loaded by onnxruntime {ort.__version__}: {error}") from error
    finally:
        if tries_cuda:
            ort.set_default_logger_severity(_WARNING)
    used: Literal["cpu", "cuda"] = "cuda" if _CUDA in session.get_providers() else "cpu"
    if provider == "cuda" and used != "cuda":
        raise LdmkitError(
            f"provider 'cuda' was asked for, but onnxruntime {ort.__version__} gave {name} only the CPU"
            f"{'' if gpu else ': no NVIDIA driver was found'}. CUDA needs an NVIDIA GPU with its driver, the package "
            "onnxruntime-gpu (without onnxruntime beside it), and the CUDA and cuDNN that it was built for "
            "(`pip install 'onnxruntime-gpu[cuda,cudnn]'`). `--provider cpu` draws without."
        )
    return session, used
