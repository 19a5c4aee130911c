"""How `ldmkit` leaves: its exit codes, and one message for whatever a user can do wrong."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ldmkit
from ldmkit.cli import COMMANDS
from ldmkit.cli.common import TRAIN_PACKAGES
from ldmkit.errors import Interrupted, LdmkitError

Run = Callable[..., Any]


def test_help_and_version(run: Run) -> None:
    assert run("--version") == (0, f"ldmkit, version {ldmkit.__version__}\n", "")
    helped = run("--help")
    assert helped.code == 0
    assert helped.err == ""
    for command in COMMANDS:
        assert f"\n  {command} " in helped.out
        assert run(command, "--help").code == 0
        assert run(command, "-h").out.startswith(f"Usage: ldmkit {command}")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["trian"], "No such command 'trian'"),
        (["recipe", "chekc"], "No such command 'chekc'"),
        (["train", "cats", "--ste", "a=b"], "No such option"),
        (["train"], "Missing argument 'RECIPE'"),
        (["train", "cats", "--only", "vae"], "'vae' is not one of"),
        (["train", "cats", "--only", "encode", "--from", "encode"], "--only and --from exclude each other"),
        (["data", "make", "toy-dogs"], "'toy-dogs' is not"),
        (["data", "make", "toy-cats", "-n", "0"], "0 is not in the range"),
        (["generate", "--steps", "many"], "'many' is not a valid integer"),
        (["generate", "--strength", "0.5"], "--strength requires --img2img"),
        (["export", "verify", "exports/cats", "--provider", "gpu"], "'gpu' is not one of"),
        (["ui", "--provider", "gpu"], "'gpu' is not one of"),
        (["plugins", "samplr"], 'did you mean "sampler"'),
        (["train", "cats", "--only", "encode", "--init-from", "other"], "encode trains nothing"),
        *(
            ([*command, "cats", "--set", override], message)
            for command in (["train"], ["encode"], ["status"], ["plan"], ["verify-resume"], ["recipe", "check"])
            for override, message in (
                ("steps", "--set steps: write it as section.key=value"),
                ("unet.steps=[1", "--set unet.steps=[1: not valid TOML"),
            )
        ),
    ],
)
def test_wrong_usage_is_code_2(arguments: list[str], expected: str, run: Run) -> None:
    left = run(*arguments)
    assert left.code == 2
    assert left.out == ""
    assert expected in left.err
    assert "Traceback" not in left.err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train", "cats", "--set", "unet.stepz=3"], "stepz"),
        (["train", "no-such-recipe"], "no-such-recipe"),
        (["plugins", "sampler", "eulr"], 'did you mean "euler"'),
        (["generate", "--bundle", "nowhere"], "nowhere is not a bundle"),
        (["generate", "--prompts", "nowhere.txt"], "nowhere.txt: cannot be read"),
        (["export", "verify", "nowhere"], "nowhere is not a bundle"),
    ],
)
def test_a_mistake_in_a_file_a_recipe_or_a_bundle_is_code_1(arguments: list[str], expected: str, run: Run) -> None:
    left = run(*arguments)
    assert left.code == 1
    assert expected in left.err
    assert left.err.startswith("error: ")


def test_the_nearest_command_is_named(run: Run) -> None:
    for typo, command in {
        "trian": "train",
        "generat": "generate",
        "train_vae": "train-vae",
        "recipes": "recipe",
    }.items():
        assert run(typo).err.count(f"'{command}'") == 1, typo
    assert "'check'" in run("recipe", "chekc").err


@pytest.mark.parametrize(
    ("raised", "code", "message"),
    [
        (LdmkitError("a.toml: wrong"), 1, "error: a.toml: wrong\n"),
        (Interrupted("vae: saved at step 3 of 9; the same command goes on"), 130, None),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (PermissionError(errno.EACCES, "Permission denied", "/srv/runs"), 1, "error: /srv/runs: Permission denied\n"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "error: No space left on device\n"),
        (ModuleNotFoundError("No module named 'lpips'", name="lpips"), 1, None),
        (ModuleNotFoundError("No module named 'torch._C'", name="torch._C"), 1, None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_exit_codes(
    raised: BaseException, code: int, message: str | None, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise raised

    monkeypatch.setattr("ldmkit.cli.recipe.open_recipe", fail)
    left = run("recipe", "check", "cats")
    assert left.code == code
    assert left.err.strip() == (message or f"error: {raised}").strip() or "pip install 'ldmkit[train]'" in left.err
    assert "Traceback" not in left.err


def test_bugs_of_ours_are_not_dressed_up(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for bug in (AssertionError(), OSError("no file at all"), ModuleNotFoundError("no", name="ldmkit.nothing")):

        def fail(*_: object, bug: BaseException = bug) -> None:
            raise bug

        monkeypatch.setattr("ldmkit.cli.recipe.open_recipe", fail)
        with pytest.raises(type(bug)):
            run("recipe", "check", "cats")


@pytest.mark.parametrize(
    ("given", "spins"), [("", "1000"), ("GOMP_SPINCOUNT=7", "7"), ("OMP_WAIT_POLICY=ACTIVE", None)]
)
def test_waiting_threads_leave_their_cores_soon(
    given: str, spins: str | None, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless the user has said how they wait."""
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "")  # what the command sets is taken away in the end
        monkeypatch.delenv(name)
    if given:
        monkeypatch.setenv(*given.split("="))
    run("--version")
    assert os.environ.get("GOMP_SPINCOUNT") == spins


