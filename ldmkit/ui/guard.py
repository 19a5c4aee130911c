"""What reaches the page's server: requests of our own page alone, small, and free of paths.

A server on loopback is open to every page that the same browser shows: to a name that its owner points at 127.0.0.1
(DNS rebinding), which Host gives away, and to plain requests across sites, which Origin and Sec-Fetch-Site give away.
And Gradio answers far more routes than this page uses: uploads, a proxy, an editor. Only what the page needs gets
through.
"""

import asyncio
import ipaddress
import json
import math
import re
import socket
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import parse_qs

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ldmkit.ui.attendance import HEARTBEAT, JOIN, READ, Attendance
from ldmkit.ui.passwords import is_known

MAX_BODY = 64 << 10
"""bytes of a request; the page's own have a few thousand at most"""
BODY_TIME = 20.0
"""seconds for them to arrive"""
MAX_DIGITS = 16
"""of a whole number; a browser's own are below 2^53"""

PREDICT = "/gradio_api/run/predict"
READS = ("/assets/", "/static/", "/svelte/", "/gradio_api/file=", HEARTBEAT)
READS_WHOLE = ("/", "/config", "/theme.css", "/favicon.ico", "/robots.txt", "/manifest.json", READ)
WRITES = (JOIN, PREDICT, "/gradio_api/cancel", "/gradio_api/reset")
HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^\s:/?#@\\\[\]]+)(:[0-9]{1,5})?", re.IGNORECASE)
"""a name or an address, and perhaps a port"""

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
    "cross-origin-opener-policy": "same-origin",
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
        self,
        app: ASGIApp,
        hosts: Iterable[str],
        *,
        num_inputs: Mapping[int, int],
        attendance: Attendance,
        any_address: bool = False,
        passwords: Mapping[str, str] | None = None,
    ) -> None:
        """`hosts`: names allowed in Host. `any_address`: every IP address too, to which no foreign name can lead.

        `num_inputs`: number of each event -> how many values it takes. `passwords`: by name; None asks for none.
        """
        self.app = app
        self.hosts = set(hosts)
        self.num_inputs = num_inputs
        self.attendance = attendance
        self.any_address = any_address
        self.passwords = passwords

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

        path = scope["path"]
        answer = _refused_as_400(send_with_headers) if path == PREDICT else send_with_headers
        page = path.removeprefix(HEARTBEAT)
        if path == READ:
            page = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("session_hash", [""])[-1]
        refusal = self._refusal(scope)
        if refusal is None and path == READ and not self.attendance.expects(page):
            refusal = 404, "this page has asked for nothing"
        if refusal is None and scope["method"] == "POST":
            try:
                body = await asyncio.wait_for(_body(receive), BODY_TIME)
                content = _json(body)
                page = str(content.get("session_hash"))
                refusal = self._data_refusal(content, event=path in (JOIN, PREDICT))
                receive = _replay(body, receive)
            except _Refused as refused:
                refusal = refused.code, refused.reason
            except TimeoutError:
                refusal = 408, f"a request arrives within {BODY_TIME:.0f} seconds"
        if refusal is None:
            with self.attendance.of(path, page):
                await self.app(scope, receive, answer)
            return
        code, reason = refusal
        asks = {"www-authenticate": 'Basic realm="ldmkit", charset="UTF-8"'} if code == 401 else None
        if code == 401 and Headers(scope=scope).get("authorization"):
            await asyncio.sleep(1)  # whoever guesses has a second for each guess
        await PlainTextResponse(f"{reason}\n", code, asks)(scope, receive, send_with_headers)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        """Status and reason, None for a request that may pass."""
        headers, path, method = Headers(scope=scope), scope["path"], scope["method"]
        host = ",".join(headers.getlist("host")).lower()
        parts = HOST.fullmatch(host)
        if parts is None or not self._allows(parts[1].strip("[]")):
            return 403, "this name is not one of this server's: open the address that `ldmkit ui` printed"
        origins = {origin.lower() for origin in headers.getlist("origin")}
        # A link from anywhere may lead to the page, which then is one of its own.
        is_visit = method == "GET" and path == "/" and headers.get("sec-fetch-dest") == "document"
        is_foreign = headers.get("sec-fetch-site", "none") not in ("same-origin", "none") and not is_visit
        if is_foreign or origins not in (set(), {f"http://{host}"}, {f"https://{host}"}):
            return 403, "another site's page may not use this server"
        if self.passwords is not None and not is_known(headers.get("authorization", ""), self.passwords):
            return 401, "this page asks for a name and a password"
        if method in ("GET", "HEAD"):
            # Gradio would fetch a URL here, and serve what it got.
            remote = path.startswith("/gradio_api/file=") and "://" in path
            if not remote and (path in READS_WHOLE or path.startswith(READS)):
                return None
        elif method == "POST" and path in WRITES:
            return None
        return 404, "there is nothing here"

    def _data_refusal(self, content: Mapping[str, Any], *, event: bool) -> tuple[int, str] | None:
        """Gradio copies a file to where it can be fetched wherever `data` holds an object that names one.

        No component of this page takes an object, so none gets through.
        """
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


class _Refused(Exception):
    """Ends the reading of a request."""

    def __init__(self, code: int, reason: str) -> None:
        self.code, self.reason = code, reason


async def _body(receive: Receive) -> bytes:
    """The request's body. Raises _Refused where it is larger than MAX_BODY."""
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return body
        part: bytes = message.get("body", b"")
        body += part
        if len(body) > MAX_BODY:
            raise _Refused(413, f"a request has {MAX_BODY} bytes at most")
        if not message.get("more_body", False):
            return body


def _json(body: bytes) -> dict[str, Any]:
    """The object that the body is. Raises _Refused where it is none, or has a number beyond a browser's."""

    def whole(digits: str) -> int:
        if len(digits) > MAX_DIGITS:
            raise _Refused(400, f"a whole number has {MAX_DIGITS} digits at most")
        return int(digits)

    def real(text: str) -> float:
        if not math.isfinite(number := float(text)):
            raise _Refused(400, "a number must be finite")
        return number

    try:
        content: Any = json.loads(body, parse_int=whole, parse_float=real, parse_constant=real)
        json.dumps(
            content, ensure_ascii=False
        ).encode()  # half a surrogate pair is no text, and no answer could name it
    except (ValueError, RecursionError):
        raise _Refused(400, "the request is not JSON") from None
    if not isinstance(content, dict):
        raise _Refused(400, "the request must be a JSON object")
    return content


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body that was read, then goes on as before."""
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return waiting.pop() if waiting else await receive()

    return replay


def _refused_as_400(send: Send) -> Send:
    """Gradio answers 500 where an event refuses its values, as where it fails; with words in the former case alone."""
    held: list[Message] = []

    async def send_refused(message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] == 500:
            held.append(message)
            return
        if held:
            start = held.pop()
            if message["body"].startswith(b'{"error":"'):
                start["status"] = 400
            await send(start)
        await send(message)

    return send_refused
