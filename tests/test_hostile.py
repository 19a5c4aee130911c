"""Files by strangers: nothing crashes, nothing changes in silence, no code runs, no file outside is touched."""

import os
import pickle
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ldmkit.data.pictures import scan
from tests.corpus import pictures
from tests.corpus.artefact import Payload
from tests.corpus.audit import Watch
from tests.corpus.run import all_artefacts, meet_all, watch

REPOSITORY = Path(__file__).parents[1]
ARTEFACTS = list(all_artefacts())
KINDS = pictures.kinds()


def test_there_are_enough_of_them() -> None:
    names = [artefact.name for artefact in ARTEFACTS]
    assert len(names) == len(set(names)) >= 80
    assert len(KINDS) == len({kind.name for kind in KINDS}) >= 60


def test_artefacts_run_nothing_and_reach_nothing(tmp_path: Path) -> None:
    limit = resource.getrlimit(resource.RLIMIT_AS)
    # What would take a terabyte fails here at once, and takes no other process with it.
    resource.setrlimit(resource.RLIMIT_AS, (64 << 30, limit[1]))
    try:
        count, faults = meet_all(ARTEFACTS, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limit)
    assert faults == []
    assert count == len(ARTEFACTS)


@pytest.mark.parametrize(
    ("hostile", "seen"),
    [
        (lambda canary: pickle.loads(pickle.dumps(Payload(canary))), "pickle.find_class"),  # noqa: S301 - the point
        (lambda canary: exec(compile("1", "<stranger>", "exec")), "exec <stranger>"),  # noqa: S102
        (lambda canary: subprocess.run(["true"], check=False), "subprocess.Popen"),
        (lambda canary: os.system("true"), "os.system"),  # noqa: S605
        (lambda canary: __import__("ctypes").CDLL(None), "ctypes.dlopen"),
        (lambda canary: canary.write_text("x"), "write"),
        (lambda canary: (canary.parent / "secret").read_text(), "read"),
        (lambda canary: (canary.parent / "secret").rename(canary), "write"),
        (lambda canary: list(canary.parent.iterdir()), "read"),
    ],
)
def test_the_watch_sees(tmp_path: Path, hostile: Any, seen: str) -> None:
    """The control: each of these is noticed, so that an empty list means something."""
    import ctypes

    assert ctypes
    (tmp_path / "secret").write_text("x")
    (tmp_path / "folder").mkdir()
    watched = watch()
    with watched.over(tmp_path / "folder"):
        hostile(tmp_path / "canary")
    found = watched.executed + watched.outside
    assert any(line.startswith(seen) for line in found), found
    watched.executed.clear()
    watched.outside.clear()


def test_installed_code_is_no_stranger() -> None:
    watched = Watch()
    for path in (os.__file__, str(REPOSITORY / "ldmkit" / "run.py"), pytest.__file__, "<frozen importlib._bootstrap>"):
        assert watched._is_installed(path), path
    assert not watched._is_installed("/etc/passwd")
    assert not watched._is_installed("<string>")


def test_every_kind_of_picture(tmp_path: Path) -> None:
    pictures.write(tmp_path / "pictures", KINDS)
    watched = watch()
    with watched.over(tmp_path / "pictures"):
        index = scan(tmp_path / "pictures", max_bad=1)
    assert pictures.faults(tmp_path / "pictures", index, KINDS) == []
    assert (watched.executed, watched.outside) == ([], [])
    rejected = [kind for kind in KINDS if kind.reason not in (None, "hidden")]
    lines = index.summary()
    assert lines[0] == f"{len(rejected)} left out"
    assert len(index) + len(rejected) == len(KINDS) - 1
    assert all(line.isprintable() for line in lines)


def test_the_largest_pictures_take_less_than_a_gigabyte(tmp_path: Path) -> None:
    """Four at once, as the threads of a scan come to them; the one of 60000 x 60000 pixels costs nothing."""
    kinds = pictures.largest()
    pictures.write(tmp_path / "pictures", [*kinds, *(kind for kind in KINDS if "square" in kind.name)])
    shutil.copy(tmp_path / "pictures" / kinds[0].name, tmp_path / "pictures" / "again.png")
    done = subprocess.run(
        [sys.executable, "-m", "tests.corpus.memory", str(tmp_path / "pictures")],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    used, megabytes = map(int, done.stdout.split())
    assert used == len(kinds) + 1
    assert megabytes < 1000


def test_hostile_pictures_are_captioned_encoded_and_trained_on(workshop: Any, processes: Any) -> None:
    folder = workshop.folder / "pictures"
    shutil.rmtree(folder)
    pictures.write(folder, KINDS)
    recipe = workshop.folder / "tiny.toml"
    text = recipe.read_text().replace("held_out = 0.2", "held_out = 0.2\nmax_bad = 1.0")
    recipe.write_text('[caption]\nuse = "filename"\nmissing = "empty"\n' + text)
    stages = ("caption", "train-vae", "encode", "train-unet", "train-t2i")
    few = ["--set", "vae.steps=2", "--set", "unet.steps=2", "--set", "t2i.steps=2"]
    code, output = processes.run(workshop.folder, *((stage, "tiny.toml", *few) for stage in stages))
    assert code == 0, output
    rejected = sum(kind.reason not in (None, "hidden") for kind in KINDS)
    assert f"data: {rejected} left out" in output
    assert "Traceback" not in output
    # Held to what scan says: each is captioned and encoded.
    used = len(scan(folder, max_bad=1))
    assert len((workshop.run / "captions" / "captions.jsonl").read_text().splitlines()) == used
    assert (workshop.run / "t2i" / "record.json").is_file()
    assert not list(workshop.folder.rglob("canary"))