def test_a_real_interrupt_is_code_130(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "ldmkit", "data", "make", "toy-cats", "-n", "99999", "--out", "drawn"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # A job in the background of a script is started with SIGINT ignored, and hands that on.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        while process.poll() is None and not list(tmp_path.rglob("*.png")):
            time.sleep(0.05)  # until it draws
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
    assert process.returncode == 130
    assert err.strip() == "interrupted"
    assert not (tmp_path / "drawn").exists()


def test_a_reader_that_leaves_early() -> None:
    """As `| head -1` does: that is no failure."""
    read, write = os.pipe()
    with subprocess.Popen(
        [sys.executable, "-m", "ldmkit", "recipe", "schema"], stdout=write, stderr=subprocess.PIPE, text=True
    ) as process:
        os.close(write)
        os.close(read)
        _, err = process.communicate()
    assert err == ""
    assert process.returncode == 0


def test_what_the_terminal_cannot_show_ends_no_command(pictures: Path) -> None:
    """One of Windows' code pages, and a file whose name is no text in any encoding."""
    (pictures / "猫.png").write_bytes(b"x")
    checks = {"cp1252": "\\u732b.png: not a JPEG"}
    if sys.platform == "linux":
        (pictures / os.fsdecode(b"caf\xe9.png")).write_bytes(b"x")
        checks["utf-8"] = "caf\\udce9.png: not a JPEG"
    for encoding, shown in checks.items():
        done = subprocess.run(
            [sys.executable, "-m", "ldmkit", "data", "check", str(pictures), "--files", "--set", "data.max_bad=1"],
            cwd=pictures.parent,
            env=os.environ | {"PYTHONIOENCODING": encoding},
            capture_output=True,
            encoding=encoding,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert f"\n  {shown}" in done.stdout


WITHOUT_TRAINING_PACKAGES = f"""
import json, sys
sys.modules |= dict.fromkeys({sorted(TRAIN_PACKAGES)})
from ldmkit.cli import main
for arguments in json.loads(sys.argv.pop()):
    sys.argv[1:] = arguments
    try:
        main()
    except SystemExit as end:
        print("ended", *arguments, end.code)
"""


def without_training_packages(tmp_path: Path, *commands: list[str]) -> "subprocess.CompletedProcess[str]":
    """The commands one after the other in a process that has the base install alone."""
    code = [sys.executable, "-c", WITHOUT_TRAINING_PACKAGES, json.dumps(commands)]
    return subprocess.run(code, cwd=tmp_path, capture_output=True, text=True, check=True)


def test_training_packages_that_are_missing(tmp_path: Path) -> None:
    commands = [["train", "toy-cats"], ["train-unet", "toy-cats"], ["convert", "checkpoint.pth"]]
    left = without_training_packages(tmp_path, *commands)
    assert left.stdout.splitlines() == [f"ended {' '.join(command)} 1" for command in commands]
    told = left.stderr.splitlines()
    assert len(told) == len(commands)
    for line in told:
        assert line.startswith("error: this command needs torch")
        assert line.endswith("pip install 'ldmkit[train]'")
    assert list(tmp_path.iterdir()) == [], "it had begun before it saw"


def test_what_works_without_training_packages(tmp_path: Path) -> None:
    commands = [
        ["recipe", "check", "cats"],
        ["plugins"],
        ["train", "cats", "--dry-run"],
        ["data", "make", "toy-cats", "-n", "2"],
        ["data", "check", "data/toy-cats"],
    ]
    left = without_training_packages(tmp_path, *commands)
    ended = [line for line in left.stdout.splitlines() if line.startswith("ended ")]
    assert (ended, left.stderr) == ([f"ended {' '.join(command)} 0" for command in commands], "")


def test_control_characters_do_not_reach_the_terminal(run: Run, tmp_path: Path) -> None:
    """Names and texts of others' files are shown with escapes: none clears the screen or adds a line."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "\x1b[2J\n3 left out.png").write_bytes(b"x")
    draw(folder / "a\x07\u202e.png", "moves")
    for arguments in (
        ("data", "check", "pictures"),
        ("data", "check", "nothing\x1b[2J"),
        ("recipe", "check", "\x1b]0;x\x07"),
    ):
        left = run(*arguments)
        assert not {"\x1b", "\x07", "\u202e"} & set(left.out + left.err)
        assert "\\x1b" in left.out + left.err
    assert run("data", "check", "pictures").out.splitlines().count("cannot be used: 1") == 1


def draw(path: Path, *_: str) -> None:
    from PIL import Image

    Image.new("RGB", (8, 8), (1, 2, 3)).save(path)


def test_data_commands_show_their_progress_beside_the_result(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ldmkit.report.PATIENCE", 0)
    made = run("data", "make", "toy-cats", "-n", "3", "--size", "16")
    assert made.out == f"{Path('data/toy-cats')}\n"
    assert made.err.startswith("drawing toy-cats  3/3  ")
    checked = run("data", "check", "data/toy-cats")
    assert checked.out.startswith("3 pictures; sizes: 16x16 (3)\n")
    assert checked.err.startswith("reading pictures  3/3  ")
