"""The page of `ldmkit export web` in Chromium: bytes, seconds, responsiveness, memory; damages and hostile text.

python -m benchmarks.drawing.web_page  # bytes over the wire, cold and warm, longest task, golden pictures
python -m benchmarks.drawing.web_page --pictures 200  # memory
python -m benchmarks.drawing.web_page --flips 1000  # one bit of one file, each visit
python -m benchmarks.drawing.web_page --hostile  # 100 texts in every place
python -m benchmarks.drawing.web_page --starts 100  # in Firefox, four at once: how many come to a picture
"""

import argparse
import gzip
import hashlib
import json
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil
from selenium import webdriver

from ldmkit.runtime.bundle import Bundle
from ldmkit.shipped import exports_dir
from ldmkit.web.serve import serving
from ldmkit.web.write import write_page
from tests.ui.browser import start_chromium
from tests.web.visitor import Visitor, plain_host, start_firefox

SETTINGS = "#prompt=a+cute+orange+cat&seed=3"
PACKED = (".html", ".js", ".mjs", ".json", ".css", ".md", ".sha256")
"""what hosts compress"""
STRUCK = "return window.struck ?? document.querySelectorAll('iframe, object, embed, body script, svg, style').length"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=(exports_dir() or Path()) / "toy-cats")
    parser.add_argument("--pictures", type=int, default=0)
    parser.add_argument("--flips", type=int, default=0)
    parser.add_argument("--hostile", action="store_true")
    parser.add_argument("--starts", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page"
        list(write_page(options.bundle, page))
        if options.pictures:
            memory(page, options.pictures)
        elif options.flips:
            flips(page, options.flips)
        elif options.hostile:
            hostile(page)
        elif options.starts:
            starts(page, options.starts)
        else:
            measure(page, options.bundle, options.rounds)


@contextmanager
def visiting() -> Iterator[tuple[Visitor, webdriver.Chrome]]:
    with start_chromium() as driver:
        yield Visitor(driver), driver


DRAW = """
const [done] = arguments;
const status = document.getElementById("status");
const start = performance.now();
new MutationObserver(() => {
  if (/drawn/.test(status.textContent)) done((performance.now() - start) / 1000);
}).observe(status, { childList: true });
document.getElementById("draw").click();
"""


def press(visitor: Visitor, driver: webdriver.Chrome) -> float:
    """Seconds, by the page's own clock, until all pictures are there."""
    visitor.until(lambda: visitor.js("return !document.getElementById('form').hidden"))
    driver.set_script_timeout(300)
    seconds = float(driver.execute_async_script(DRAW))
    alert = visitor.text("alert")
    assert not alert or alert.startswith("The prompt is longer than the model reads"), alert
    return seconds


def measure(page: Path, folder: Path, rounds: int) -> None:
    sent: dict[str, int] = {}

    def count(name: str, data: bytes) -> bytes:
        sent[name] = len(gzip.compress(data)) if name.endswith(PACKED) else len(data)
        return data

    cold: dict[str, list[float]] = {"threads": [], "one thread": []}
    warm: dict[str, list[float]] = {"threads": [], "one thread": []}
    for _ in range(rounds):
        for kind, query in (("threads", ""), ("one thread", "?threads=1")):
            with serving(page) as address, visiting() as (visitor, driver):
                start = time.perf_counter()
                visitor.driver.get(f"{address}{query}{SETTINGS}")
                press(visitor, driver)
                cold[kind].append(time.perf_counter() - start)
                warm[kind].append(min(press(visitor, driver) for _ in range(5)))
    with plain_host(page, count) as (address, _), visiting() as (visitor, driver):
        visitor.open(address + SETTINGS)
        press(visitor, driver)
        print(f"over the wire: {sum(sent.values()) / 1e6:.1f} MB until the first picture, of {len(sent)} files")
    bundle = Bundle.load(folder, provider="cpu")
    native = []
    for _ in range(rounds * 2):
        start = time.perf_counter()
        bundle.generate("a cute orange cat", seed=3)
        native.append(time.perf_counter() - start)
    best = min(native)
    print(f"ldmkit generate, warm: {best:.3f} s")
    for kind in cold:
        second = min(warm[kind])
        print(f"{kind}: cold {statistics.median(cold[kind]):.1f} s, second {second:.3f} s, {second / best:.1f} times")
    with serving(page) as address, visiting() as (visitor, driver):
        visitor.open(f"{address}{SETTINGS}&count=16")
        visitor.js(
            "window.tasks = []; new PerformanceObserver((list) => window.tasks.push(...list.getEntries()"
            ".map((entry) => entry.duration))).observe({ type: 'longtask' })"
        )
        press(visitor, driver)
        print(f"tasks above 50 ms in the page's main thread while it draws 16: {visitor.js('return window.tasks')}")
        visitor.js("document.getElementById('golden').click()")
        visitor.until(lambda: "dB" in visitor.text("status"))
        print(visitor.text("status"))


def memory(page: Path, pictures: int) -> None:
    with serving(page) as address, visiting() as (visitor, driver):
        visitor.open(f"{address}#prompt=a+cat&count=4")
        root = psutil.Process(driver.service.process.pid)
        for drawn in range(4, pictures + 1, 4):
            press(visitor, driver)
            if drawn % 20 == 0:
                visitor.js("globalThis.gc?.()")
                sizes = [each.memory_full_info().pss for each in root.children(recursive=True)]
                print(f"{drawn} pictures: {sum(sizes) / 2**20:.0f} MiB in {len(sizes)} processes", flush=True)


def flips(page: Path, count: int) -> None:
    """A bit of a file, chosen evenly among the files that a drawing needs, then among its bits."""
    rng = random.Random(0)
    skipped = (
        "bundle/unet.onnx",
        "bundle/preview.png",
        "bundle/README.md",
        "bundle/golden.png",
        "runtime/LICENSES.txt",
    )
    names = sorted(path.relative_to(page).as_posix() for path in page.rglob("*") if path.is_file())
    names = [name for name in names if name not in skipped]
    missed = []
    target, position = "", 0

    def change(name: str, data: bytes) -> bytes:
        if name != target:
            return data
        return data[: position // 8] + bytes([data[position // 8] ^ 1 << position % 8]) + data[position // 8 + 1 :]

    with plain_host(page, change) as (address, _), visiting() as (visitor, driver):
        for number in range(count):
            target = rng.choice(names)
            position = rng.randrange(8 * (page / target).stat().st_size)
            driver.execute_cdp_cmd("Network.clearBrowserCache", {})
            driver.execute_cdp_cmd("Storage.clearDataForOrigin", {"origin": address[:-1], "storageTypes": "all"})
            visitor.open(f"{address}?{number}#prompt=a+cat&steps=1")
            if not noticed(visitor):
                missed.append((target, position))
                print("missed", target, position, flush=True)
            if (number + 1) % 50 == 0:
                print(f"{number + 1 - len(missed)} of {number + 1} noticed", flush=True)


def noticed(visitor: Visitor) -> bool:
    """Whether the visitor is told, or the page does not even start."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if visitor.text("alert"):
            return True
        status = visitor.text("status")
        if status == "Ready":
            visitor.press_draw()
        if "drawn" in status:
            time.sleep(0.5)  # index.html is looked at last
            return bool(visitor.text("alert"))
        # Nothing runs where page.js, or what starts it, is damaged.
        started = "Loading" in status or "Drawing" in status or "Ready" in status
        if not started and visitor.js("return document.readyState") == "complete" and time.monotonic() > end - 57:
            return True
        time.sleep(0.02)
    return True


def texts() -> list[str]:
    """100 ways to be more than text, each of ten in ten disguises."""
    kinds = [
        "<script>window.struck=1</script>",
        "<img src=x onerror=window.struck=1>",
        "<svg onload=window.struck=1>",
        "<iframe src=javascript:parent.struck=1></iframe>",
        "javascript:window.struck=1",
        "<style>@import url(https://elsewhere.invalid/)</style>",
        "<link rel=stylesheet href=https://elsewhere.invalid/>",
        "<object data=https://elsewhere.invalid/></object>",
        "<a href=javascript:window.struck=1 autofocus onfocus=window.struck=1>x</a>",
        "${window.struck=1}{{window.struck=1}}",
    ]
    disguises = [
        "{}",
        '">{}',
        "'>{}",
        "</title>{}",
        "</textarea>{}",
        "-->{}<!--",
        "]]>{}",
        "\u202e{}\u2028",
        "\0{}",
        "\\{}\\",
    ]
    return [disguise.replace("{}", kind) for kind in kinds for disguise in disguises]


def hostile(page: Path) -> None:
    struck, elsewhere = 0, 0
    keys = ("prompt", "negative", "seed", "count", "steps", "guidance", "sampler", "threads", "provider", "x")
    given = ""

    def change(name: str, data: bytes) -> bytes:
        """The text as the bundle's name and examples too; the hashes agree."""
        if name == "bundle/manifest.json":
            return json.dumps(json.loads(data) | {"name": given, "examples": [given] * 3}).encode()
        if name == "web.json":
            web = json.loads(data)
            web["files"]["bundle/manifest.json"] = entry(
                change("bundle/manifest.json", (page / "bundle" / "manifest.json").read_bytes())
            )
            return json.dumps(web).encode()
        if name == "index.html":
            web = (page / "web.json").read_bytes()
            old, new = entry(web), entry(change("web.json", web))
            text = data.decode().replace(old["sha256"], new["sha256"])
            return text.replace(f'size="{old["size"]}"', f'size="{new["size"]}"').encode()
        if name == "index.sha256":
            return hashlib.sha256(change("index.html", (page / "index.html").read_bytes())).hexdigest().encode()
        return data

    with plain_host(page, change) as (address, _), visiting() as (visitor, driver):
        for given in texts():
            fragment = "&".join(f"{key}={quote(given)}" for key in keys)
            visitor.open(f"{address}?threads={quote(given)}&x={quote(given)}#{fragment}")
            visitor.until(lambda: visitor.text("name") and visitor.js("return !document.getElementById('form').hidden"))
            visitor.js("document.getElementById('steps').value = 1")
            press(visitor, driver)
            struck += visitor.js(STRUCK) != 0
            requests = visitor.js("return performance.getEntriesByType('resource').map((entry) => entry.name)")
            elsewhere += any(not each.startswith((address, f"blob:{address}")) for each in requests)
    print(f"{len(texts())} texts: {struck} became more than text, {elsewhere} made a request elsewhere")


def starts(page: Path, count: int) -> None:
    """Each a new Firefox that draws with threads; they wait for each other's turn, as on a machine that is busy."""

    def drawn(_: int) -> bool:
        with start_firefox() as driver:
            visitor = Visitor(driver)
            visitor.open(f"{address}{SETTINGS}&steps=3")
            visitor.ready()
            visitor.press_draw()
            try:
                visitor.until(lambda: "drawn" in visitor.text("status"), seconds=60)
            except AssertionError:
                return False
            return True

    with serving(page) as address, ThreadPoolExecutor(4) as several:
        print(f"{sum(several.map(drawn, range(count)))} of {count} starts came to a picture")


def entry(data: bytes) -> dict[str, Any]:
    return {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}


if __name__ == "__main__":
    main()
