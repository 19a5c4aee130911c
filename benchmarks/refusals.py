"""How long a mistake in a recipe takes to be refused: every key of every shipped recipe, spoilt in every way.

    python benchmarks/refusals.py               in this process: what validation alone takes
    python benchmarks/refusals.py --processes 50    also as `ldmkit recipe check`, from start to exit, one in so many

The mistakes are those of tests/recipe/test_every_key.py.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

REPOSITORY = Path(__file__).parents[1]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "plugins")]

from ldmkit.components.registry import Registry  # noqa: E402 - found by the line above
from tests.recipe.test_every_key import (  # noqa: E402
    ANYTHING,
    FRACTIONS,
    OUT_OF_RANGE,
    RECIPES,
    changed,
    leaves,
    mistake,
    table_of,
    toml,
    wrong_types,
)


def mistakes() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(what, key, recipe) of each typo, wrong type and value out of range."""
    for path in RECIPES:
        table = table_of(path)
        for place, value in leaves(table):
            key = place[-1]
            middle = len(key) // 2
            yield "typo", key, changed(table, place, value, key=key[:middle] + key[middle + 1 :])
            for wrong in wrong_types(value, fraction=key in FRACTIONS):
                yield "type", key, changed(table, place, wrong)
            for wrong in [] if key in ANYTHING else OUT_OF_RANGE.get(key, []):
                if (place[:2], key, wrong) != (("vae", "losses"), "channels", [64]):  # enough for a discriminator
                    yield "range", key, changed(table, place, wrong)


@click.command(help=__doc__)
@click.option("--processes", type=int, default=0, help="Number of mistakes to run as processes too.")
def main(processes: int) -> None:
    registry = Registry.load()
    found = list(mistakes())
    seconds, unrefused = [], 0
    for what, key, table in found:
        began = time.perf_counter()
        message = mistake(table, registry)
        seconds.append(time.perf_counter() - began)
        wanted = f'(did you mean "{key}"?)' if what == "typo" else key
        unrefused += not message or (wanted not in message and (what == "typo" or key != "use"))
    kinds = {kind: sum(what == kind for what, _, _ in found) for kind in ("typo", "type", "range")}
    print(f"{len(found)} mistakes {kinds}: {len(found) - unrefused} refused with the key, typos with the right one")
    print(f"validation: {1000 * sum(seconds) / len(seconds):.1f} ms on average, {1000 * max(seconds):.1f} ms at most")
    assert "torch" not in sys.modules
    took = []
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder) / "spoilt.toml"
        for _, _, table in found[:: max(1, len(found) // processes)] if processes else []:
            recipe.write_text("\n".join(toml(table)))
            began = time.perf_counter()
            done = subprocess.run(
                [sys.executable, "-m", "ldmkit", "recipe", "check", str(recipe)], cwd=REPOSITORY, capture_output=True
            )
            took.append(time.perf_counter() - began)
            assert done.returncode == 1, done
    if took:
        print(f"processes: {len(took)}, {sum(took) / len(took):.2f} s on average, {max(took):.2f} s at most")
    sys.exit(unrefused > 0)


if __name__ == "__main__":
    main()
