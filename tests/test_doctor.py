"""`ldmkit doctor` on machines with something wrong: made by real metadata, real programs and real modules."""

import importlib.metadata
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import onnx
import onnx.parser
import pytest
from click.testing import CliRunner
from packaging.requirements import Requirement

from ldmkit import doctor
from ldmkit.cli import cli


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)


@pytest.fixture
def distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """distribution(name, version): as pip would have left it."""

    def install(name: str, version: str) -> None:
        folder = tmp_path / "site" / f"{name.replace('-', '_')}-{version}.dist-info"
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        monkeypatch.syspath_prepend(str(tmp_path / "site"))

    return install


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """program(name, shell script): first on the PATH."""

    def write(name: str, script: str) -> None:
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setenv("PATH", str(path.parent), prepend=":")

    return write


def named(check: Callable[[], object], name: str) -> doctor.Finding:
    (found,) = [finding for finding in check() if finding.name == name]  # type: ignore[attr-defined]
    return found


def test_nothing_is_broken_where_the_tests_run() -> None:
    result = CliRunner().invoke(cli, ["doctor", "--no-torch", "--json"], standalone_mode=False, catch_exceptions=False)
    report = json.loads(result.stdout)
    assert [each for each in report["findings"] if each["state"] == "broken"] == []
    assert (report["broken"], result.return_value) == (0, 0)
    names = [each["name"] for each in report["findings"]]
    assert {"python", "packages", "onnxruntime", "gpu", "provider cpu", "plugins", "bundle", "disk"} <= set(names)
    versions = {each["name"]: each["found"] for each in report["findings"]}
    assert f"numpy {importlib.metadata.version('numpy')}" in versions["packages"]


def test_two_onnxruntime_wheels_are_broken(distribution: Callable[[str, str], None]) -> None:
    have = {name for name in doctor.WHEELS if doctor._version(name)}
    other = "onnxruntime" if "onnxruntime-gpu" in have else "onnxruntime-gpu"
    distribution(other, "1.99.0")
    found = named(doctor._onnxruntime, "onnxruntime")
    assert found.state == "broken"
    assert f"{other} 1.99.0" in found.found
    assert all(name in found.remedy for name in {other, *have})
    result = CliRunner().invoke(cli, ["doctor", "--no-torch"], standalone_mode=False, catch_exceptions=False)
    assert result.return_value == 1
    assert "broken  onnxruntime" in result.stdout
    assert result.stdout.endswith("1 broken\n")


def test_an_old_or_missing_package(distribution: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    distribution("numpy", "1.9.3")
    found = named(doctor._packages, "packages")
    assert found.state == "broken"
    assert "numpy 1.9.3 (>=1.26 is needed)" in found.found
    lacking = doctor._installed("train", [Requirement("no-such-package>=1.0")])
    assert (lacking.state, lacking.remedy) == ("note", "pip install 'ldmkit[train]'")
    assert doctor._installed("", [Requirement("no-such-package>=1.0")]).state == "broken"


def test_the_declared_requirements_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """An extra's own packages, those of other machines left out; builds and early versions count by their numbers."""
    lines = [
        "numpy>=1.26",
        "never>=1; sys_platform == 'nowhere'",
        "torch>=2.14; extra == 'train'",
        "onnx>=9; extra == 'train'",
        "onnxruntime>=99",
        "pytest>=8; extra == 'dev'",
    ]
    versions = {"numpy": "2.0rc1", "torch": "2.14.1+cpu", "onnx": "10.0"}
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: lines)
    monkeypatch.setattr(doctor, "_version", versions.get)
    assert [(each.name, each.state, each.found) for each in doctor._packages()] == [
        ("packages", "ok", "numpy 2.0rc1"),
        ("packages [train]", "ok", "torch 2.14.1+cpu, onnx 10.0"),
    ]


def test_gpus_are_what_nvidia_smi_says(program: Callable[[str, str], None]) -> None:
    program("nvidia-smi", 'echo "NVIDIA H100, 580.1, 81559 MiB"; echo "NVIDIA L4, 580.1, 23034 MiB"')
    assert [finding.found for finding in doctor._gpu()] == [
        "NVIDIA H100, 580.1, 81559 MiB",
        "NVIDIA L4, 580.1, 23034 MiB",
    ]
    program("nvidia-smi", 'echo "Failed to initialize NVML: Driver/library version mismatch"; exit 18')
    (found,) = doctor._gpu()
    assert (found.state, found.remedy != "") == ("note", True)
    assert "version mismatch" in found.found


def test_torch_is_looked_at_from_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torch.py").write_text("raise OSError('libc10.so: cannot open shared object file')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (found,) = doctor._torch()
    assert found.state == "broken"
    assert "libc10.so: cannot open" in found.found
    (tmp_path / "torch.py").write_text(
        "from types import SimpleNamespace as N\n__version__ = '9.9'\nversion = N(cuda='13.0')\n"
        "cuda = N(is_available=lambda: True, device_count=lambda: 1, get_device_name=lambda k: 'NVIDIA H100')\n"
        "backends = N(cudnn=N(version=lambda: 91000), mps=N(is_available=lambda: False))\nget_num_threads = lambda: 3\n"
    )
    (found,) = doctor._torch()
    assert (found.state, found.found) == ("ok", "9.9, 3 threads, CUDA 13.0, cuDNN 91000")
    assert found.meaning == "trains on NVIDIA H100"
    monkeypatch.setitem(sys.modules, "torch", None)  # as where it is not installed
    (found,) = doctor._torch()
    assert (found.state, found.remedy) == ("note", "pip install 'ldmkit[train]'")


