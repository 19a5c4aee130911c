"""constraints/: what is pinned is what pyproject.toml asks for, and an audit says what it did not look at."""

import re
import runpy
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).parents[1]
LEFT_OUT = {"torch", "torchvision"}


def test_hashed_versions_are_those_that_are_asked_for() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    lines = [*project["dependencies"], *(line for extra in ("train", "ui", "eval") for line in extras[extra])]
    asked = [Requirement(line) for line in lines]
    text = (REPOSITORY / "constraints" / "hashed.txt").read_text().replace("\\\n", "")
    pinned: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            requirement = Requirement(line.partition(" --hash")[0])
            (version,) = requirement.specifier
            assert version.operator == "=="
            assert re.search(r"--hash=sha256:[0-9a-f]{64}", line), line
            pinned.setdefault(canonicalize_name(requirement.name), []).append(version.version)
    assert {canonicalize_name(each.name) for each in asked} - pinned.keys() == LEFT_OUT
    assert not {name for name in pinned if name.startswith(("nvidia", "triton"))}
    for each in asked:
        for found in pinned.get(canonicalize_name(each.name), []):
            assert each.specifier.contains(found), f"{each} is pinned at {found}: run constraints/update"


def test_audit(capsys: pytest.CaptureFixture[str]) -> None:
    """In the form of pip-audit's JSON; one that it skipped is never one without holes."""
    report = runpy.run_path(str(REPOSITORY / "constraints" / "audit.py"))["report"]
    skipped = {"name": "click", "skip_reason": "not found"}
    hole = {"id": "PYSEC-2021-70", "fix_versions": ["8.1.1"], "aliases": [], "description": ""}
    assert report([skipped, skipped]) == 0
    assert capsys.readouterr().out == "AUDIT NOT DONE of 2 of 2 packages: the index knows no list of holes\n"
    assert report([skipped, {"name": "pillow", "version": "8.0", "vulns": [hole]}]) == 1
    told = capsys.readouterr().out
    assert "pillow 8.0: PYSEC-2021-70, mended in 8.1.1\nAUDIT NOT DONE of 1 of 2" in told
    assert report([{"name": "pillow", "version": "12.3.0", "vulns": []}]) == 0
    assert capsys.readouterr().out == "audit: 0 known holes in 1 packages\n"
