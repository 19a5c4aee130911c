"""The registry: discovery through real distributions on disk, names, options, failures."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from ldmkit import LdmkitError
from ldmkit.cli import cli
from ldmkit.components import hookspecs
from ldmkit.components.registry import KINDS, Registry

REPOSITORY = Path(__file__).parents[2]

Install = Callable[..., Path]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Puts a distribution with one module and one entry point on sys.path, as pip would lay it out."""

    def installed(module: str, code: str, *, distribution: str | None = None, version: str = "2.1") -> Path:
        distribution = distribution or module.replace("_", "-")
        site = tmp_path / f"site-{distribution}-{module}"
        info = site / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        (site / f"{module}.py").write_text(code)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[ldmkit]\n{module}_entry = {module}\n")
        monkeypatch.syspath_prepend(site)
        monkeypatch.delitem(sys.modules, module, raising=False)
        return site

    return installed


def a_file(folder: Path, name: str, code: str) -> Path:
    path = folder / name
    path.write_text(code)
    return path


def sampler_code(name: str) -> str:
    return f"""
from ldmkit import hookimpl
@hookimpl
def register_samplers():
    return {{"{name}": Walk}}
class Walk:
    def __init__(self, *, steps: int = 3) -> None:
        self.steps = steps
"""


def test_installed_plugin_is_found_with_its_package(install: Install) -> None:
    install("third_walk", sampler_code("third"), distribution="third-party", version="2.1")
    component = Registry.load().get("sampler", "third")
    assert (component.kind, component.name, component.plugin.distribution, component.plugin.version) == (
        "sampler",
        "third",
        "third-party",
        "2.1",
    )
    assert component.factory.__name__ == "Walk"


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import a_module_that_is_not_there", "ModuleNotFoundError: No module named 'a_module_that_is_not_there'"),
        ("raise ValueError('two\\nlines')", "ValueError: two lines"),
        ("import sys; sys.exit('bye')", "SystemExit: bye"),
        (sampler_code("half").replace("steps: int", "steps"), "the option 'steps' has no type"),
        (sampler_code("half").replace("*, steps: int = 3", "**rest: int"), "cannot be an option"),
        (sampler_code("half").replace("steps", "use"), "use: int = 3 cannot be an option"),
        (sampler_code("half").replace("*, steps: int", "*, steps: Unknown"), "NameError: name 'Unknown'"),
        (sampler_code("half").replace('{"half": Walk}', "Walk"), "must return a mapping"),
        (sampler_code("half").replace("register_samplers", "register_samplrs"), "unknown hook 'register_samplrs'"),
        (
            sampler_code("half") + "@hookimpl\ndef register_losses():\n    raise RuntimeError('later hook')\n",
            "RuntimeError: later hook",
        ),
    ],
)
def test_broken_plugin_is_reported_and_stops_nobody(install: Install, code: str, reason: str) -> None:
    install("aa_broken", code, distribution="broken-party")
    install("zz_sound", sampler_code("sound"))
    registry = Registry.load()
    assert "sound" in registry.names("sampler")
    assert "half" not in registry.names("sampler")  # not even the hooks that went well
    assert not registry.manager.has_plugin("broken-party:aa_broken_entry")
    (failure,) = [failure for failure in registry.failures if failure.plugin.distribution == "broken-party"]
    assert reason in failure.reason
    assert "\n" not in failure.reason
    with pytest.raises(LdmkitError) as raised:
        registry.get("sampler", "soundd")
    assert 'did you mean "sound"?' in str(raised.value)
    assert 'plugin "aa_broken_entry" of broken-party 2.1 failed to load' in str(raised.value)
    assert reason in str(raised.value)


def test_two_plugins_with_one_name_are_both_named(install: Install, tmp_path: Path) -> None:
    install("first_walk", sampler_code("walk"), distribution="first-party")
    path = a_file(tmp_path, "second_walk.py", sampler_code("walk"))
    with pytest.raises(LdmkitError, match=r'two plugins offer the sampler "walk": .*first-party 2\.1.*second_walk\.py'):
        Registry.load([path])


def test_file_plugin_leaves_sys_path_alone_and_has_a_module_of_its_own(tmp_path: Path) -> None:
    before = list(sys.path)
    (tmp_path / "other").mkdir()
    first = a_file(tmp_path, "same.py", sampler_code("one"))
    second = a_file(tmp_path / "other", "same.py", sampler_code("two"))
    registry = Registry.load([first, second, first])
    assert sys.path == before
    one, two = (registry.get("sampler", name) for name in ("one", "two"))
    assert one.factory.__module__ != two.factory.__module__
    assert one.plugin.distribution == str(first.resolve())


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("bad.py", "1 / 0", "ZeroDivisionError: division by zero"),
        ("bad.py", "def (", "SyntaxError"),
        ("bad.py", "from ldmkit import hookimpl\n@hookimpl\ndef register_samplers():\n  return 3", "not a plugin"),
        ("bad.txt", "", "must end in .py"),
    ],
)
def test_failing_file_is_an_error_naming_it(tmp_path: Path, name: str, code: str, words: str) -> None:
    modules = set(sys.modules)
    with pytest.raises(LdmkitError) as raised:
        Registry.load([a_file(tmp_path, name, code)])
    assert str(tmp_path / name) in str(raised.value)
    assert words in str(raised.value)
    if "not a plugin" not in words:
        assert not {module for module in set(sys.modules) - modules if module.startswith("ldmkit_file_")}


def test_missing_file_is_an_error_naming_it(tmp_path: Path) -> None:
    with pytest.raises(LdmkitError, match=r"gone\.py: no such plugin file"):
        Registry.load([tmp_path / "gone.py"])


