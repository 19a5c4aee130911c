"""docs/examples/remote_captioner.py, asking a server in this process that answers as OpenAI's chat completions do."""

import base64
import io
import json
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ldmkit import Captioner, LdmkitError, Picture
from ldmkit.components.registry import Registry

PLUGIN = Path(__file__).parents[2] / "docs" / "examples" / "remote_captioner.py"
NAMES = {(255, 0, 0): "red", (0, 128, 0): "green", (0, 0, 255): "blue", (0, 0, 0): "black"}
KEY = "sk-very-secret"
Answer = tuple[int, dict[str, str], Any]


def said(text: str | None, finish_reason: str = "stop") -> Answer:
    """The published shape of a chat completion."""
    message = {"role": "assistant", "content": text, "refusal": None}
    choices = [{"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason}]
    return 200, {}, {"id": "chatcmpl-1", "object": "chat.completion", "created": 0, "model": "m", "choices": choices}


def refused(code: int, message: str, **headers: str) -> Answer:
    return code, headers, {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None}}


class Service:
    """Names the colour of the picture that it was sent, after what is laid ready for that colour."""

    def __init__(self) -> None:
        self.ready: defaultdict[str, list[Answer]] = defaultdict(list)
        self.requests: list[dict[str, Any]] = []
        self.sizes: list[tuple[int, int]] = []
        self.busy = self.most_busy = 0
        self.pause = 0.0
        self.lock = threading.Lock()

    def answer(self, path: str, headers: Any, body: bytes) -> Answer:
        with self.lock:
            self.busy += 1
            self.most_busy = max(self.most_busy, self.busy)
        request = json.loads(body)
        (message,) = request["messages"]
        text, image = message["content"]
        assert (path, message["role"], text["type"], image["type"]) == (
            "/v1/chat/completions",
            "user",
            "text",
            "image_url",
        )
        start, data = image["image_url"]["url"].split(",")
        assert start == "data:image/jpeg;base64"
        with Image.open(io.BytesIO(base64.b64decode(data, validate=True))) as picture:
            pixel = picture.convert("RGB").getpixel((0, 0))
            self.sizes.append(picture.size)
        colour = min(NAMES.items(), key=lambda item: sum(abs(a - b) for a, b in zip(item[0], pixel, strict=True)))[1]
        time.sleep(self.pause)
        with self.lock:
            self.busy -= 1
            self.requests.append({**request, "colour": colour, "at": time.time(), "headers": dict(headers)})
            return self.ready[colour].pop(0) if self.ready[colour] else said(f" a {colour}\n picture ")


@pytest.fixture
def service() -> Iterator[Any]:
    service = Service()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            code, headers, content = service.answer(
                self.path, self.headers, self.rfile.read(int(self.headers["Content-Length"]))
            )
            if code == 0:  # the connection is lost
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(code)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        service.url = f"http://127.0.0.1:{server.server_port}/v1"  # type: ignore[attr-defined]
        yield service
        server.shutdown()
        thread.join()


@pytest.fixture
def remote(service: Any) -> Callable[..., Any]:
    registry = Registry.load([PLUGIN])

    def build(**options: Any) -> Any:
        table = {"use": "remote", "url": service.url, "model": "m", **options}
        return registry.build("captioner", table, where="[caption]")

    return build


def pictures(*colours: str, size: tuple[int, int] = (40, 30)) -> list[Picture]:
    rgb = {name: colour for colour, name in NAMES.items()}
    return [
        Picture(path=Path(c), key=f"{c}.png", load=lambda c=c: Image.new("RGB", size, rgb[c]))  # type: ignore[misc]
        for c in colours
    ]


def test_captions_in_the_pictures_order_so_many_at_a_time(service: Any, remote: Any) -> None:
    service.pause = 0.05
    captioner = remote(at_once=3, prompt="What is it?", max_side=20, max_tokens=9)
    assert isinstance(captioner, Captioner)
    order = ["red", "blue", "black", "green", "red", "blue", "green"]
    assert captioner.caption(pictures(*order)) == [f"a {colour} picture" for colour in order]
    assert service.most_busy == 3
    assert set(service.sizes) == {(20, 15)}
    first = service.requests[0]
    assert (first["model"], first["max_tokens"]) == ("m", 9)
    assert first["messages"][0]["content"][0]["text"] == "What is it?"
    assert "Authorization" not in first["headers"]
    assert captioner.remarks() == []
    assert captioner.batch_size == 12


def test_what_may_pass_is_tried_again(service: Any, remote: Any) -> None:
    service.ready["red"] = [(0, {}, b""), refused(429, "slow down", **{"Retry-After": "2"})]
    service.ready["blue"] = [(503, {}, b"<html>busy</html>")]
    then = int(time.time()) + 3
    service.ready["green"] = [refused(500, "oh", **{"Retry-After": formatdate(then, usegmt=True)})]
    assert remote().caption(pictures("red", "blue", "green")) == ["a red picture", "a blue picture", "a green picture"]
    at = {c: [r["at"] for r in service.requests if r["colour"] == c] for c in NAMES.values()}
    assert [len(at[c]) for c in ("red", "blue", "green")] == [3, 2, 2]
    assert at["red"][2] - at["red"][1] >= 2  # what Retry-After says, in seconds or as a date
    assert at["green"][1] >= then


def test_patience_ends(service: Any, remote: Any) -> None:
    service.ready["red"] = [refused(429, "quota used up", **{"Retry-After": "3600"})]
    with pytest.raises(LdmkitError, match=r"does not caption red\.png: 429 .*quota used up, and asks to wait 3600 s"):
        remote().caption(pictures("red"))
    service.pause = 0.4
    with pytest.raises(LdmkitError, match=r"does not caption red\.png: timed out"):
        remote(timeout=0.1, patience=0).caption(pictures("red"))
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    began = time.monotonic()
    for url in (f"http://127.0.0.1:{port}", "http://127.0.0.1:99999", "http://127.0.0.1:x"):
        with pytest.raises(LdmkitError, match=r"cannot be reached.*correct caption\.url"):
            remote(url=url).caption(pictures("red", "blue"))
    assert time.monotonic() - began < 30, "an address that was never reached is not waited for"


def test_a_picture_that_is_refused(service: Any, remote: Any) -> None:
    service.ready["red"] = [refused(400, "content policy")]
    service.ready["blue"] = [said(None, "content_filter")]
    captioner = remote()
    assert captioner.caption(pictures("red", "green", "blue")) == [None, "a green picture", None]
    assert captioner.remarks() == [
        "red.png: 400 Bad Request, content policy",
        "blue.png: no text in the answer (finish_reason content_filter)",
    ]
    service.ready["red"] = [refused(400, "content policy")]
    assert captioner.caption(pictures("red")) == [None], "the last call of a run may hold that one alone"
    service.ready["red"] = [refused(400, "no such model")] * 4
    with pytest.raises(LdmkitError, match=r"takes no picture: red\.png: 400 Bad Request, no such model"):
        remote().caption(pictures("red", "red"))
    service.ready["red"] = [refused(400, "gone since")] * 4
    captioner = remote(at_once=1)
    assert captioner.caption(pictures("green")) == ["a green picture"]
    with pytest.raises(LdmkitError, match="takes no picture"):
        captioner.caption(pictures(*["red"] * 4))


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (refused(401, f"Incorrect API key: {KEY}"), r"401 Unauthorized, Incorrect API key: \*\*\*; correct .*key_from"),
        (refused(404, "no model m"), r"404 Not Found, no model m; correct caption\.url or caption\.model"),
        ((302, {"Location": "http://elsewhere.invalid/"}, b""), r"302 Found, to http://elsewhere.invalid/; correct"),
        ((200, {}, b"<html>\n log in</html>"), r"something other than a chat completion: <html> log in</html>"),
        ((200, {}, b"[" * 100_000), r"something other than a chat completion"),
        ((200, {}, {"choices": []}), r"something other than a chat completion"),
    ],
)
def test_mistakes_are_told_at_once(
    answer: Answer, told: str, service: Any, remote: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    service.ready["red"] = [answer]
    with pytest.raises(LdmkitError, match=told) as caught:
        remote(key_from="MY_KEY").caption(pictures("red"))
    assert KEY not in str(caught.value)
    assert [request["headers"]["Authorization"] for request in service.requests] == [f"Bearer {KEY}"]


def test_keys_that_are_none(remote: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MY_KEY", raising=False)
    with pytest.raises(LdmkitError, match="the environment has no MY_KEY"):
        remote(key_from="MY_KEY").caption(pictures("red"))
    monkeypatch.setenv("MY_KEY", "two\nlines")
    with pytest.raises(LdmkitError, match="MY_KEY holds characters") as caught:
        remote(key_from="MY_KEY").caption(pictures("red"))
    assert "two" not in str(caught.value)
    for url in ("http://me:word@host/v1", "file:///etc", "http://höst/v1", "http://host/v1?key=1"):
        with pytest.raises(LdmkitError, match=r"\[caption\] url"):
            remote(url=url)


def test_a_run_keeps_no_key(service: Any, workshop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    for file in (workshop.folder / "pictures").glob("*.txt"):
        file.unlink()
    (workshop.folder / "remote_captioner.py").write_text(PLUGIN.read_text())
    recipe = workshop.folder / "tiny.toml"
    table = f'[caption]\nuse = "remote"\nurl = "{service.url}"\nmodel = "m"\nkey_from = "MY_KEY"\n'
    recipe.write_text('plugins = ["./remote_captioner.py"]\n' + table + recipe.read_text())
    workshop.pipeline().run(("caption",))
    rows = (workshop.run / "captions" / "captions.jsonl").read_text().splitlines()
    assert len(rows) == len(service.requests) > 0
    assert all(json.loads(row)["captioner"] == "remote" for row in rows)
    assert service.requests[0]["headers"]["Authorization"] == f"Bearer {KEY}"
    written = [file.read_bytes() for file in (workshop.folder / "runs").rglob("*") if file.is_file()]
    assert any(b"MY_KEY" in content for content in written)
    assert not any(KEY.encode() in content for content in written)
