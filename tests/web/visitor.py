"""A visit to the page in a browser: Chromium by its driver, Firefox by the protocol that its driver speaks."""

import base64
import functools
import http.server
import io
import json
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlencode

import numpy as np
from PIL import Image

BYTES = """
const image = document.querySelectorAll("#pictures img")[arguments[0]];
const canvas = document.createElement("canvas");
[canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
canvas.getContext("2d").drawImage(image, 0, 0);
return canvas.toDataURL("image/png").split(",")[1];
"""
"""a drawn picture's pixels, as a PNG in base64"""


class Driver(Protocol):
    """What of a browser is needed."""

    def get(self, url: str) -> None: ...

    def execute_script(self, script: str, *arguments: Any) -> Any: ...


class Visitor:
    """What somebody on the page does and sees."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver

    def open(self, address: str) -> None:
        self.driver.get("about:blank")  # an address that differs in its fragment alone would load nothing
        self.driver.get(address)

    def js(self, code: str, *arguments: Any) -> Any:
        return self.driver.execute_script(code, *arguments)

    def text(self, name: str) -> str:
        return str(self.js("return document.getElementById(arguments[0])?.textContent ?? ''", name)).strip()

    def until(self, condition: Callable[[], Any], seconds: float = 120) -> Any:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if found := condition():
                return found
            time.sleep(0.02)
        raise AssertionError(f"waited in vain: {self.text('status')!r} {self.text('alert')!r}")

    def ready(self) -> None:
        self.until(lambda: self.text("alert") or self.text("status") == "Ready")
        assert not self.text("alert"), self.text("alert")

    def choose(self, settings: dict[str, Any]) -> None:
        """By the address, without another visit."""
        self.js("location.hash = arguments[0]", urlencode(settings))
        self.until(lambda: self.js("return document.getElementById('prompt').value") == settings["prompt"].strip())

    def press_draw(self) -> None:
        self.js("document.getElementById('draw').click()")

    def draw(self) -> list[np.ndarray]:
        """The pixels (H, W, 3) of all that is drawn."""
        self.press_draw()
        self.until(lambda: "drawn" in self.text("status") or self.text("alert"))
        assert "drawn" in self.text("status"), self.text("alert")
        return self.pictures()

    def pictures(self) -> list[np.ndarray]:
        images = "return document.querySelectorAll('#pictures img')"
        self.until(lambda: self.js(f"{images}.values().every((image) => image.complete && image.naturalWidth)"))
        return [self._pixels(k) for k in range(self.js(f"{images}.length"))]

    def _pixels(self, k: int) -> np.ndarray:
        with Image.open(io.BytesIO(base64.b64decode(self.js(BYTES, k)))) as image:
            return np.asarray(image.convert("RGB"))


class Firefox:
    """Firefox without a window, by Marionette: JSON over TCP, which geckodriver translates WebDriver into."""

    def __init__(self, port: int) -> None:
        self._number = 0
        end = time.monotonic() + 60
        while True:
            try:
                self._socket = socket.create_connection(("127.0.0.1", port), timeout=180)
                break
            except OSError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.2)
        self._stream = self._socket.makefile("rwb")
        self._read()
        self._call("WebDriver:NewSession", {})

    def get(self, url: str) -> None:
        self._call("WebDriver:Navigate", {"url": url})

    def execute_script(self, script: str, *arguments: Any) -> Any:
        """What the script returns. One whose page goes away meanwhile, as at a reload, ends in null or in an error of
        Firefox's own; what it did is gone with that page, so the next page is asked. What the script itself raises
        comes back as text, and null is never taken for what a page says."""
        boxed = {"script": f"try {{ return [(() => {{ {script} }})()] }} catch (error) {{ return String(error) }}"}
        end = time.monotonic() + 30
        while True:
            error, result = self._answer("WebDriver:ExecuteScript", {**boxed, "args": list(arguments)})
            if error is None and result["value"] is not None:
                break
            assert time.monotonic() < end, error
            time.sleep(0.02)
        assert isinstance(result["value"], list), result["value"]
        return result["value"][0]

    def close(self) -> None:
        self._call("Marionette:Quit", {"flags": ["eForceQuit"]})
        self._stream.close()
        self._socket.close()

    def _call(self, command: str, parameters: dict[str, Any]) -> Any:
        error, result = self._answer(command, parameters)
        assert error is None, error
        return result

    def _answer(self, command: str, parameters: dict[str, Any]) -> tuple[Any, Any]:
        """Its error, and its result; one of them is None."""
        self._number += 1
        message = json.dumps([0, self._number, command, parameters]).encode()
        self._stream.write(b"%d:%s" % (len(message), message))
        self._stream.flush()
        _, _, error, result = self._read()
        return error, result

    def _read(self) -> Any:
        length = b""
        while (byte := self._stream.read(1)) != b":":
            assert byte, "Firefox went away"
            length += byte
        return json.loads(self._stream.read(int(length)))


@contextmanager
def start_firefox() -> Iterator[Firefox]:
    """A browser with a profile of its own."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        preferences = {
            "marionette.port": port,
            "app.update.enabled": False,
            "network.captive-portal-service.enabled": False,
        }
        lines = [f"user_pref({json.dumps(key)}, {json.dumps(value)});" for key, value in preferences.items()]
        (Path(profile) / "user.js").write_text("\n".join(lines))
        program = shutil.which("firefox-esr") or shutil.which("firefox")
        assert program is not None
        command = [program, "--headless", "--marionette", "--no-remote", "--profile", profile]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            firefox = Firefox(port)
            yield firefox
            firefox.close()
            process.wait(timeout=30)
        finally:
            process.kill()
            process.wait()


@contextmanager
def plain_host(
    folder: Path, change: Callable[[str, bytes], bytes | None] = lambda _, data: data
) -> Iterator[tuple[str, list[str]]]:
    """A host that sends no header of its own, and the paths it was asked for; `change` sees what it sends, and None is
    a 404."""
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            asked.append(self.path)
            file = Path(self.translate_path(path))
            file = file / "index.html" if file.is_dir() else file
            data = change(str(file.relative_to(folder)), file.read_bytes()) if file.is_file() else None
            if data is None:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Type", self.guess_type(file))
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
