"""Another site's page in the same browser, ten ways against ours: nothing reaches the app, nothing is lost."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from starlette.datastructures import Headers

from ldmkit.ui.serve import Server
from tests.ui.conftest import DEFAULTS

WAYS = """
const [ours, victim, stop, draw, settings] = GIVEN;
const post = (data, fn_index, session_hash) => JSON.stringify({ data, fn_index, session_hash });
const add = (tag, properties) => new Promise((done) => {
  const made = Object.assign(document.createElement(tag), properties, { onload: done, onerror: done });
  document.body.append(made);
});
const failed = (error) => String(error);
const ways = {
  pictures: () => Promise.all([...Array(17).keys()].map((k) => add("img", { src: `${ours}heartbeat/evil-${k}` }))),
  messages: () => add("img", { src: `${ours}queue/data?session_hash=${victim}` }),
  stop: () => fetch(`${ours}run/predict`, { method: "POST", mode: "no-cors", body: post([], stop, victim) }),
  draw: () => fetch(`${ours}queue/join`, { method: "POST", mode: "no-cors", body: post(settings, draw, "evil") }),
  read: () => fetch(`${ours}../config`).then((answer) => answer.text()).then((text) => (window.seen = text)),
  script: () => add("script", { src: `${ours}../config` }),
  style: () => add("link", { rel: "stylesheet", href: `${ours}../theme.css` }),
  frame: () => add("iframe", { src: `${ours}../` }),
  events: () => new Promise((done) => (new EventSource(`${ours}heartbeat/evil`).onerror = done)),
  beacon: async () => navigator.sendBeacon(`${ours}run/predict`, post([], stop, victim)),
};
window.results = {};
for (const [name, way] of Object.entries(ways)) way().catch(failed).then(() => (window.results[name] = true));
"""


@contextmanager
def another_site(html: str) -> Iterator[int]:
    """The port at which it is."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(html.encode())

        def log_message(self, *_: Any) -> None:
            pass

    # Chromium may open a connection ahead and say nothing on it for a minute.
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as elsewhere:
        thread = threading.Thread(target=elsewhere.serve_forever, daemon=True)
        thread.start()
        try:
            yield elsewhere.server_address[1]
        finally:
            elsewhere.shutdown()
            thread.join()


def until(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize(("name", "site"), [("localhost", "cross-site"), ("127.0.0.1", "same-site")])
def test_another_sites_page_does_nothing(
    name: str,
    site: str,
    chromium: webdriver.Chrome,
    forger: Any,
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    session = server.page.sessions.begin("victim")  # a drawing in work, which has its first picture
    picture = tmp_path / "cat.png"
    picture.touch()
    server.page.sessions.add(session, [picture])
    before = list(server.page.sessions)
    seen: list[str] = []
    reached: list[str] = []
    app = server.guard.app

    async def recorded(scope: Any, receive: Any, send: Any) -> None:
        if Headers(scope=scope).get("sec-fetch-site") == site:
            reached.append(scope["path"])
        await app(scope, receive, send)

    monkeypatch.setattr(server.guard, "app", recorded)
    refusal = server.guard._refusal

    def looked(scope: Any) -> Any:
        if Headers(scope=scope).get("sec-fetch-site") == site:
            seen.append(scope["path"])
        return refusal(scope)

    monkeypatch.setattr(server.guard, "_refusal", looked)
    given = [f"{server.url}/gradio_api/", "victim", forger.number("stop"), forger.number("draw"), [*DEFAULTS.values()]]
    with another_site(f"<body><script>{WAYS.replace('GIVEN', json.dumps(given))}</script>") as port:
        chromium.get(f"http://{name}:{port}/")
        until(lambda: len(chromium.execute_script("return Object.keys(window.results)")) == 10)
        assert chromium.execute_script("return window.seen ?? null") is None
        # The eleventh: it leads its visitor there.
        chromium.execute_script("location.href = arguments[0]", f"{server.url}/gradio_api/heartbeat/evil")
        until(lambda: "another site" in chromium.page_source)
        paths = {path.rpartition("/")[0] if "heartbeat" in path else path for path in seen}
        assert paths >= {"/gradio_api/heartbeat", "/gradio_api/queue/data", "/gradio_api/queue/join", "/config", "/"}
        assert "/gradio_api/run/predict" in paths
        assert reached == []
        # A link to our page is no attack.
        chromium.get(f"http://{name}:{port}/")
        chromium.execute_script("location.href = arguments[0]", server.url)
        until(lambda: chromium.execute_script("return !!window.gradio_config"))
    assert list(server.page.sessions) == before
    assert picture.is_file()
    assert not session.stop.is_set()
    session.stop.set()