def test_what_a_component_finds_wrong_itself_names_the_section(tmp_path: Path) -> None:
    code = sampler_code("picky").replace("self.steps = steps", "raise LdmkitError('steps must be odd')")
    path = a_file(tmp_path, "picky.py", code.replace("import hookimpl", "import LdmkitError, hookimpl"))
    with pytest.raises(LdmkitError, match=r'^\[sampler\] use = "picky": steps must be odd$'):
        Registry.load([path]).build("sampler", {"use": "picky"}, where="[sampler]")


def test_log_metrics_reaches_every_plugin(tmp_path: Path) -> None:
    code = """
from ldmkit import hookimpl
seen = []
@hookimpl
def log_metrics(run_dir, stage, step, metrics):
    seen.append((run_dir, stage, step, metrics))
"""
    registry = Registry.load([a_file(tmp_path, "logger.py", code)])
    registry.hook.log_metrics(run_dir=tmp_path, stage="train-vae", step=3, metrics={"loss": 0.5})
    module = registry.manager.get_plugin(f"{(tmp_path / 'logger.py').resolve()}:logger")
    assert module.seen == [(tmp_path, "train-vae", 3, {"loss": 0.5})]


def test_command_lists_components_options_and_failures(install: Install) -> None:
    install("aa_broken", "import a_module_that_is_not_there", distribution="broken-party")
    path = str(Path(__file__).with_name("tall_plugin.py"))
    listed = CliRunner().invoke(cli, ["plugins", "--plugin", path])
    assert listed.exit_code == 0
    (row,) = [line for line in listed.output.splitlines() if line.split()[:2] == ["sampler", "tall"]]
    assert "Takes every form of option." in row
    assert "broken-party 2.1 failed to load: ModuleNotFoundError" in listed.output

    described = CliRunner().invoke(cli, ["plugins", "sampler", "tall", "--plugin", path])
    (row,) = [line for line in described.output.splitlines() if line.startswith("steps")]
    assert row.split() == ["steps", "integer", "50", ">", "0", "denoising", "steps"]
    assert "no options" not in described.output

    found = json.loads(CliRunner().invoke(cli, ["plugins", "--plugin", path, "--json"]).output)
    assert {"tall", "plain"} <= {row["name"] for row in found["components"]}
    (failure,) = [failure for failure in found["failures"] if failure["package"] == "broken-party"]
    assert failure["version"] == "2.1"
    one = json.loads(CliRunner().invoke(cli, ["plugins", "sampler", "tall", "--plugin", path, "--json"]).output)
    assert [option["name"] for option in one["options"]][:2] == ["word", "steps"]


def test_plugins_that_ship_load_from_the_entry_points_of_pyproject(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    entry_points = project["project"]["entry-points"]["ldmkit"]
    info = tmp_path / "ldmkit-9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: ldmkit\nVersion: 9\n")
    lines = [f"{name} = {module}" for name, module in entry_points.items()]
    (info / "entry_points.txt").write_text("\n".join(["[ldmkit]", *lines]))
    monkeypatch.syspath_prepend(REPOSITORY / "plugins")
    monkeypatch.syspath_prepend(tmp_path)
    registry = Registry.load()
    assert [str(failure) for failure in registry.failures] == []
    ours = {
        "captioner": {"filename", "florence2", "palette", "sidecar"},
        "text_encoder": {"clip", "transformer"},
        "loss": {"kl", "l1", "lpips", "mse", "patchgan"},
        "sampler": {"ddim", "ddpm", "dpmpp_2m", "euler", "heun"},
    }
    for kind in KINDS:
        assert ours[kind] <= set(registry.names(kind))
        for name in ours[kind]:
            assert registry.get(kind, name).plugin.version == "9"
            assert registry.get(kind, name).summary
            assert all(option.description for option in registry.get(kind, name).options.described.values())


def test_docs_tell_of_every_hook_and_every_kind_and_show_the_example_as_it_is() -> None:
    page = (REPOSITORY / "docs" / "plugins.md").read_text()
    hooks = [name for name, value in vars(hookspecs).items() if hasattr(value, "ldmkit_spec")]
    assert len(hooks) == 5
    assert [hook for hook in hooks if f"### `{hook}" not in page] == []
    assert [kind for kind in KINDS if f"`{kind}`" not in page] == []
    for name in ("ldmkit_shout.py", "pyproject.toml"):
        assert (REPOSITORY / "docs" / "examples" / "ldmkit_shout" / name).read_text() in page


@pytest.mark.skipif(importlib.util.find_spec("pip") is None, reason="needs pip")
def test_third_party_plugin_of_the_docs_installs_with_pip(tmp_path: Path) -> None:
    source = REPOSITORY / "docs" / "examples" / "ldmkit_shout"
    code = (source / "ldmkit_shout.py").read_text()
    assert sum(bool(line.strip()) for line in code.splitlines()) <= 20
    shutil.copytree(source, tmp_path / "shout")  # setuptools builds in the folder itself
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "install", "--quiet"]
    only_this = ["--no-index", "--no-deps", "--no-build-isolation", "--target", str(tmp_path / "site")]
    subprocess.run([*pip, *only_this, str(tmp_path / "shout")], check=True, capture_output=True)
    command = "from ldmkit.cli.plugins import plugins; plugins()"
    path = os.pathsep.join(map(str, [REPOSITORY, REPOSITORY / "plugins", tmp_path / "site"]))
    listed = subprocess.run(
        [sys.executable, "-c", command, "captioner"],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
    ).stdout
    (row,) = [line for line in listed.splitlines() if "shout" in line]
    assert row.split()[:4] == ["captioner", "shout", "ldmkit-shout", "1.0"]
    assert row.rstrip().endswith("The words of the file's name, in capitals.")
