"""python -m fuzz [TARGET ...] [--seconds N] [--seed N]: exit code 1 with the smallest input that breaks a target."""

import os
import random
import shutil
import sys
import time

import click
from hypothesis import HealthCheck, Phase, given, seed, settings

from fuzz.targets import TARGETS, Target, folder

ROUND = 200
"""inputs between two looks at the clock"""


def fuzz(target: Target, seconds: float, start: int) -> int:
    """Number of inputs tried. Raises what `target.check` does, with the smallest input that was found."""
    quiet = settings(
        max_examples=ROUND,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
    )
    tried, until = 0, time.monotonic() + seconds

    def check(data: bytes) -> None:
        nonlocal tried
        tried += 1
        target.check(data)

    while time.monotonic() < until:
        seed(start + tried)(quiet(given(target.inputs)(check)))()
    return tried


@click.command(help=__doc__)
@click.argument("names", nargs=-1, metavar="[TARGET ...]")
@click.option("--seconds", type=float, default=float(os.environ.get("FUZZ_SECONDS", "20")), show_default=True)
@click.option("--seed", "start", type=int, help="Default: another one each time, printed.")
def main(names: tuple[str, ...], seconds: float, start: int | None) -> None:
    if unknown := set(names) - TARGETS.keys():
        raise click.UsageError(f"no target {', '.join(sorted(unknown))}; there are {', '.join(TARGETS)}")
    start = random.SystemRandom().randrange(2**31) if start is None else start
    try:
        for name in names or TARGETS:
            began = time.monotonic()
            tried = fuzz(TARGETS[name], seconds, start)
            click.echo(
                f"{name}: {tried} inputs in {time.monotonic() - began:.0f} s, seed {start}: nothing but LdmkitError"
            )
    finally:
        shutil.rmtree(folder(), ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
