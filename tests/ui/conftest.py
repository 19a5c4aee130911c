"""A page served in this process."""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import httpx
import pytest
from selenium import webdriver

from ldmkit.runtime.bundle import Bundle
from ldmkit.runtime.manifest import file_entry
from ldmkit.ui import attendance
from ldmkit.ui.serve import Server, running
from tests.ui.browser import Browser, chromium_is_here, start_chromium

SHIPPED = Path(__file__).parents[2] / "exports" / "toy-cats"
DEFAULTS = {
    "bundle": "toy-cats",
    "prompt": "a cute orange cat",
    "negative": "",
    "seed": 0,
    "steps": 2,
    "guidance": 2.0,
    "sampler": "ddim",
    "width": 64,
    "height": 64,
    "count": 1,
}
"""what the page sends to draw, in its order"""

HOSTILE_CARD = """# A card
<script>window.struck = 1</script><img src="x" onerror="window.struck = 1">
![far](https://elsewhere.invalid/far.png) ![near](near.png) ![its own](preview.png)
[run](javascript:window.struck=1) [data](data:text/html,x) [site](https://elsewhere.invalid/)

| a | b |
|---|---|
| <b onclick="window.struck=1">1</b> | 2 |
"""


def copy_bundle(folder: Path, change: Callable[[dict[str, Any]], None]) -> Bundle:
    """The shipped bundle in `folder`, its manifest changed."""
    shutil.copytree(SHIPPED, folder)
    manifest = json.loads((SHIPPED / "manifest.json").read_text())
    change(manifest)
    del manifest["sha256"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return Bundle.load(folder, provider="cpu")


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    """`toy-cats`, which has previews, and `wordless`: no text, no previews, one size, a hostile card."""
    exports = tmp_path_factory.mktemp("exports")

    def with_previews(manifest: dict[str, Any]) -> None:
        channels = manifest["latent"]["channels"]
        rows = [[0.3 if channel == colour else 0.0 for channel in range(channels)] for colour in range(3)]
        manifest["latent"]["rgb"] = {"weights": rows, "bias": [0.0, 0.1, 0.2], "r2": 0.5}

    def without_text(manifest: dict[str, Any]) -> None:
        card = exports / "wordless" / "README.md"
        card.write_text(HOSTILE_CARD)
        manifest["files"]["README.md"] = file_entry(card).model_dump()
        for name in ("unet_t2i.onnx", "text_encoder.onnx", "tokenizer.json"):
            (exports / "wordless" / name).unlink()
            for table in ("files", "graphs", "trajectories"):
                manifest.get(table, {}).pop(name, None)
        manifest |= {"name": "wordless", "text": None, "golden": None, "examples": []}
        manifest["latent"] |= {"rgb": None, "multiple": None}

    return {
        "toy-cats": copy_bundle(exports / "toy-cats", with_previews),
        "wordless": copy_bundle(exports / "wordless", without_text),
    }


@pytest.fixture(scope="session")
def server(bundles: dict[str, Bundle]) -> Iterator[Server]:
    with running(bundles, host="127.0.0.1", port=0) as server:
        yield server


@pytest.fixture(scope="session")
def client(server: Server) -> Iterator[httpx.Client]:
    # Without the environment's proxies: the server is on loopback.
    with httpx.Client(base_url=server.url, trust_env=False, timeout=60) as client:
        yield client


class Answer(NamedTuple):
    """What a request for a drawing ended with."""

    status: int
    text: str
    """the refusal, "" where it drew"""


class Forger:
    """Sends the server what the page sends, and what it never would."""

    def __init__(self, client: httpx.Client, server: Server) -> None:
        self.client = client
        self.server = server

    def number(self, handler: str) -> int:
        """Number of the event that calls `Page.handler`."""
        events = self.server.page.app.fns.items()
        (number,) = [number for number, event in events if getattr(event.fn, "__name__", "") == handler]
        return int(number)

    def post(self, path: str, **body: Any) -> httpx.Response:
        """JSON as Python writes it: NaN goes through."""
        headers = {"content-type": "application/json"}
        return self.client.post(f"/gradio_api/{path}", content=json.dumps(body), headers=headers)

    def join(self, **changes: Any) -> tuple[httpx.Response, str]:
        """Asks for a drawing with `changes` to DEFAULTS, in a new session; the response, and the session."""
        session = f"forged-{uuid4().hex}"
        data = list((DEFAULTS | changes).values())
        return self.post("queue/join", data=data, fn_index=self.number("draw"), session_hash=session), session

    def draw(self, **changes: Any) -> Answer:
        """Asks for a drawing and waits for its end."""
        joined, session = self.join(**changes)
        if joined.status_code != 200:
            return Answer(joined.status_code, joined.text)
        with self.client.stream("GET", "/gradio_api/queue/data", params={"session_hash": session}) as stream:
            for line in stream.iter_lines():
                if line.startswith("data:"):
                    message = json.loads(line.removeprefix("data:"))
                    if message["msg"] == "process_completed":
                        return Answer(200, message["output"].get("error", ""))
        raise AssertionError("the stream ended before the drawing did")

    def stop(self, session: str) -> None:
        """As that session's page would."""
        self.post("run/predict", data=[], fn_index=self.number("stop"), session_hash=session)

    def until_in_queue(self, count: int) -> None:
        """Waits until so many drawings are in work and wait."""
        end = time.monotonic() + 300
        while len(self.server.page.turns) != count:
            assert time.monotonic() < end, f"{len(self.server.page.turns)} drawings, and not {count}"
            time.sleep(0.02)


@pytest.fixture
def forger(client: httpx.Client, server: Server, monkeypatch: pytest.MonkeyPatch) -> Forger:
    monkeypatch.setattr(attendance, "UNREAD", 600)  # it does not read of the drawings that it lets wait
    return Forger(client, server)


@pytest.fixture(scope="session")
def chromium() -> Iterator[webdriver.Chrome]:
    if not chromium_is_here():
        pytest.skip("Chromium or its driver is not installed (Debian: chromium, chromium-driver)")
    with start_chromium() as driver:
        yield driver


@pytest.fixture
def browser(chromium: webdriver.Chrome, server: Server) -> Browser:
    return Browser(chromium, server.url)
