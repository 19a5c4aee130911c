"""SECURITY.md's promises name tests that exist."""

import ast
import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
NAMED = re.findall(r"`(tests/[^`]+\.py)::(\w+)`", (REPOSITORY / "SECURITY.md").read_text(encoding="utf-8"))


@pytest.mark.parametrize(("path", "test"), NAMED)
def test_a_promise_is_held_by_a_test(path: str, test: str) -> None:
    tree = ast.parse((REPOSITORY / path).read_text(encoding="utf-8"))
    assert test in [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]


def test_each_promise_names_one() -> None:
    text = (REPOSITORY / "SECURITY.md").read_text(encoding="utf-8")
    rows = [
        line for line in text.partition("## Promises")[2].partition("\n## ")[0].splitlines() if line.startswith("| ")
    ]
    assert len(NAMED) == len(rows) - 1 > 10
