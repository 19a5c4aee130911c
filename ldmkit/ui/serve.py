"""Serves the page until it is told to stop."""

import asyncio
import contextlib
import logging
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import webbrowser
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from ldmkit.errors import LdmkitError
from ldmkit.run.lock import locked
from ldmkit.runtime.bundle import Bundle
from ldmkit.ui.attendance import Attendance
from ldmkit.ui.guard import Guard, allowed_hosts, is_loopback

if TYPE_CHECKING:
    from fastapi import FastAPI

    from ldmkit.ui.page import Page

DEFAULT_PORT = 7860
TRIED_PORTS = 20
"""from the default on, where no port was asked for"""
FOLDER = "ldmkit-ui-"
"""how the names of servers' folders begin, among the system's temporary ones"""

MAX_JOINING = 32
"""events that Gradio has taken and not begun, a moment each: drawings wait in a queue of the page's own"""


@dataclass
class Server:
    """A server at work."""

    url: str
    port: int
    page: "Page"
    guard: Guard
    thread: threading.Thread


def serve(
    bundles: Mapping[str, Bundle],
    *,
    host: str,
    port: int | None,
    share: bool,
    browser: bool,
    tell: Callable[[str], None],
    allowed: Sequence[str] = (),
    root_path: str = "",
    passwords: Mapping[str, str] | None = None,
) -> None:
    """Serves until Ctrl-C or SIGTERM. `tell` gets lines for the user. Raises LdmkitError where it cannot begin.

    `allowed`: further names of this server, such as a reverse proxy's; `root_path`: where on that proxy it is;
    `passwords`: by name, of those who may use it.
    """

    def leave(number: int, _: object) -> NoReturn:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, leave)  # so that the folder of pictures is removed
    with running(bundles, host=host, port=port, allowed=allowed, root_path=root_path, passwords=passwords) as server:
        if not is_loopback(host) and passwords is None:
            tell(
                f"warning: --host {host} lets every machine that reaches this one draw here: --auth asks for a password"
            )
        tell(f"{server.url}  (Ctrl-C ends it)")
        if share:
            who = "everybody who has the link" if passwords is None else "those who have a password"
            tell(f"warning: --share lets {who} draw here, through a server of Gradio's makers")
            tell(_share(server))
        if browser and _has_display():
            webbrowser.open(server.url)
        with contextlib.suppress(KeyboardInterrupt):
            while server.thread.is_alive():
                server.thread.join(timeout=1)


@contextlib.contextmanager
def running(
    bundles: Mapping[str, Bundle],
    *,
    host: str,
    port: int | None,
    allowed: Sequence[str] = (),
    root_path: str = "",
    passwords: Mapping[str, str] | None = None,
) -> Iterator[Server]:
    """A server in a thread, ended when left; the pictures go with it. Raises LdmkitError where it cannot listen."""
    sweep(Path(tempfile.gettempdir()))
    with (
        contextlib.closing(bind(host, port)) as bound,
        tempfile.TemporaryDirectory(prefix=FOLDER, ignore_cleanup_errors=True) as folder,
        locked(Path(folder)),
        _gradio_keeps_to(Path(folder)),
    ):
        import uvicorn

        from ldmkit.ui.connections import ImpatientProtocol

        # In a running loop: without one Gradio makes a loop for each of its locks, and closes none.
        page, app = asyncio.run(_build(bundles, Path(folder) / "new", root_path))
        guard = Guard(
            app,
            allowed_hosts(host) | {name.lower() for name in allowed},
            num_inputs=page.num_inputs(),
            attendance=Attendance(page.sessions, page.app._queue),
            any_address=not is_loopback(host),
            passwords=passwords,
        )
        server = uvicorn.Server(
            uvicorn.Config(guard, http=ImpatientProtocol, log_level="error", timeout_graceful_shutdown=1)
        )
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, name="ldmkit serves", daemon=True)
        thread.start()
        while not server.started:
            if not thread.is_alive():
                raise LdmkitError("the server could not start; its own message stands above")
            time.sleep(0.01)
        try:
            chosen = int(bound.getsockname()[1])
            yield Server(f"http://{_shown_host(host)}:{chosen}", chosen, page, guard, thread)
        finally:
            for session in page.sessions:
                session.stop.set()
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # pages that are open are cut off: no error
            server.should_exit = True
            thread.join(timeout=10)