def test_a_compiler_without_pythons_headers_is_of_no_use(
    tmp_path: Path, program: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sysconfig.get_path", lambda _name: str(tmp_path))
    monkeypatch.setenv("CXX", "some-compiler")
    assert doctor._compiler().found == f"missing: some-compiler, {tmp_path / 'Python.h'}"
    program("some-compiler", "")
    found = doctor._compiler()
    assert (found.state, found.found) == ("note", f"missing: {tmp_path / 'Python.h'}")
    (tmp_path / "Python.h").touch()
    assert (doctor._compiler().state, doctor._compiler().found) == ("ok", "some-compiler")


def test_a_damaged_bundle_is_broken(tmp_path: Path) -> None:
    folder = tmp_path / "exports" / "mine"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")
    assert named(doctor._bundle, "bundle").state == "ok"  # no bundle at all: the one that comes with ldmkit draws
    from ldmkit import shipped

    source = shipped.exports_dir()
    assert source is not None
    for path in (source / "toy-cats").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    with (folder / "unet.onnx").open("r+b") as file:
        file.write(b"!")
    found = named(doctor._bundle, "bundle")
    assert found.state == "broken"
    assert "unet.onnx does not match its SHA-256" in found.found


def test_one_check_that_fails_stops_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> None:
        raise RuntimeError("out of luck")

    monkeypatch.setattr(doctor, "_disk", fails)
    findings = doctor.examine(runs_torch=False)
    assert [(each.name, each.found) for each in findings if each.state == "broken"] == [
        ("fails", "RuntimeError: out of luck")
    ]
    assert findings[-1].name == "torch cache"


def test_caches_are_measured(tmp_path: Path) -> None:
    (tmp_path / "hf" / "hub" / "models").mkdir(parents=True)
    (tmp_path / "hf" / "hub" / "models" / "weights").write_bytes(bytes(3 << 20))
    (tmp_path / "hf" / "hub" / "again").symlink_to("models/weights")  # takes no room
    assert named(doctor._caches, "hub cache").found == f"{tmp_path / 'hf' / 'hub'}: 3 MiB"


@pytest.mark.parametrize(
    ("variables", "hub", "torch"),
    [
        ({"XDG_CACHE_HOME": "xdg"}, "xdg/huggingface/hub", "xdg/torch"),
        ({"XDG_CACHE_HOME": "xdg", "HF_HOME": "hf", "TORCH_HOME": "th"}, "hf/hub", "th"),
        ({"HF_HOME": "hf", "HF_HUB_CACHE": "elsewhere"}, "elsewhere", "home/.cache/torch"),
        ({}, "home/.cache/huggingface/hub", "home/.cache/torch"),
    ],
)
def test_caches_lie_where_the_libraries_put_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], hub: str, torch: str
) -> None:
    """huggingface_hub's and torch.hub's documented variables."""
    for name in ("XDG_CACHE_HOME", "HF_HOME", "HF_HUB_CACHE", "TORCH_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name, folder in variables.items():
        monkeypatch.setenv(name, str(tmp_path / folder))
    found = {each.name: each.found for each in doctor._caches()}
    assert found["hub cache"].startswith(f"{tmp_path / hub} is not there yet")
    assert found["torch cache"].startswith(f"{tmp_path / torch} is not there yet")


@pytest.mark.parametrize(("free", "state"), [(1 << 30, "note"), (3 << 30, "ok")])
def test_little_room_on_the_disk(monkeypatch: pytest.MonkeyPatch, free: int, state: str) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    found = named(doctor._disk, "disk")
    assert (found.state, found.found.split(" free")[0]) == (state, f"{free >> 30}.0 GiB")


def test_a_plugin_that_does_not_load_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "site" / "poor-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: poor\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[ldmkit]\npoor = a_module_that_is_not_there\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    found = named(doctor._plugins, "plugin")
    assert found.state == "broken"
    assert "poor 1.0" in found.found


def test_the_test_graph_is_what_its_comment_says() -> None:
    model = onnx.load_model_from_string(doctor.NEGATION)
    onnx.checker.check_model(model, full_check=True)
    header = '<ir_version: 8, opset_import: ["" : 18]>'
    assert model == onnx.parser.parse_model(header + "g (float[1] x) => (float[1] y) {y = Neg(x)}")


@pytest.mark.parametrize(("version", "said"), [("12.3.0", True), ("13.0.0", False), ("13.1", False), ("9.5", True)])
def test_a_pillow_with_known_holes_is_told_of(version: str, said: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_version", lambda name: {"pillow": version}.get(name))
    assert [finding.state for finding in doctor._pillow()] == ["note"] * said
