"""Serves a page on this machine, with the headers by which it may use several threads."""

import contextlib
import os
import sys
import threading
import webbrowser
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from ldmkit.errors import LdmkitError
from ldmkit.web.write import INDEX, WEB

DEFAULT_PORT = 7860
TRIED_PORTS = 20
"""from the default on, where no port was asked for"""


class _Handler(SimpleHTTPRequestHandler):
    extensions_map = SimpleHTTPRequestHandler.extensions_map | {
        ".mjs": "text/javascript",
        ".js": "text/javascript",
        ".md": "text/plain; charset=utf-8",
    }

    def end_headers(self) -> None:
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        self.send_header("X-Content-Type-Options", "nosniff")
        super().end_headers()

    def list_directory(self, path: str | os.PathLike[str]) -> None:
        self.send_error(404)

    def log_message(self, *_: Any) -> None:
        """Nothing: a page makes dozens of requests."""


def serve_page(folder: Path, *, host: str, port: int | None, browser: bool, tell: Callable[[str], None]) -> None:
    """Serves until Ctrl-C. `tell` gets a line. Raises LdmkitError where `folder` is no page, or it cannot listen."""
    with serving(folder, host=host, port=port) as address:
        tell(f"{address}  (Ctrl-C ends it)")
        if browser and (os.name != "posix" or sys.platform == "darwin" or os.environ.get("DISPLAY")):
            webbrowser.open(address)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


@contextlib.contextmanager
def serving(folder: Path, *, host: str = "127.0.0.1", port: int | None = 0) -> Iterator[str]:
    """The address of a server in a thread, ended when left."""
    for name in (INDEX, WEB):
        if not (folder / name).is_file():
            raise LdmkitError(f"{folder} is not a page: it has no {name}. `ldmkit export web --out DIR` writes one")
    server = _listen(host, port, partial(_Handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, name="ldmkit serves a page", daemon=True)
    thread.start()
    try:
        yield f"http://{'127.0.0.1' if host in ('0.0.0.0', '') else host}:{server.server_address[1]}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _listen(host: str, port: int | None, handler: Callable[..., SimpleHTTPRequestHandler]) -> ThreadingHTTPServer:
    ports = [port] if port is not None else range(DEFAULT_PORT, DEFAULT_PORT + TRIED_PORTS)
    reason = ""
    for each in ports:
        try:
            return ThreadingHTTPServer((host, each), handler)
        except OSError as error:
            reason = error.strerror or str(error)
    tried = f"port {port}" if port is not None else f"no port from {ports[0]} to {ports[-1]}"
    raise LdmkitError(f"--host {host}: {tried} can be listened on ({reason}). Choose another with --port")
