"""`ldmkit ui` as a command: without Gradio, with a wrong bundle, and ended by a signal."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

SHIPPED = Path(__file__).parents[2] / "exports" / "toy-cats"
RUN = "from ldmkit.cli import main; main()"


def ldmkit(code: str, *arguments: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=cwd, capture_output=True, text=True, check=False
    )


def test_without_gradio_it_is_listed_and_says_what_to_install(tmp_path: Path) -> None:
    without = f"import sys; sys.modules['gradio'] = None; {RUN}"
    assert "\n  ui " in ldmkit(without, "--help", cwd=tmp_path).stdout
    left = ldmkit(without, "ui", str(SHIPPED), cwd=tmp_path)
    assert left.returncode == 1
    assert left.stderr == "error: this command needs gradio, which only the page uses: pip install 'ldmkit[ui]'\n"


def test_a_wrong_bundle_and_a_wrong_port(tmp_path: Path) -> None:
    left = ldmkit(RUN, "ui", "nowhere", cwd=tmp_path)
    assert (left.returncode, left.stderr.count("\n")) == (1, 1)
    assert left.stderr.startswith("error: nowhere is not a bundle")
    assert ldmkit(RUN, "ui", "--port", "99999", cwd=tmp_path).returncode == 2


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_a_signal_ends_it_and_removes_its_files(tmp_path: Path) -> None:
    """A real process: on loopback, without torch, nothing left behind, though a page is open."""
    report = f"import atexit, sys; atexit.register(lambda: print('torch' in sys.modules)); {RUN}"
    with subprocess.Popen(
        [sys.executable, "-c", report, "ui", str(SHIPPED), "--port", "0", "--no-browser"],
        cwd=tmp_path,
        env=os.environ | {"TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("http://127.0.0.1:"), process.communicate()[1]
        with httpx.stream("GET", f"{line.split()[0]}/gradio_api/heartbeat/open", trust_env=False, timeout=60) as beat:
            assert next(beat.iter_text()).startswith("data: ALIVE")
            assert list(tmp_path.glob("ldmkit-ui-*"))
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate()
    assert (process.returncode, out, err) == (143, "False\n", "")
    assert not list(tmp_path.glob("ldmkit-ui-*"))
