"""Nothing damaged is used, and nothing that a stranger wrote is more than text."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import pytest
from selenium import webdriver

from ldmkit.web.write import write_page
from tests.web.conftest import SHIPPED
from tests.web.visitor import Visitor, plain_host

NAMED = (
    *("page.js", "style.css", "worker.js", "sw.js", "web.json", "index.html", "index.sha256", "bundle/manifest.json"),
    *("bundle/unet_t2i.onnx", "bundle/text_encoder.onnx", "bundle/vae_decoder.onnx", "bundle/tokenizer.json"),
    *("bundle/golden.png", "runtime/ort.wasm.bundle.min.mjs", "runtime/ort-wasm-simd-threaded.wasm.gz"),
    "runtime/tokenizers.mjs",
)
"""files that a visit needs"""

STRUCK = "return [window.struck, document.querySelectorAll('iframe, object, embed, body script, svg, style').length]"
KEYS = ("prompt", "negative", "seed", "count", "steps", "guidance", "sampler", "threads", "provider", "x")
HOSTILE = [
    "<script>window.struck = 1</script>",
    "<img src=x onerror=window.struck=1>",
    "</title><script>window.struck = 1</script>",
    '"><svg onload=window.struck=1>',
    "javascript:window.struck=1",
    "{{constructor.constructor('window.struck=1')()}}",
    "${window.struck=1}",
    "<iframe srcdoc='<script>parent.struck=1</script>'></iframe>",
    "<style>@import '//elsewhere.invalid/x.css'</style>",
    "<link rel=prefetch href=//elsewhere.invalid/>",
    "\u202e<b>\u0000\u2028</b>",
    "'-alert(1)-'",
    "%3Cscript%3Ewindow.struck=1%3C/script%3E",
    "<details open ontoggle=window.struck=1>",
    "<a href='javascript:window.struck=1' autofocus onfocus=window.struck=1>x</a>",
    "__proto__",
]


@contextmanager
def flipped(page: Path, name: str) -> Iterator[str]:
    """The page with one bit of a file's middle flipped."""

    def change(path: str, data: bytes) -> bytes:
        middle = len(data) // 2
        return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :] if path == name else data

    with plain_host(page, change) as (address, _):
        yield address


@pytest.mark.parametrize("name", NAMED)
def test_a_damaged_file_is_named_and_not_used(visitor: Visitor, page: Path, name: str) -> None:
    with flipped(page, name) as address:
        visitor.open(f"{address}#prompt=a+cat&steps=1")
        visitor.until(lambda: visitor.text("alert") or visitor.text("status") == "Ready" or name == "page.js")
        if name == "page.js":
            assert visitor.text("status").startswith("If this line stays, page.js is missing or damaged")
            return
        if not visitor.text("alert"):
            visitor.press_draw()
            visitor.until(lambda: visitor.text("alert") or "drawn" in visitor.text("status"))
        if name == "bundle/golden.png":
            visitor.js("document.getElementById('golden').click()")
            visitor.until(lambda: visitor.text("alert"))
        told = "index.html" if name == "index.sha256" else name
        assert told in visitor.text("alert")
        if name.startswith("bundle/") and name != "bundle/golden.png":
            assert visitor.js("return document.querySelectorAll('#pictures img').length") == 0


def test_what_the_browser_kept_is_checked_again(visitor: Visitor, page: Path) -> None:
    with plain_host(page) as (address, asked):
        visitor.open(f"{address}#prompt=a+cat&steps=1")
        visitor.ready()
        visitor.draw()
        done = visitor.js(
            "window.done = 0; (async () => { for (const name of await caches.keys()) {"
            " const cache = await caches.open(name); for (const request of await cache.keys())"
            " await cache.put(request, new Response('damaged')); } window.done = 1; })()"
        )
        assert done is None
        visitor.until(lambda: visitor.js("return window.done"))
        asked.clear()
        visitor.open(f"{address}#prompt=a+cat&steps=1")
        visitor.ready()
        visitor.draw()
        assert "/bundle/unet_t2i.onnx" in asked
        asked.clear()
        visitor.open(f"{address}#prompt=a+cat&steps=1")
        visitor.ready()
        visitor.draw()
        assert not any(path.startswith(("/bundle/", "/runtime/")) for path in asked), asked


