"""What a start costs where the pictures are a million: seconds of the processor and memory, by where they lie.

python -m benchmarks.training.index_scale [--entries 1000000] [--kinds tar --kinds zip]

`list` is the first look at a folder, zip, tar or table: which pictures there are. `start` is what every later start of
`train` costs before the first stage: what was read of each is taken from `pictures.safetensors`; the hash of all, the
held-out split, the remarks, the caption files. Here that file is written without decoding; decoding is measured by
`benchmarks.faults.data_check`.
"""

import json
import os
import sys
import tarfile  # noqa: TID251 - one header, to be copied
import tempfile
import zipfile
from pathlib import Path

from benchmarks.command import print_table, run
from benchmarks.runs import watched
from ldmkit.data.index_cache import INDEX

KINDS = ("tar", "zip", "folder", "parquet")
PICTURE = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de"
    "0000000c49444154789c63f8cfc0000003010100c9fe92ef0000000049454e44ae426082"
)
"""a PNG of one red pixel"""
CHILD = """
import hashlib, json, sys, time
from pathlib import Path
from ldmkit.data.captions import caption_files_hash
from ldmkit.data.index_cache import write_cache
from ldmkit.data.pictures import scan
from ldmkit.data.rows import Rows
from ldmkit.data.sources import Source

def told(name, began):
    peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    found[name] = [time.process_time() - began, int(peak.split()[1]) / 1024]

path, cache, what = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
found = {"imports": time.process_time()}
began = time.process_time()
if what == "list":
    source = Source(path)
    told("list", began)
    files = zip(source.files.names, source.files.sizes.tolist(), source.files.times.tolist())
    row = {"width": 1, "height": 1, "note": None}
    hashed = ((hashlib.sha256(key.encode()).hexdigest(), key, size, time) for key, size, time in files)
    rows = Rows.of(
        (key, {"size": size, "mtime_ns": time, "sha256": sha256, "look": [sha256, 99, None], **row})
        for sha256, key, size, time in hashed
    )
    write_cache(cache, source.path, rows)
    found["disk"] = cache.stat().st_size / len(rows)
else:
    index = scan(path, index_cache=cache)
    told("scan", began)
    index.hash, index.split(0.05), index.summary(10), caption_files_hash(index.source)
    told("start", began)
print(json.dumps(found))
"""


def name(number: int) -> str:
    return f"{number // 1000:05}/{number:08}.png"


def make(path: Path, kind: str, entries: int) -> None:
    """A set of these many pictures."""
    if kind == "tar":
        info = tarfile.TarInfo("0" * len(name(0)))
        info.size = len(PICTURE)
        header = info.tobuf(tarfile.USTAR_FORMAT)
        others = sum(header[len(name(0)) : 148]) + sum(header[156:]) + 8 * ord(" ")
        end = header[156:] + PICTURE.ljust(512, b"\0")
        with path.open("wb") as file:
            for number in range(entries):
                own = name(number).encode()
                file.write(own + header[len(own) : 148] + b"%06o\0 " % (others + sum(own)) + end)
            file.write(bytes(10240))
    elif kind == "zip":
        with zipfile.ZipFile(path, "w") as opened:
            for number in range(entries):
                opened.writestr(zipfile.ZipInfo(name(number)), PICTURE)
    elif kind == "folder":
        for number in range(entries):
            file = path / name(number)
            if number % 1000 == 0:
                file.parent.mkdir(parents=True)
            file.write_bytes(PICTURE)
    else:
        import pyarrow as pa
        from pyarrow import parquet

        table = {"image": [PICTURE] * entries, "text": ["a red pixel"] * entries}
        parquet.write_table(pa.table(table), path, use_dictionary=False, row_group_size=100_000)


def main(*, entries: int = 1_000_000, kinds: list[str] = [*KINDS]) -> None:  # noqa: B006 - typer's way
    rows: list[list[object]] = [["set", "list, s", "MB", "again, s", "start, s", "MB", "index, bytes a picture"]]
    for kind in kinds:
        with tempfile.TemporaryDirectory(prefix="ldmkit-index-scale-") as folder:
            path, cache = Path(folder) / ("set" if kind == "folder" else f"set.{kind}"), Path(folder) / INDEX
            os.environ["LDMKIT_CACHE"] = str(Path(folder) / "cache")
            make(path, kind, entries)
            found: list[dict[str, list[float]]] = []
            # Twice, since a table is copied into the cache by the first one.
            for what in ("list", "list", "start"):
                command = [sys.executable, "-c", CHILD, str(path), str(cache), what]
                code, _, _, said = watched(command, Path.cwd())
                if code:
                    sys.exit(said)
                found.append(json.loads(said.splitlines()[-1]))
            first, again, start = found
            seconds = [f"{value:.1f}" for value in (first["list"][0], again["list"][0], start["start"][0])]
            peaks = [f"{value:.0f}" for value in (first["list"][1], start["start"][1])]
            rows.append([kind, seconds[0], peaks[0], seconds[1], seconds[2], peaks[1], f"{again['disk']:.0f}"])
    print_table(*rows)


if __name__ == "__main__":
    run(main)
