"""Two processes begin the same run at the same moment: how often exactly one of them gets it.

python benchmarks/lock_races.py [--races 1000]
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

from ldmkit.errors import LdmkitError
from ldmkit.run.folder import locked

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


def race(folders: list[Path]) -> list[str]:
    """`wl` or `lw` for each folder that one of its two processes got; a dead one's lock is in the way."""
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
    found = ["".join(os.read(read, 1).decode() for _ in range(2)) for read, _ in verdicts]
    os.write(end[1], b"e" * len(children))
    for pid in children:
        os.waitpid(pid, 0)
    for handle in (*start, *end, *(each for pair in verdicts for each in pair)):
        os.close(handle)
    return found


def winners(races: int, scratch: Path) -> int:
    """Races that had exactly one winner."""
    found: list[str] = []
    while len(found) < races:
        count = min(AT_ONCE, races - len(found))
        found += race([scratch / str(len(found) + i) for i in range(count)])
    return sum(sorted(verdict) == ["l", "w"] for verdict in found)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--races", type=int, default=1000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ldmkit-races-") as name:
        found = winners(options.races, Path(name))
    print(f"{found} of {options.races} races had exactly one winner")
    return int(found != options.races)


if __name__ == "__main__":
    sys.exit(main())
