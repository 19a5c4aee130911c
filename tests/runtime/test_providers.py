"""Which provider really draws, and what is said where it is not the one that was asked for."""

import re
import shutil
import subprocess
import warnings
from collections.abc import Callable
from pathlib import Path

import onnx.parser
import onnxruntime
import pytest

from ldmkit.doctor import NEGATION
from ldmkit.errors import LdmkitError
from ldmkit.runtime import providers
from ldmkit.runtime.bundle import Bundle
from ldmkit.runtime.providers import NAMES, ProviderWarning

MakeBundle = Callable[..., Path]

WITH_CUDA = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
without_gpu = pytest.mark.skipif(
    not WITH_CUDA or providers.gpu_may_exist(), reason="needs onnxruntime-gpu on a machine without a GPU"
)


@without_gpu
@pytest.mark.parametrize("provider", ["cuda", "tensorrt", "coreml", "directml"])
def test_a_provider_by_name_is_an_error_where_the_session_lacks_it(
    make_bundle: MakeBundle, provider: str, capfd: pytest.CaptureFixture[str]
) -> None:
    bundle = Bundle.load(make_bundle(), provider=provider)
    with pytest.raises(LdmkitError, match=f"provider '{provider}' was asked for.*--provider cpu` draws") as caught:
        bundle.generate()
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")  # not onnxruntime's words as well
    if provider in ("cuda", "tensorrt"):
        assert "onnxruntime-gpu[cuda,cudnn]" in str(caught.value)
    else:
        assert f"built without {provider}" in str(caught.value)


def test_an_unknown_provider(make_bundle: MakeBundle) -> None:
    with pytest.raises(LdmkitError, match="provider 'gpu' is unknown; choose from auto, cpu, cuda, tensorrt"):
        Bundle.load(make_bundle(), provider="gpu")


@without_gpu
def test_auto_warns_once_where_a_driver_is_here_and_cuda_is_not_used(
    make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(providers, "gpu_may_exist", lambda: True)
    bundle = Bundle.load(make_bundle())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        bundle.generate("cat")  # three graphs
    assert [warning.category for warning in caught] == [ProviderWarning]
    assert "onnxruntime-gpu[cuda,cudnn]" in str(caught[0].message)
    assert bundle.provider == "cpu"
    assert capfd.readouterr() == ("", "")


@without_gpu
def test_auto_is_silent_without_a_gpu(make_bundle: MakeBundle) -> None:
    assert Bundle.load(make_bundle()).provider == "cpu"  # a warning would be an error


@pytest.mark.skipif(not WITH_CUDA or shutil.which("readelf") is None, reason="needs onnxruntime-gpu and readelf")
def test_missing_libraries_are_what_the_providers_file_is_linked_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(providers, "_loads", lambda name: False)
    library = Path(onnxruntime.__file__).parent / "capi" / "libonnxruntime_providers_cuda.so"
    read = subprocess.run(["readelf", "-d", library], capture_output=True, text=True, check=True).stdout
    needed = set(re.findall(r"\(NEEDED\).*\[(lib(?:cu|nv).*)\]", read))
    assert needed
    assert needed <= {name.split(" ")[0] for name in providers.missing_libraries("cuda")}


@pytest.mark.skipif(not WITH_CUDA, reason="needs onnxruntime-gpu")
def test_the_libraries_that_are_missing_are_named_and_those_that_load_are_not(
    make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(providers, "_loads", lambda name: not name.startswith("libcublas"))
    missing = providers.missing_libraries("cuda")
    assert missing
    assert all(name.startswith("libcublas") for name in missing)
    if not providers.gpu_may_exist():
        with pytest.raises(LdmkitError, match=re.escape(f"(these libraries are missing: {', '.join(missing)})")):
            Bundle.load(make_bundle(), provider="cuda").generate()


@without_gpu
def test_onnxruntime_says_nothing_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    severities: list[int] = []
    monkeypatch.setattr(onnxruntime, "set_default_logger_severity", severities.append)
    with pytest.raises(LdmkitError):
        providers.open_session(NEGATION, name="graph", provider="cuda")
    assert severities == [4]  # fatal alone


def test_a_session_takes_the_threads_that_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(providers, "num_threads", lambda: 3)
    session, used = providers.open_session(NEGATION, name="graph", provider="cpu")
    assert (session.get_session_options().intra_op_num_threads, used) == (3, "cpu")


def test_a_library_that_loads_is_not_missing() -> None:
    assert providers._loads("libc.so.6") == (shutil.which("ldconfig") is not None or Path("/lib").exists())
    assert not providers._loads("libno-such-thing.so.1")


def test_a_provider_that_got_no_node_does_not_draw() -> None:
    graph = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18]> g (float[2] x) => (float[2] y) {y = Neg(x)}'
    )
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    session = onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    assert providers._draws(session, NAMES["cpu"])

    class Listed:
        """A session that lists CUDA and gave it nothing."""

        get_provider_graph_assignment_info = session.get_provider_graph_assignment_info

        def get_providers(self) -> list[str]:
            return [NAMES["cuda"], NAMES["cpu"]]

    assert not providers._draws(Listed(), NAMES["cuda"])
    assert not providers._draws(session, NAMES["cuda"])


@pytest.mark.parametrize(("quota", "cores"), [("max 100000", 64), ("250000 100000", 2), ("50000 100000", 1), ("", 64)])
def test_threads_fit_a_containers_quota(
    quota: str, cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpu.max").write_text(quota)
    monkeypatch.setattr(providers.os, "sched_getaffinity", lambda process: set(range(64)), raising=False)
    monkeypatch.setattr(providers.os, "cpu_count", lambda: 64)
    assert providers._usable_cores(tmp_path / "cpu.max") == cores


def test_threads_fit_taskset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(providers.sys, "platform", "linux")
    monkeypatch.setattr(providers.os, "cpu_count", lambda: 4)
    monkeypatch.setattr(providers.os, "sched_getaffinity", lambda process: {1, 2}, raising=False)
    assert providers.num_threads() == 2
    monkeypatch.setattr(providers.os, "sched_getaffinity", lambda process: {0, 1, 2, 3}, raising=False)
    assert providers._usable_cores(Path("none")) == 4
