"""The page on a network: names and passwords, a reverse proxy, connections and drawings that nobody reads."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from ldmkit.errors import LdmkitError
from ldmkit.runtime.bundle import Bundle
from ldmkit.ui import attendance, connections, guard
from ldmkit.ui.passwords import is_known, read_passwords
from ldmkit.ui.serve import Server, running, sweep


def test_behind_a_proxy_with_passwords(bundles: dict[str, Bundle], tmp_path: Path) -> None:
    (tmp_path / "people").write_text("anna:pass:wörd\nbert:x\n", encoding="utf-8")
    with running(
        bundles,
        host="127.0.0.1",
        port=0,
        allowed=["Studio.Example"],
        root_path="/draw",
        passwords=read_passwords(tmp_path / "people"),
    ) as server:
        # As nginx sends them with `proxy_set_header Host $http_host` and `X-Forwarded-Proto $scheme`.
        proxied = {"host": "studio.example", "x-forwarded-proto": "https"}
        with httpx.Client(base_url=server.url, trust_env=False, timeout=60, headers=proxied) as client:
            refused = client.get("/")
            assert (refused.status_code, refused.headers["www-authenticate"][:5]) == (401, "Basic")
            assert client.get("/config", auth=("anna", "pass")).status_code == 401
            client.auth = ("anna", "pass:wörd")
            assert client.get("/config").json()["root"] == "https://studio.example/draw"
            for origin, status in (("https://studio.example", 400), ("https://evil.example", 403)):
                headers = {"origin": origin}
                assert client.post("/gradio_api/queue/join", json={}, headers=headers).status_code == status
            assert client.get("/", headers={"host": "evil.example"}).status_code == 403


def test_passwords_that_are_none() -> None:
    """RFC 7617's own example, and what is not it."""
    people = {"Aladdin": "open sesame", "empty": ""}
    assert is_known("Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==", people)
    assert is_known("basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==", people)
    for header in (
        *("", "Basic", "Basic ü", "Basic /w==", "Basic QWxhZGRpbg==", "Basic Og==", "Basic !!!!"),
        *("Bearer QWxhZGRpbjpvcGVuIHNlc2FtZQ==", "Basic QWxhZGRpbjpPcGVuIHNlc2FtZQ=="),
    ):
        assert not is_known(header, people), header


@pytest.mark.parametrize("text", ["", "anna\n", "anna:\n", ":x\n", "anna:x\n\nbert:y\n", "anna:x\nanna:y\n"])
def test_a_file_of_passwords_that_is_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "people").write_text(text)
    with pytest.raises(LdmkitError, match=r"^--auth .*people.*NAME:PASSWORD"):
        read_passwords(tmp_path / "people")


def test_a_drawing_that_nobody_reads_ends(forger: Any, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attendance, "UNREAD", 2)
    assert forger.draw(steps=200, count=4) == (200, ""), "which takes about as long"
    queue = server.page.app._queue
    _, unread = forger.join(steps=200, count=16)
    end = time.monotonic() + 60
    while unread in queue.pending_messages_per_session and time.monotonic() < end:
        time.sleep(0.02)
    assert unread not in queue.pending_messages_per_session
    assert unread not in queue.pending_event_ids_session
    forger.until_in_queue(0)
    assert len(server.page.sessions.find(unread).pictures) < 16


def test_messages_for_a_page_that_asked_for_nothing(client: httpx.Client, capfd: pytest.CaptureFixture[str]) -> None:
    for query in ("", "?session_hash=none", "?session_hash=%ff"):
        assert client.get(f"/gradio_api/queue/data{query}").status_code == 404
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    "sent",
    [b"", b"GET / HTTP/1.1\r\nHost: localhost\r\n", b"GET /robots.txt HTTP/1.1\r\nHost: localhost\r\n\r\nGET / HT"],
    ids=["nothing", "half a request", "one and a half"],
)
def test_idle_connections_end(sent: bytes, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "IDLE", 0.3)
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as raw:
        raw.sendall(sent)
        while raw.recv(4096):  # a timeout fails the test
            pass


def test_a_body_that_does_not_arrive(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "BODY_TIME", 0.3)
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as raw:
        raw.sendall(b"POST /gradio_api/queue/join HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
        assert raw.recv(12) == b"HTTP/1.1 408"


def test_an_open_page_is_no_idle_connection(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "IDLE", 0.2)
    heartbeat = f"{server.url}/gradio_api/heartbeat/open"
    with httpx.stream("GET", heartbeat, trust_env=False, timeout=2) as beat, pytest.raises(httpx.ReadTimeout):
        for _ in beat.iter_lines():  # an end would raise nothing
            pass


@pytest.mark.skipif(os.name != "posix", reason="a signal of POSIX")
def test_folders_of_dead_servers_are_swept_and_those_of_living_ones_kept(tmp_path: Path) -> None:
    hold = (
        "import sys, time; from pathlib import Path; from ldmkit.run.lock import locked\n"
        "with locked(Path(sys.argv[1])): print(flush=True); time.sleep(600)"
    )
    folder = tmp_path / "ldmkit-ui-held"
    (tmp_path / "ldmkit-ui-new").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / ".lock").touch()
    (tmp_path / "ldmkit-ui-link").symlink_to(tmp_path / "other")
    with subprocess.Popen([sys.executable, "-c", hold, str(folder)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        (folder / "new").mkdir()
        sweep(tmp_path)
        assert folder.is_dir()
        process.send_signal(signal.SIGKILL)
        process.wait()
    sweep(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"ldmkit-ui-new", "ldmkit-ui-link", "other"}
