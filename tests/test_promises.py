"""The documents name tests, benchmarks and modules that exist, and a test for each promise."""

import ast
import re
from functools import cache
from pathlib import Path

from ldmkit.recipe.training import NETWORKS, Vae

REPOSITORY = Path(__file__).parents[1]
DOCUMENTS = [*sorted(REPOSITORY.glob("*.md")), *sorted((REPOSITORY / "docs").glob("*.md"))]
# A file or folder, and perhaps a test in it: tests/run/test_gate.py::test_limits
NAMED = re.compile(r"\b((?:tests|benchmarks|fuzz)(?:/\w+(?:\.py)?)*/?)(?:::(\w+))?")
MODULE = re.compile(r"python -m ((?:tests|benchmarks|fuzz)[\w.]*)")


@cache
def defined_in(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def missing(text: str) -> list[str]:
    """What `text` names of tests, benchmarks and modules and the repository does not hold."""
    found = []
    for path, test in NAMED.findall(text):
        file = REPOSITORY / path
        if ("/" in path and not file.exists()) or (test and not (file.is_file() and test in defined_in(file))):
            found.append(f"{path}::{test}" if test else path)
    for module in MODULE.findall(text):
        file = REPOSITORY / module.replace(".", "/")
        if not (file.with_suffix(".py").is_file() or (file / "__main__.py").is_file()):
            found.append(f"python -m {module}")
    return found


def test_what_documents_name_exists() -> None:
    texts = {path: path.read_text(encoding="utf-8") for path in DOCUMENTS}
    wrong = [f"{path.relative_to(REPOSITORY)}: {name}" for path, text in texts.items() for name in missing(text)]
    assert not wrong, "\n".join(wrong)
    assert sum(len(NAMED.findall(text)) for text in texts.values()) > 100
    assert missing("`tests/run/test_gate.py::test_no`, `benchmarks/no.py`, python -m benchmarks.no") == [
        *("tests/run/test_gate.py::test_no", "benchmarks/no.py", "python -m benchmarks.no"),
    ]


def test_each_promise_names_the_test_that_holds_it() -> None:
    for document, least in (("SECURITY.md", 15), ("docs/reliability.md", 40)):
        text = (REPOSITORY / document).read_text(encoding="utf-8")
        chapter = re.split(r"\n## ", text.partition("romises\n")[2])[0]
        rows = [line for line in chapter.splitlines() if line.startswith("| ") and not line.startswith("| promise")]
        assert len(rows) >= least
        assert [row for row in rows if not re.search(r"`tests/[\w/]+\.py::test_\w+`", row)] == []


def test_keys_that_training_goes_on_with_are_those_named() -> None:
    text = (REPOSITORY / "docs" / "training.md").read_text(encoding="utf-8")
    listed = text.partition("where only these keys\nchanged: ")[2].partition(" An\n")[0]
    sections = [Vae, *(network for networks in NETWORKS.values() for network in networks.values())]
    assert set(re.findall(r"`(\w+)`", listed)) == set[str]().union(*(each.goes_on_keys() for each in sections))
