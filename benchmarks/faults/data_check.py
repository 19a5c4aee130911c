"""What `ldmkit data check` finds, and what it takes: generated sets, each looked at by a command of its own.

python -m benchmarks.faults.data_check [--files 20000] [--photos 1500] [--large 200]

`files`: pictures of 64x64, of which 5% are of the kinds of tests/corpus that cannot be used: each must be listed with
its reason, and no good one lost. `photos`: pictures of 64x64. `large`: JPEGs of 4000x3000, against the time libvips
takes to make a thumbnail of 64 pixels of each, in the same run (`pip install pyvips[binary]`). Seconds are of the
processor, over all threads: what else the machine does matters little to them. Exit code 1 where something is lost.
"""

import io
import json
import re
import sys
import tempfile
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from benchmarks.command import print_table, run
from benchmarks.runs import watched
from tests.corpus import pictures

SHARE = 0.05
"""of the files that cannot be used"""
DISTINCT = 8
"""large photos that differ in their pixels; the others differ in a comment"""
_THUMBNAILS = """
import sys, pyvips
for path in sys.argv[1:]:
    pyvips.Image.thumbnail(path, 64).write_to_memory()
"""


def photo(rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """Clouds of several scales and some noise, which compress about as photos do."""
    image = np.zeros((size[1], size[0], 3), np.float32)
    for grid, weight in ((4, 60), (14, 40), (60, 20)):
        small = Image.fromarray((rng.random((grid, grid, 3)) * 255).astype(np.uint8))
        image += weight / 64 * (np.asarray(small.resize(size, Image.Resampling.BICUBIC), np.float32) - 128)
    return Image.fromarray((image + 128 + rng.normal(0, 4, image.shape)).clip(0, 255).astype(np.uint8))


def draw(folder: Path, number: int, size: tuple[int, int], distinct: int | None = None) -> None:
    """`number` JPEGs, each of its own content."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    drawn = []
    for i in range(number):
        if distinct is None or i < distinct:
            file = io.BytesIO()
            photo(rng, size).save(file, "JPEG", quality=90)
            drawn.append(file.getvalue())
        data = drawn[i % len(drawn)]
        (folder / f"{i:06d}.jpg").write_bytes(data[:2] + b"\xff\xfe\0\x06%04d" % (i % 10_000) + data[2:])


def spoil(folder: Path, number: int) -> dict[str, str]:
    """Adds files that cannot be used; words of each one's reason, by key."""
    kinds = [kind for kind in pictures.kinds() if kind.reason not in (None, "hidden") and isinstance(kind.make, bytes)]
    wanted = {}
    for i in range(number):
        kind = kinds[i % len(kinds)]
        file = folder / f"faults {i:05d}" / kind.name
        file.parent.mkdir(parents=True)
        file.write_bytes(kind.make)
        wanted[file.relative_to(folder).as_posix()] = str(kind.reason)
    return wanted


def seconds(command: list[str], folder: Path) -> tuple[float, str]:
    """(seconds of the processor, what it printed)."""
    own = psutil.Process()
    before = own.cpu_times()
    code, _, _, said = watched(command, folder)
    after = own.cpu_times()
    if code not in (0, 1) or "Traceback" in said:
        raise SystemExit(f"{' '.join(command[:5])}: exit code {code}: {said[-2000:]}")
    spent = sum(getattr(after, name) - getattr(before, name) for name in ("children_user", "children_system"))
    return spent, said


def check(folder: Path, *options: str) -> tuple[float, str]:
    return seconds([sys.executable, "-m", "ldmkit", "data", "check", folder.name, *options], folder.parent)


def main(*, files: int = 20_000, photos: int = 1_500, large: int = 200) -> None:
    rows: list[list[object]] = [["set", "seconds", "a picture, ms", "what"]]
    lost = False
    with tempfile.TemporaryDirectory(prefix="ldmkit-data-check-") as name:
        root = Path(name)
        if files:
            bad = round(files * SHARE)
            draw(root / "faulty", files - bad, (64, 64))
            wanted = spoil(root / "faulty", bad)
            spent, said = check(root / "faulty", "--json")
            told = json.loads(next(line for line in said.splitlines() if line.startswith("{")))
            found = {row["file"]: row["reason"] for row in told["rejected"]}
            wrong = [key for key, reason in wanted.items() if not re.search(reason, found.get(key, ""))]
            refused, lost_ones = len(found.keys() - wanted), files - bad - told["pictures"]
            lost = bool(wrong or refused or lost_ones)
            what = f"{bad - len(wrong)} of {bad} listed with their reason, {lost_ones} good ones lost"
            rows.append([f"{files} files", f"{spent:.1f}", f"{spent / files * 1000:.2f}", what])
            print(*wrong[:5], sep="\n")
        if photos:
            draw(root / "photos", photos, (64, 64))
            spent, _ = check(root / "photos")
            rows.append([f"{photos} of 64x64", f"{spent:.1f}", f"{spent / photos * 1000:.2f}", ""])
        if large:
            draw(root / "large", large, (4000, 3000), DISTINCT)
            paths = [str(path) for path in sorted((root / "large").iterdir())]
            thumbnails, _ = seconds([sys.executable, "-c", _THUMBNAILS, *paths], root)
            spent, _ = check(root / "large")
            what = f"{spent / thumbnails:.2f} times libvips' thumbnails ({thumbnails:.1f} s)"
            rows.append([f"{large} of 4000x3000", f"{spent:.1f}", f"{spent / large * 1000:.1f}", what])
    print_table(*rows)
    sys.exit(int(lost))


if __name__ == "__main__":
    run(main)
