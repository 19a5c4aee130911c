"""Looks the packages of constraints/hashed.txt up among known holes, with pip-audit, which asks the package index.

python constraints/audit.py

Exit code 1 where one has a hole. A package that the index says nothing of was not audited: that is told, and is no
finding, as little as an index that cannot be asked at all.
"""

import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

PINNED = Path(__file__).with_name("hashed.txt")


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder, found = Path(name, "venv"), Path(name, "found.json")
        venv.create(folder, with_pip=True)
        python = folder / ("Scripts" if sys.platform == "win32" else "bin") / "python"
        install = (python, "-m", "pip", "install", "-q", "pip-audit")
        audit = (python, "-m", "pip_audit", "-r", PINNED, "--disable-pip", "--require-hashes", "--timeout", "15")
        for command in (install, (*audit, "--progress-spinner", "off", "-f", "json", "-o", found)):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode and not found.exists():
                told = (done.stderr.strip() or done.stdout.strip() or "no word on why").splitlines()[-1]
                print(f"AUDIT NOT DONE, nothing is known of holes: {told}")
                return
        sys.exit(report(json.loads(found.read_text())["dependencies"]))


def report(packages: list[dict]) -> int:
    """Prints what pip-audit found; 1 where there is a hole."""
    asked = [each for each in packages if "skip_reason" not in each]
    holes = [(each, hole) for each in asked for hole in each["vulns"]]
    for each, hole in holes:
        fixed = ", ".join(hole["fix_versions"]) or "no version"
        print(f"{each['name']} {each['version']}: {hole['id']}, mended in {fixed}")
    if skipped := len(packages) - len(asked):
        print(f"AUDIT NOT DONE of {skipped} of {len(packages)} packages: the index knows no list of holes")
    if asked:
        print(f"audit: {len(holes)} known holes in {len(asked)} packages")
    return bool(holes)


if __name__ == "__main__":
    main()