def sweep(among: Path) -> None:
    """Removes the folders of servers that died without doing so: each holds its folder's lock while it lives."""
    for folder in among.glob(f"{FOLDER}*"):
        mine = os.name != "posix" or folder.lstat().st_uid == os.getuid()
        # One without a lock's file was made this moment.
        if mine and not folder.is_symlink() and (folder / ".lock").is_file():
            with contextlib.suppress(LdmkitError), locked(folder):
                shutil.rmtree(folder, ignore_errors=True)


async def _build(bundles: Mapping[str, Bundle], folder: Path, root_path: str) -> tuple["Page", "FastAPI"]:
    """The page, and the app that serves it."""
    import gradio as gr
    from fastapi import FastAPI

    from ldmkit.ui.page import Page
    from ldmkit.ui.style import CSS, theme

    page = Page(bundles, folder)
    page.app.queue(max_size=MAX_JOINING, api_open=False)
    app = gr.mount_gradio_app(
        FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
        page.app,
        path="/",
        root_path=root_path or None,
        allowed_paths=[],
        css=CSS,
        theme=theme(),
        footer_links=[],
        run_history=False,
        show_error=False,
        enable_monitoring=False,
        mcp_server=False,
        ssr_mode=False,
        pwa=False,
    )
    # Mounting leaves this out, and without it Gradio serves any file that a request names as its own upload.
    page.app.has_launched = True
    return page, app


@contextlib.contextmanager
def _gradio_keeps_to(folder: Path) -> Iterator[None]:
    """Gradio's files go to `folder`, and nothing is sent to its makers; it reads this from the environment."""
    wanted = {
        "GRADIO_TEMP_DIR": str(folder / "shown"),
        "GRADIO_EXAMPLES_CACHE": str(folder / "examples"),
        "GRADIO_ANALYTICS_ENABLED": "False",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def bind(host: str, port: int | None) -> socket.socket:
    """A socket that listens on `host`. Without `port`: the first free one from DEFAULT_PORT on.

    Raises LdmkitError where the port is taken, or the host is none of this machine's.
    """
    ports = [port] if port is not None else range(DEFAULT_PORT, DEFAULT_PORT + TRIED_PORTS)
    reason = ""
    for each in ports:
        try:
            family, kind, _, _, address = socket.getaddrinfo(
                host.strip("[]"), each, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            bound = socket.socket(family, kind)
            if os.name == "posix":  # elsewhere it would let two servers share a port
                bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                bound.bind(address)
                bound.listen()
            except OSError:
                bound.close()
                raise
        except OSError as error:
            reason = error.strerror or str(error)
            continue
        return bound
    tried = f"port {port}" if port is not None else f"no port from {ports[0]} to {ports[-1]}"
    raise LdmkitError(f"--host {host}: {tried} can be listened on ({reason}). choose another with --port")


def _share(server: Server) -> str:
    """The public address of a tunnel to this server. Raises LdmkitError where there is none to be had."""
    from gradio import networking

    try:
        address = networking.setup_tunnel(
            local_host="127.0.0.1",
            local_port=server.port,
            share_token=secrets.token_urlsafe(32),
            share_server_address=None,
            share_server_tls_certificate=None,
        )
    except Exception as error:  # it raises whatever its download, its checks and its tunnel raise
        raise LdmkitError(f"--share: there is no public link to be had: {error}") from error
    name = address.split("://")[-1].strip("/")
    server.guard.hosts.add(name.lower())
    return f"https://{name}"


def _shown_host(host: str) -> str:
    """The host as a browser on this machine takes it."""
    if host in ("0.0.0.0", "::", ""):
        return "127.0.0.1"
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def _has_display() -> bool:
    """Whether a browser could show a window: on a server without one a text browser would take the terminal."""
    return (
        os.name != "posix"
        or sys.platform == "darwin"
        or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
    )
