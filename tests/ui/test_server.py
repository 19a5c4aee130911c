"""The server against requests that are not its page's: forged values, names, origins and paths."""

import asyncio
import os
import socket
from pathlib import Path
from typing import Any

import httpx
import pytest

from ldmkit.errors import LdmkitError
from ldmkit.runtime.bundle import Bundle
from ldmkit.ui.attendance import Attendance
from ldmkit.ui.guard import Guard, allowed_hosts, is_loopback
from ldmkit.ui.serve import Server, bind, running
from ldmkit.ui.sessions import Sessions


def test_a_plain_request_draws(forger: Any) -> None:
    assert forger.draw() == (200, "")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": 5000}, "the number of steps is 5000; it must be from 1 to 200"),
        ({"count": 17}, "the number of pictures is 17; it must be from 1 to 16"),
        ({"guidance": 31}, "the guidance is 31; it must be from 0 to 30"),
        ({"seed": 2**53 - 1}, "the seed is 9007199254740991; it must be from 0 to 4294967295"),
        ({"seed": -1}, "the seed is -1; it must be from 0 to 4294967295"),
        ({"prompt": "x" * 1001}, "the prompt has 1001 characters; 1000 are the most"),
        ({"sampler": "ddi"}, "the sampler must be one of "),
        ({"width": 160}, "the width is 160; it must be from 32 to 128"),
        ({"height": 65}, "the height is 65; it must be a multiple of 16"),
        ({"bundle": "wordless", "prompt": "", "width": 32}, "the width is 32; it must be from 64 to 64"),
        ({"bundle": "../secret"}, "there is no such bundle"),
        ({"negative": "dog", "guidance": 1}, "negative_prompt has no effect at guidance_scale 1"),
        ({"bundle": "wordless"}, "bundle wordless has no unet_t2i.onnx: it draws without a prompt only"),
    ],
)
def test_forged_values_get_one_line(
    changes: dict[str, Any], words: str, forger: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    answer = forger.draw(**changes)
    assert answer.status == 200
    assert answer.text.startswith(words)
    assert "\n" not in answer.text
    assert "Traceback" not in capfd.readouterr().err


def test_a_file_of_the_server_is_no_input(forger: Any, tmp_path: Path) -> None:
    """Gradio takes an object like this for an upload of its own, and shows the file to whoever asks."""
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    upload = {"path": str(secret), "meta": {"_type": "gradio.FileData"}}
    for key in ("prompt", "bundle", "seed"):
        assert forger.draw(**{key: upload}) == (400, "the request's data must be a list of texts and numbers\n")
        assert forger.draw(**{key: [upload]}).status == 400
    assert forger.server.page.app.has_launched, "without this Gradio itself does not check such paths"


def test_events_that_are_none(forger: Any, capfd: pytest.CaptureFixture[str]) -> None:
    refused = (400, "the request is for no event of this page, or has too few or too many values\n")
    for number, data in ((forger.number("draw"), [1, 2]), (999, []), ("0", []), (None, [])):
        answer = forger.post("queue/join", data=data, fn_index=number, session_hash="none")
        assert (answer.status_code, answer.text) == refused
    other = str(forger.server.page.folder.parent / "shown" / "other.png")  # what lies elsewhere Gradio refuses itself
    for event_data in (None, 5, {}, {"value": None}, {"value": {"image": {"path": other}}}):
        answer = forger.post(
            "run/predict", data=[], fn_index=forger.number("select"), session_hash="none", event_data=event_data
        )
        assert (answer.status_code, answer.json()["error"]) == (400, "this picture is not here any more")
    assert "Traceback" not in capfd.readouterr().err


HUGE = [int("9" * 17), -(10**400), float("nan"), float("inf"), "9" * 400]


@pytest.mark.parametrize("key", ["session_hash", "event_id", "event_data", "fn_index", "trigger_id", "batched", "data"])
def test_no_value_of_any_key_is_an_error_of_the_server(
    key: str, forger: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    event = {"data": [], "fn_index": forger.number("select"), "session_hash": "none", "event_id": "0"}
    for value in (None, *HUGE, {}, [[]], {"value": {"image": HUGE[0]}}, True, -1, "\ud800", "<b>"):
        for path in ("run/predict", "cancel"):
            assert forger.post(path, **event | {key: value}).status_code in (200, 400, 422), (path, value)
    assert capfd.readouterr().err == ""


def test_bodies(client: httpx.Client) -> None:
    for body, status in ((b"{", 400), (b"[]", 400), (b"[" * 60_000, 400), (b"x" * 70_000, 413)):
        answer = client.post("/gradio_api/queue/join", content=body)
        assert (answer.status_code, answer.text.count("\n")) == (status, 1)


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "127.0.0.1.evil.example", "evil.example:{port}", "", "192.168.1.4", "me@localhost"),
        *("[", "[::1", "[::1]x", "localhost:", "localhost:99999999", "localhost/x", "localhost#", "//localhost"),
    ],
)
def test_a_forged_host_is_refused(host: str, client: httpx.Client, server: Server) -> None:
    answer = client.get("/", headers={"host": host.format(port=server.port)})
    assert answer.status_code == 403
    assert "window.gradio_config" not in answer.text


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:{port}", "127.0.0.1:{port}", "[::1]:{port}"])
def test_the_servers_own_names(host: str, client: httpx.Client, server: Server) -> None:
    assert client.get("/", headers={"host": host.format(port=server.port)}).status_code == 200


