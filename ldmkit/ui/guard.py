"""What reaches the page's server: requests of our own page alone, small, and free of paths.

A server on loopback is open to every page that the same browser shows: to a name that its owner points at 127.0.0.1
(DNS rebinding), which Host gives away, and to plain requests across sites, which Origin gives away. And Gradio answers
far more routes than this page uses: uploads, a proxy, an editor. Only what the page needs gets through.
"""

import ipaddress
import json
import socket
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY = 64 << 10
"""bytes of a request; the page's own have a few thousand at most"""

READS = ("/assets/", "/static/", "/svelte/", "/gradio_api/file=", "/gradio_api/heartbeat/")
READS_WHOLE = ("/", "/config", "/theme.css", "/favicon.ico", "/robots.txt", "/manifest.json", "/gradio_api/queue/data")
WRITES = ("/gradio_api/queue/join", "/gradio_api/run/predict", "/gradio_api/cancel", "/gradio_api/reset")

# All that a page loads comes from its own server; Gradio's scripts and styles are partly inline.
CONTENT_SECURITY_POLICY = "; ".join(
    [
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    ]
)
HEADERS = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cross-origin-resource-policy": "same-origin",
}


def allowed_hosts(host: str) -> set[str]:
    """Names by which a browser may reach a server that listens on `host`."""
    names = {"localhost", "127.0.0.1", "::1"}
    if not is_loopback(host):
        names |= {host.lower(), socket.gethostname().lower(), socket.getfqdn().lower()}
    return names


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server on `host`."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


class Guard:
    """ASGI middleware around the whole app: refuses with one line of plain text, or passes on."""

    def __init__(
        self, app: ASGIApp, hosts: Iterable[str], *, num_inputs: Mapping[int, int], any_address: bool = False
    ) -> None:
        """`hosts`: names allowed in Host. `any_address`: every IP address too, to which no foreign name can lead.

        `num_inputs`: number of each event -> how many values it takes.
        """
        self.app = app
        self.hosts = set(hosts)
        self.num_inputs = num_inputs
        self.any_address = any_address

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # the page uses no websocket
            await send({"type": "websocket.close", "code": 1008})
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message["headers"],
                    *((name.encode(), value.encode()) for name, value in HEADERS.items()),
                ]
            await send(message)

        refusal = self._refusal(scope)
        if refusal is None and scope["method"] == "POST":
            body = await _body(receive)
            refusal = self._body_refusal(body, event=not scope["path"].endswith(("/cancel", "/reset")))
            receive = _replay(body, receive)
        if refusal is None:
            await self.app(scope, receive, send_with_headers)
        else:
            code, reason = refusal
            await PlainTextResponse(f"{reason}\n", code)(scope, receive, send_with_headers)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        """Status and reason, None for a request that may pass."""
        headers, path, method = Headers(scope=scope), scope["path"], scope["method"]
        host = ",".join(headers.getlist("host"))
        if "@" in host or not self._allows(urlsplit(f"//{host}").hostname or ""):
            return 403, "this name is not one of this server's: open the address that `ldmkit ui` printed"
        origins = headers.getlist("origin")
        if origins and (len(origins) > 1 or urlsplit(origins[0]).netloc.lower() != host.lower()):
            return 403, "another site's page may not use this server"
        if method in ("GET", "HEAD"):
            # Gradio would fetch a URL here, and serve what it got.
            remote = path.startswith("/gradio_api/file=") and "://" in path
            if not remote and (path in READS_WHOLE or path.startswith(READS)):
                return None
        elif method == "POST" and path in WRITES:
            return None
        return 404, "there is nothing here"

    def _body_refusal(self, body: bytes | None, *, event: bool) -> tuple[int, str] | None:
        """Gradio copies a file to where it can be fetched wherever `data` holds an object that names one.

        No component of this page takes an object, so none gets through.
        """
        if body is None:
            return 413, f"a request has {MAX_BODY} bytes at most"
        try:
            content: Any = json.loads(body)
        except (ValueError, RecursionError):
            return 400, "the request is not JSON"
        if not isinstance(content, dict):
            return 400, "the request must be a JSON object"
        data, number = content.get("data", []), content.get("fn_index")
        if not isinstance(data, list) or any(isinstance(value, list | dict) for value in data):
            return 400, "the request's data must be a list of texts and numbers"
        if event and (not isinstance(number, int) or self.num_inputs.get(number) != len(data)):
            return 400, "the request is for no event of this page, or has too few or too many values"
        return None

    def _allows(self, name: str) -> bool:
        if name in self.hosts:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return self.any_address


async def _body(receive: Receive) -> bytes | None:
    """The request's body, None where it is larger than MAX_BODY."""
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return body
        part: bytes = message.get("body", b"")
        body += part
        if len(body) > MAX_BODY:
            return None
        if not message.get("more_body", False):
            return body


def _replay(body: bytes | None, receive: Receive) -> Receive:
    """A `receive` that gives the body that was read, then goes on as before."""
    waiting = [{"type": "http.request", "body": body or b"", "more_body": False}]

    async def replay() -> Message:
        return waiting.pop() if waiting else await receive()

    return replay
