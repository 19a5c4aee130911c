"""Scans a folder in this process and prints how many pictures it used and the most memory that it took, in MB.

python -m tests.corpus.memory FOLDER
"""

import sys
from pathlib import Path

from ldmkit.data.pictures import scan


def peak() -> int:
    """MB. Not getrusage's figure, which on Linux begins with that of the process that started this one."""
    status = Path("/proc/self/status")
    if status.is_file():
        (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        return int(line.split()[1]) // 1000
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (10**6 if sys.platform == "darwin" else 1000)


if __name__ == "__main__":
    sys.stdout.write(f"{len(scan(Path(sys.argv[1]), max_bad=1))} {peak()}\n")