def test_two_hosts_are_refused(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as raw:
        raw.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\nConnection: close\r\n\r\n")
        assert raw.recv(12) in (b"HTTP/1.1 403", b"HTTP/1.1 400")


@pytest.mark.parametrize("hosts", [("localhost", "evil.example"), ("evil.example", "localhost")])
def test_two_hosts_that_a_server_lets_through_are_refused_by_the_guard(hosts: tuple[str, str]) -> None:
    """uvicorn refuses them itself, so that they never reach the guard from outside."""
    sent: list[Any] = []

    async def reached(scope: Any, receive: Any, send: Any) -> None:
        sent.append("the app")

    async def send(message: Any) -> None:
        sent.append(message.get("status"))

    scope = {"type": "http", "method": "GET", "path": "/", "headers": [(b"host", host.encode()) for host in hosts]}
    queue: Any = None  # of no use before a request is let through
    attendance = Attendance(Sessions(), queue)
    asyncio.run(Guard(reached, {"localhost"}, num_inputs={}, attendance=attendance)(scope, pytest.fail, send))
    assert sent == [403, None]


@pytest.mark.parametrize(
    "origin",
    [
        *("http://evil.example", "null", "file://", "http://localhost:1", "http://127.0.0.1"),
        *("http://[", "http://[::1", "", "http://127.0.0.1:x", "http://\xff"),
    ],
)
def test_a_forged_origin_is_refused(origin: str, client: httpx.Client, server: Server) -> None:
    for method, path in (("GET", "/"), ("POST", "/gradio_api/queue/join"), ("OPTIONS", "/gradio_api/queue/join")):
        answer = client.request(
            method, path, headers={"origin": origin.encode("latin-1"), "access-control-request-method": "POST"}
        )
        assert answer.status_code == 403
        assert "access-control-allow-origin" not in answer.headers
    assert client.get("/", headers={"origin": server.url}).status_code == 200


def test_only_its_own_pictures_are_served(client: httpx.Client, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    for path in (
        f"/gradio_api/file={tmp_path / 'secret.txt'}",
        f"/gradio_api/file={Path(__file__)}",
        f"/gradio_api/file={os.environ.get('HOME', '/')}",
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file=..%2f..%2f..%2f..%2fetc%2fpasswd",
    ):
        answer = client.get(path)
        assert answer.status_code == 403, path
        assert "secret" not in answer.text.replace("secret.txt", "")


def test_routes_of_gradio_that_the_page_does_not_use(client: httpx.Client) -> None:
    for path in (
        *("/gradio_api/file=http://127.0.0.1/", "/gradio_api/proxy=http://127.0.0.1/", "/file=/etc/passwd"),
        *("/gradio_api/info", "/gradio_api/openapi.json", "/docs", "/monitoring", "/gradio_api/vibe-code/"),
        *("/gradio_api/startup-events", "/gradio_api/runs", "/gradio_api/dev/reload", "/gradio_api/deep_link"),
    ):
        assert client.get(path).status_code == 404, path
    for path in ("/gradio_api/upload", "/gradio_api/component_server", "/gradio_api/call/draw", "/login"):
        assert client.post(path, json={}).status_code == 404, path


def test_nothing_may_be_loaded_from_elsewhere(client: httpx.Client) -> None:
    policy = client.get("/").headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "http" not in policy.replace("'self'", "")


def test_the_queue_is_bounded(forger: Any) -> None:
    """One in work and eight that wait; each leaves when it is stopped, wherever it stands."""
    sessions = [forger.join(steps=200, count=16)[1]]
    forger.until_in_queue(1)
    sessions += [forger.join()[1] for _ in range(8)]
    forger.until_in_queue(9)
    assert forger.draw().text == "8 drawings wait already; try again in a while"
    forger.stop(sessions[4])
    forger.until_in_queue(8)
    forger.join()
    forger.until_in_queue(9)
    for session in sessions:
        forger.stop(session)
    forger.until_in_queue(0)


def test_ports(bundles: dict[str, Bundle], server: Server) -> None:
    with (
        pytest.raises(LdmkitError, match=rf"port {server.port} can.*--port"),
        running(bundles, host="127.0.0.1", port=server.port),
    ):
        pass
    with pytest.raises(LdmkitError, match=r"--host nowhere\.invalid"):
        bind("nowhere.invalid", 0)
    with bind("127.0.0.1", None) as first, bind("127.0.0.1", None) as second:
        assert 7860 <= first.getsockname()[1] < second.getsockname()[1] < 7880


def test_loopback() -> None:
    assert all(is_loopback(host) for host in ("127.0.0.1", "127.8.8.8", "::1", "[::1]", "localhost"))
    assert not any(is_loopback(host) for host in ("0.0.0.0", "::", "192.168.1.4", "example.org", "localhost.evil"))
    assert allowed_hosts("127.0.0.1") == {"localhost", "127.0.0.1", "::1"}
    assert "studio.lan" in allowed_hosts("studio.lan")


def test_pictures_are_gone_with_the_server(bundles: dict[str, Bundle]) -> None:
    with running(bundles, host="127.0.0.1", port=0) as server:
        folder = server.page.folder.parent
        assert folder.is_dir()
        assert folder.stat().st_mode & 0o077 == 0, "for this user alone"
    assert not folder.exists()