def test_prompts_and_addresses_are_text(visitor: Visitor, page: Path, address: str) -> None:
    visitor.open(address)
    visitor.ready()
    for text in HOSTILE:
        visitor.js("location.hash = arguments[0]", "&".join(f"{key}={quote(text)}" for key in KEYS))
        visitor.js("document.getElementById('prompt').value = arguments[0]", text)
        visitor.js("document.getElementById('steps').value = 1")
        visitor.press_draw()
        visitor.until(lambda: "drawn" in visitor.text("status"))
        assert visitor.js(STRUCK) == [None, 0]
    assert visitor.js("return performance.getEntriesByType('resource').every((e) => e.name.includes(location.host))")


def test_a_strangers_bundle_brings_text_alone(
    visitor: Visitor, chromium: webdriver.Chrome, page: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(SHIPPED, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["sha256"]
    manifest["examples"] = HOSTILE[:6]
    manifest["recipe"] = {"<script>window.struck = 1</script>": HOSTILE}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    list(write_page(folder, tmp_path / "site"))
    with plain_host(tmp_path / "site") as (address, _):
        visitor.open(address)
        visitor.ready()
        shown = visitor.js("return [...document.querySelectorAll('#examples button')].map((each) => each.textContent)")
        assert shown == HOSTILE[:6]
        assert visitor.js(STRUCK) == [None, 0]


def test_a_name_that_no_export_writes_is_text_too(visitor: Visitor, page: Path, tmp_path: Path) -> None:
    """Of a folder made by hand, whose hashes agree."""
    name = HOSTILE[0] + HOSTILE[1]

    def change(path: str, data: bytes) -> bytes:
        if path == "bundle/manifest.json":
            return json.dumps(json.loads(data) | {"name": name}).encode()
        if path == "web.json":
            changed = change("bundle/manifest.json", (page / "bundle/manifest.json").read_bytes())
            web = json.loads(data)
            web["files"]["bundle/manifest.json"] = entry(changed)
            return json.dumps(web).encode()
        if path == "index.html":
            old, new = (
                entry((page / "web.json").read_bytes()),
                entry(change("web.json", (page / "web.json").read_bytes())),
            )
            text = data.decode().replace(str(old["sha256"]), str(new["sha256"]))
            return text.replace(f'size="{old["size"]}"', f'size="{new["size"]}"').encode()
        return data

    with plain_host(page, change) as (address, _):
        visitor.open(address)
        visitor.until(lambda: visitor.text("name") == name)
        assert visitor.js("return document.title") == name
        assert visitor.js(STRUCK) == [None, 0]


def entry(data: bytes) -> dict[str, object]:
    return {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}


def test_injected_markup_runs_nothing(visitor: Visitor, page: Path) -> None:
    """A host that puts a script into index.html is told of, and the script does not run."""
    script = b"<script>window.struck = 1</script><img src=x onerror='window.struck=1'></body>"

    def change(path: str, data: bytes) -> bytes:
        return data.replace(b"</body>", script) if path == "index.html" else data

    with plain_host(page, change) as (address, _):
        visitor.open(f"{address}#prompt=a+cat&steps=1")
        visitor.until(lambda: "index.html" in visitor.text("alert"))
        assert visitor.js("return window.struck") is None


def test_the_worker_too_asks_no_other_host(visitor: Visitor, address: str) -> None:
    visitor.open(address)
    visitor.ready()
    code = (
        "window.told = null; const source = \"fetch('https://elsewhere.invalid/').catch(() => {});"
        "addEventListener('securitypolicyviolation', (e) => postMessage(e.violatedDirective))\";"
        "const worker = new Worker(URL.createObjectURL(new Blob([source])));"
        "worker.onmessage = (e) => { window.told = e.data; };"
    )
    visitor.js(code)
    assert visitor.until(lambda: visitor.js("return window.told")) == "connect-src"
