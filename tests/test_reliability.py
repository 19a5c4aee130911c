"""docs/reliability.md against the tests: each promise names one that exists, each benchmark too."""

import ast
import re
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
TEXT = (REPOSITORY / "docs" / "reliability.md").read_text(encoding="utf-8")


def test_every_promise_is_held_by_a_test() -> None:
    rows = [line for line in TEXT.splitlines() if line.startswith("| ") and "`tests/" in line]
    assert len(rows) > 30
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", TEXT)
    assert len(named) == TEXT.count("`tests/")
    for path, name in named:
        tree = ast.parse((REPOSITORY / path).read_text(encoding="utf-8"))
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, f"{path}::{name}"


def test_every_row_of_the_promises_names_one() -> None:
    promises = TEXT.partition("## The promises")[2].partition("\n## ")[0]
    for line in promises.splitlines():
        if line.startswith("| ") and not line.startswith("| promise"):
            assert "`tests/" in line, line


def test_every_benchmark_is_there() -> None:
    named = re.findall(r"python -m (benchmarks[\w.]+)", TEXT)
    assert len(named) >= 5
    for module in named:
        assert (REPOSITORY / module.replace(".", "/")).with_suffix(".py").is_file(), module
