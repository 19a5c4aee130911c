"""The page's scripts, run by node."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "ldmkit" / "web" / "page"
needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")


def node(*arguments: str, given: Any = None) -> str:
    """What node prints; `given` is JSON on its standard input."""
    text = None if given is None else json.dumps(given)
    done = subprocess.run(["node", *arguments], input=text, capture_output=True, text=True, cwd=HERE, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def evaluate(code: str, given: Any = None) -> Any:
    """The JSON that a module prints whose `given` is what was handed over; `PAGE/` leads to the page's scripts."""
    whole = (
        'let text = ""; for await (const part of process.stdin) text += part; const given = JSON.parse(text);\n'
        + code.replace("PAGE/", PAGE.as_uri() + "/")
    )
    return json.loads(node("--input-type=module", "--eval", whole, given=given))
