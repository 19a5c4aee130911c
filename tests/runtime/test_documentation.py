"""What docs/generate.md says, done."""

import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from ldmkit.cli import cli
from ldmkit.cli.generate import generate
from ldmkit.components.registry import Registry
from ldmkit.runtime import providers

REPOSITORY = Path(__file__).parents[2]
TEXT = (REPOSITORY / "docs" / "generate.md").read_text(encoding="utf-8")


def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "exports").symlink_to(REPOSITORY / "exports")
    names: dict[str, list[Image.Image]] = {}
    exec(compile(code, "docs/generate.md", "exec"), names)  # noqa: S102 - our own document
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("1 of 4: pictures (0, 1), x0 (2, ")
    assert printed[-1].startswith("4 of 4")
    with Image.open("cat.png") as picture:
        assert picture.tobytes() == names["pictures"][0].tobytes()
    assert [len(names[name]) for name in ("pictures", "alike", "frames")] == [3, 3, 4]
    assert len({picture.tobytes() for name in ("pictures", "alike", "frames") for picture in names[name]}) >= 8


def test_the_commands_are_understood() -> None:
    (block,) = re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL)
    for line in block.splitlines():
        program, verb, *arguments = shlex.split(line, comments=True)
        assert (program, verb) == ("ldmkit", "generate")
        # Under the group, whose names of the help option click keeps for every later call of the command.
        with cli.make_context("ldmkit", [verb], resilient_parsing=True) as parent:
            generate.make_context(verb, arguments, parent=parent)


def test_tables_are_complete() -> None:
    named = set(re.findall(r"^\| `([\w-]+)` \|", TEXT, re.MULTILINE))
    registry = Registry.load(kinds=("sampler",))
    assert {name for _, name in registry.components} <= named
    assert {"auto", *providers.NAMES} <= named
    assert set(re.findall(r"^\| `(--[\w-]+)` \|", TEXT, re.MULTILINE)) <= {
        name for option in generate.params for name in option.opts
    }
