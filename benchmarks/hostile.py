"""What files by strangers do: every kind of picture of tests/corpus scanned, every artefact met, under a watch.

    python benchmarks/hostile.py

Prints counts of crashes, silent changes, code that ran, files touched outside, and the memory that a scan of the
largest pictures takes in a process of its own.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "plugins")]

from ldmkit.data.pictures import scan  # noqa: E402 - found by the line above
from tests.corpus import pictures  # noqa: E402
from tests.corpus.run import all_artefacts, meet_all, watch  # noqa: E402


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        kinds = pictures.kinds()
        pictures.write(folder / "corpus" / "pictures", kinds)
        watched = watch()
        with watched.over(folder / "corpus" / "pictures"):
            index = scan(folder / "corpus" / "pictures", max_bad=1)
        faults = pictures.faults(folder / "corpus" / "pictures", index, kinds)
        print(f"pictures: {len(kinds)} kinds, {len(index)} used, {len(index.rejected)} left out with a reason")
        print(f"  {len(index.remarks())} remarks, {len(faults)} crashes and silent changes")
        print(f"  {len(watched.executed)} executions, {len(watched.outside)} files outside touched")

        pictures.write(folder / "large" / "pictures", pictures.largest())
        command = [sys.executable, "-m", "tests.corpus.memory", str(folder / "large" / "pictures")]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
        print(f"  scan of {pictures.largest()[0].name} and others of 80 million pixels: {done.stdout.split()[1]} MB")

        count, wrong = meet_all(all_artefacts(), folder / "artefacts")
        executed, touched = (sum(f": {what} " in line for line in wrong) for what in ("executed", "touched"))
        print(f"artefacts: {count}; {executed} executions, {touched} files outside touched")
        print(f"  {len(wrong)} that ended otherwise than they should")
        for line in [*faults, *wrong]:
            print(f"  {line}")
        sys.exit(bool(faults or wrong))


if __name__ == "__main__":
    main()
