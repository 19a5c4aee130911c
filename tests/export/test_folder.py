"""A bundle's folder while a new one is written: killed, stopped, out of room, two at once."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from ldmkit.atomic import no_room
from ldmkit.errors import LdmkitError
from ldmkit.export.folder import new_bundle

FILES = ("manifest.json", "unet.onnx", "vae_decoder.onnx")


def write(folder: Path, word: str) -> None:
    for name in FILES:
        (folder / name).write_text(word * 1000)


def whole(folder: Path) -> str:
    """The word that every file of the bundle holds."""
    words = {(folder / name).read_text() for name in FILES}
    assert {path.name for path in folder.iterdir()} == set(FILES)
    (word,) = words
    assert len(word) == 1000
    return word[0]


# Kills a child of its own at every touch of a file or folder of the export, one after the other, until one is through.
KILLER = """
import json, os, signal, sys
from pathlib import Path
from ldmkit.export.folder import new_bundle
from tests.strike import strike_at

def child(strike):
    strike_at(strike, "exports", signal.SIGKILL)
    with new_bundle(Path("exports/cats")) as folder:
        for name in ("manifest.json", "unet.onnx", "vae_decoder.onnx"):
            (folder / name).write_text("2" * 1000)
    os._exit(0)

class Stop(Exception):
    pass

found = []
for strike in range(1, 1000):
    pid = os.fork()
    if pid == 0:
        child(strike)
    if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0:
        break
    try:  # the next export, which comes to nothing
        with new_bundle(Path("exports/cats")) as folder:
            raise Stop
    except Stop:
        pass
    folder, names = Path("exports/cats"), sorted(os.listdir("exports"))
    found.append((names, {path.name: path.read_text() for path in folder.iterdir()}))
    if found[-1][1]["unet.onnx"][0] == "2":  # back to the old one
        for path in folder.iterdir():
            path.write_text("1" * 1000)
print(json.dumps(found))
"""


def test_killed_at_every_touch_of_its_files(tmp_path: Path) -> None:
    (tmp_path / "exports" / "cats").mkdir(parents=True)
    write(tmp_path / "exports" / "cats", "1")
    repository = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", KILLER],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) > 15
    words = set()
    for names, files in found:
        assert names == ["cats"]  # nothing is left beside it
        assert set(files) == set(FILES)
        (word,) = set(files.values())
        words.add(word)
    assert words == {"1" * 1000, "2" * 1000}
    assert whole(tmp_path / "exports" / "cats") == "2"


def fail(target: Path, error: type[BaseException]) -> None:
    with new_bundle(target) as folder:
        write(folder, "1")
        raise error


def test_what_ends_in_the_middle_changes_nothing(tmp_path: Path) -> None:
    target = tmp_path / "cats"
    for error in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(error):
            fail(target, error)
        assert list(tmp_path.iterdir()) == []
    with new_bundle(target) as folder:
        write(folder, "1")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, limits[1]))
    try:
        with pytest.raises(LdmkitError, match="cats: cannot be written: File too large"), no_room(target):
            _again(target)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert whole(target) == "1"
    assert [path.name for path in tmp_path.iterdir()] == ["cats"]
    _again(target)
    assert whole(target) == "2"
    assert [path.name for path in tmp_path.iterdir()] == ["cats"]


def _again(target: Path) -> None:
    with new_bundle(target) as folder:
        write(folder, "2")


def test_interrupted_between_the_two_renames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "cats"
    with new_bundle(target) as folder:
        write(folder, "1")
    rename = Path.rename

    def strike(self: Path, to: Path) -> Path:
        if self.name == "new":
            raise KeyboardInterrupt
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", strike)
    with pytest.raises(KeyboardInterrupt):
        _again(target)
    assert whole(target) == "1"
    assert [path.name for path in tmp_path.iterdir()] == ["cats"]


def test_two_at_once(tmp_path: Path) -> None:
    target = tmp_path / "cats"
    with new_bundle(target) as folder:
        with pytest.raises(LdmkitError, match=rf"\.cats\.export: in use by process {os.getpid()}"):
            _again(target)
        write(folder, "1")
    assert whole(target) == "1"
