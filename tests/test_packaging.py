"""What an install brings: built and installed for real, used outside the clone."""

import json
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
# Runs each command of a list in JSON, in one process: what it takes is the import.
RUN = """
import json
from ldmkit.cli import main
for arguments in json.loads(sys.argv.pop()):
    sys.argv[1:] = arguments
    try:
        main()
    except SystemExit as end:
        assert not end.code, arguments
"""


def pip(*arguments: str, cwd: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository's sources: building writes beside them."""
    folder = tmp_path_factory.mktemp("clone")
    junk = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("ldmkit", "plugins", "recipes", "exports/toy-cats"):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=junk)
    for name in ("pyproject.toml", "LICENSE", "README.md"):
        shutil.copy(REPOSITORY / name, folder / name)
    (folder / "exports" / "toy-cats" / "more.txt").write_text(
        "Whatever the bundle's files are called, they come along."
    )
    return folder


@pytest.fixture(scope="module")
def wheel(clone: Path) -> Path:
    pip("wheel", ".", "--no-deps", "--no-build-isolation", "--wheel-dir", "dist", cwd=clone)
    (wheel,) = (clone / "dist").glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Site folder that the wheel was installed to."""
    site = tmp_path_factory.mktemp("site")
    pip("install", "--no-deps", "--no-compile", "--target", str(site), str(wheel), cwd=site)
    return site


@pytest.fixture(scope="module")
def editable(clone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Site folder of an editable install of the clone."""
    prefix = tmp_path_factory.mktemp("prefix")
    pip(
        *("install", "--no-deps", "--no-build-isolation", "--ignore-installed", "--prefix", str(prefix)),
        *("--editable", "."),
        cwd=clone,
    )
    (pth,) = prefix.rglob("*.pth")
    return pth.parent


def python(site: Path, cwd: Path, code: str, *commands: list[str]) -> str:
    """What `code` prints where ldmkit lies in `site`; whatever ldmkit this Python has is out of sight behind it."""
    paths = f"import site, sys; site.addsitedir({str(site)!r}); sys.path.append({sysconfig.get_path('purelib')!r})"
    done = subprocess.run(
        [sys.executable, "-S", "-c", f"{paths}\n{code}", json.dumps(commands)],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_the_wheel_holds_all_of_it_and_nothing_else(wheel: Path, clone: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    package = {path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / "ldmkit").rglob("*.py")}
    recipes = {f"ldmkit/shipped/recipes/{path.name}" for path in (REPOSITORY / "recipes").glob("*.toml")}
    files = [path.name for path in (clone / "exports" / "toy-cats").iterdir() if not path.name.startswith(".")]
    bundle = {f"ldmkit/shipped/exports/toy-cats/{name}" for name in files}
    plugins = {path.name for path in (REPOSITORY / "plugins").glob("*.py")}
    kinds = (".js", ".html", ".css")
    page = {
        f"ldmkit/web/page/{path.name}" for path in (REPOSITORY / "ldmkit/web/page").iterdir() if path.suffix in kinds
    }
    assert names == package | page | {"ldmkit/py.typed"} | recipes | bundle | plugins
    assert len(recipes) >= 4
    assert len(plugins) >= 8


def test_the_wheels_metadata(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (folder,) = {name.split("/")[0] for name in archive.namelist() if ".dist-info/" in name}
    entry_points = archive.read(f"{folder}/entry_points.txt").decode()
    assert "[console_scripts]\nldmkit = ldmkit.cli:main\n" in entry_points
    for name, module in PROJECT["project"]["entry-points"]["ldmkit"].items():
        assert f"\n{name} = {module}\n" in f"{entry_points}\n"
    metadata = archive.read(f"{folder}/METADATA").decode()
    assert "License-Expression: MIT" in metadata
    assert f"{folder}/licenses/LICENSE" in archive.namelist()
    base = [line for line in metadata.splitlines() if line.startswith("Requires-Dist") and "extra ==" not in line]
    assert not [line for line in base if any(name in line for name in ("torch", "transformers", "accelerate"))]


@pytest.mark.parametrize("kind", ["installed", "editable"])
def test_outside_the_clone(kind: str, clone: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    site: Path = request.getfixturevalue(kind)
    names = [recipe.stem for recipe in (REPOSITORY / "recipes").glob("*.toml")]
    checks = [["recipe", "check", name] for name in (*names, "recipes/toy-cats.toml")]
    *checked, by_path, listed = python(site, tmp_path, RUN, *checks, ["plugins", "--json"]).split("\n", len(checks))
    assert checked == [f"{name}: no mistakes ({name})" for name in names]
    assert by_path.endswith(": no mistakes (toy-cats)")
    found = json.loads(listed)
    assert found["failures"] == []
    assert {component["package"] for component in found["components"]} == {"ldmkit"}
    assert len(found["components"]) >= 15
    home = clone if kind == "editable" else site
    code = "import ldmkit, ldmkit.shipped as s; print(ldmkit.__file__, s.recipes_dir(), s.exports_dir(), sep='\\n')"
    assert [Path(line).is_relative_to(home) for line in python(site, tmp_path, code).splitlines()] == [True] * 3


def test_the_bundle_that_ships_draws_right_after_install(installed: Path, tmp_path: Path) -> None:
    if not (REPOSITORY / "exports" / "toy-cats" / "manifest.json").is_file():
        pytest.skip("exports/toy-cats holds no bundle yet")
    drawn = json.loads(python(installed, tmp_path, RUN, ["generate", "a cute orange cat", "--steps", "2", "--json"]))
    assert Path(drawn["bundle_path"]).is_relative_to(installed)
    assert (tmp_path / drawn["pictures"][0]["path"]).stat().st_size > 500


def test_building_needs_no_more_than_the_extra_for_development() -> None:
    build, dev = PROJECT["build-system"]["requires"], PROJECT["project"]["optional-dependencies"]["dev"]
    assert set(build) <= set(dev)
