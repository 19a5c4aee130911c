"""python -m fuzz.guided TARGET [--seconds N] [--seed N] [--corpus DIR]: as `python -m fuzz`, guided by coverage.

Needs atheris (`pip install atheris`, Linux). It watches which branches of ldmkit an input takes, and goes on from those
that took new ones; DIR keeps them for the next time. An input that breaks the target is written to DIR/crash-*.
"""

import random
import shutil
import sys
import tempfile
from pathlib import Path

import click
from hypothesis import HealthCheck, Phase, given, seed, settings

NUM_SEEDS = 200
"""inputs of the target's own strategy that it starts from"""


def write_seeds(name: str, corpus: Path, start: int) -> None:
    """Inputs that the target's strategy draws, a file each."""
    from fuzz.targets import TARGETS

    drawn: list[bytes] = []

    def keep(data: bytes) -> None:
        drawn.append(data)

    quiet = settings(
        max_examples=NUM_SEEDS,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate,),
    )
    seed(start)(quiet(given(TARGETS[name].inputs)(keep)))()
    for number, data in enumerate(drawn):
        (corpus / f"seed-{number:03d}").write_bytes(data)


@click.command(help=__doc__)
@click.argument("name", metavar="TARGET")
@click.option("--seconds", type=int, default=600, show_default=True)
@click.option("--seed", "start", type=int, help="Default: another one each time.")
@click.option("--corpus", type=click.Path(path_type=Path), help="Default: a new folder, which goes in the end.")
def main(name: str, seconds: int, start: int | None, corpus: Path | None) -> None:
    try:
        import atheris
    except ImportError:
        raise click.ClickException(
            "atheris is missing: `pip install atheris`, or `python -m fuzz` without it"
        ) from None

    with atheris.instrument_imports(include=["ldmkit", "ldmkit_captions", "fuzz.targets"]):
        from fuzz.targets import TARGETS, folder

    if name not in TARGETS:
        raise click.UsageError(f"no target {name}; there are {', '.join(TARGETS)}")
    start = random.SystemRandom().randrange(1, 2**31) if start is None else start
    kept = corpus or Path(tempfile.mkdtemp(prefix="ldmkit-corpus-"))
    kept.mkdir(parents=True, exist_ok=True)
    write_seeds(name, kept, start)
    flags = [f"-max_total_time={seconds}", f"-seed={start}", f"-artifact_prefix={kept}/", "-rss_limit_mb=4096"]
    atheris.Setup(["fuzz", *flags, str(kept)], TARGETS[name].check)
    try:
        atheris.Fuzz()
    finally:
        shutil.rmtree(folder(), ignore_errors=True)
        if corpus is None:
            shutil.rmtree(kept)


if __name__ == "__main__":
    sys.exit(main())
