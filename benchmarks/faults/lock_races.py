"""Two processes begin the same run at the same moment: how often exactly one of them gets it.

python -m benchmarks.faults.lock_races [--races 1000]
"""

import os
import sys
import tempfile
from pathlib import Path

from benchmarks.command import run
from ldmkit.errors import LdmkitError
from ldmkit.run.lock import locked

AT_ONCE = 25
"""races side by side, each for a run of its own"""


def racer(folder: Path, start: int, verdict: int, end: int) -> None:
    """One process: waits for the start, tries, tells how it went, and holds what it has until the end."""
    os.read(start, 1)
    try:
        with locked(folder):
            os.write(verdict, b"w")
            os.read(end, 1)
    except LdmkitError as error:
        os.write(verdict, b"l" if "in use by process" in str(error) else b"?")


def winners(folders: list[Path]) -> int:
    """How many of the folders one of its two processes got, and the other one not; a dead one's lock is in the way."""
    start, verdicts, end = os.pipe(), [os.pipe() for _ in folders], os.pipe()
    children = []
    for folder, (_, verdict) in zip(folders, verdicts, strict=True):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".lock").write_text("99999999")  # a stale one
        for _ in range(2):
            pid = os.fork()
            if pid == 0:
                os.close(end[1])
                racer(folder, start[0], verdict, end[0])
                os._exit(0)
            children.append(pid)
    os.write(start[1], b"s" * len(children))
    found = [{os.read(read, 1) for _ in range(2)} for read, _ in verdicts]
    os.write(end[1], b"e" * len(children))
    for pid in children:
        os.waitpid(pid, 0)
    for handle in (*start, *end, *(each for pair in verdicts for each in pair)):
        os.close(handle)
    return found.count({b"w", b"l"})


def main(*, races: int = 1000) -> None:
    with tempfile.TemporaryDirectory(prefix="ldmkit-races-") as name:
        folders = [Path(name) / str(number) for number in range(races)]
        found = sum(winners(folders[first : first + AT_ONCE]) for first in range(0, races, AT_ONCE))
    print(f"{found} of {races} races had exactly one winner")
    sys.exit(found != races)


if __name__ == "__main__":
    run(main)
