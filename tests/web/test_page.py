"""The page in Chromium and Firefox: it draws what `ldmkit generate` draws."""

import json
import shutil
import warnings
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from ldmkit.runtime.bundle import Bundle
from ldmkit.runtime.generate import PromptCutWarning
from ldmkit.web.serve import serving
from ldmkit.web.tables import SAMPLERS
from ldmkit.web.write import write_page
from tests.web.conftest import SHIPPED
from tests.web.visitor import Visitor, plain_host

CAT: dict[str, Any] = {"prompt": "a cute orange cat", "seed": 3, "steps": 3}
SETTINGS: list[dict[str, Any]] = [
    {"count": 5},
    {"guidance": 1},
    {"negative": "red background", "guidance": 3.5},
    {"prompt": ""},
    {"prompt": "", "negative": "red background"},
    {"prompt": "Ein <|bos|>Kätzchen 🐈 \u202e<|pad|>"},
    {"seed": 2**32 - 1},
    {"prompt": "a black cat " * 20},
]


def same(drawn: list[np.ndarray], expected: list[Image.Image]) -> None:
    """Within one level of 255 everywhere."""
    assert len(drawn) == len(expected)
    for one, other in zip(drawn, expected, strict=True):
        assert np.abs(one.astype(int) - np.asarray(other).astype(int)).max() <= 1


def test_keys_alone_are_enough_and_everything_has_a_name(
    visitor: Visitor, chromium: webdriver.Chrome, address: str
) -> None:
    visitor.open(f"{address}#{urlencode({'steps': 2})}")
    visitor.ready()
    body = chromium.find_element(By.TAG_NAME, "body")
    body.send_keys(Keys.TAB)
    assert visitor.js("return document.activeElement.id") == "prompt"
    chromium.switch_to.active_element.send_keys("a black cat", Keys.ENTER)
    visitor.until(lambda: "drawn" in visitor.text("status"))
    alt = visitor.js("return document.querySelector('#pictures img').alt")
    assert alt.startswith("a black cat, seed ")
    visitor.js("document.querySelector('details').open = true")
    for control in chromium.find_elements(By.CSS_SELECTOR, "input, select, button, summary, a, progress, img"):
        assert control.accessible_name or not control.is_displayed(), control.get_attribute("outerHTML")
    # Every field below the prompt comes by Tab, in the order of the page.
    chromium.find_element(By.ID, "prompt").click()
    seen = []
    for _ in range(25):
        chromium.switch_to.active_element.send_keys(Keys.TAB)
        seen.append(visitor.js("return document.activeElement.id || document.activeElement.tagName"))
    assert seen.index("draw") < seen.index("count") < seen.index("seed") < seen.index("held") < seen.index("SUMMARY")


def test_every_sampler_draws_as_the_runtime_does(opened: Visitor, bundle: Bundle) -> None:
    for sampler in SAMPLERS:
        opened.choose(CAT | {"sampler": sampler})
        same(opened.draw(), bundle.generate(CAT["prompt"], seed=3, steps=3, sampler=sampler))


def test_settings_mean_what_they_mean_to_generate(opened: Visitor, bundle: Bundle) -> None:
    for settings in SETTINGS:
        chosen: dict[str, Any] = CAT | settings
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always", PromptCutWarning)
            expected = bundle.generate(
                chosen["prompt"],
                n=chosen.get("count", 1),
                seed=chosen["seed"],
                steps=3,
                guidance_scale=chosen.get("guidance"),
                negative_prompt=chosen.get("negative", ""),
            )
        opened.choose(chosen)
        opened.press_draw()
        opened.until(lambda: "drawn" in opened.text("status"))
        same(opened.pictures(), expected)
        assert ("longer than the model reads" in opened.text("alert")) == bool(told)


def test_a_download_holds_what_generate_writes(
    opened: Visitor, chromium: webdriver.Chrome, bundle: Bundle, tmp_path: Path
) -> None:
    chromium.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    settings = CAT | {"prompt": "eine süße Katze ☺", "negative": "a dog", "count": 2, "guidance": 2.5}
    opened.choose(settings)
    opened.draw()
    opened.js("document.querySelectorAll('figcaption a')[1].click()")
    opened.until(lambda: (tmp_path / "eine-süße-katze-4.png").exists())
    opened.js("document.getElementById('sheet').click()")
    opened.until(lambda: (tmp_path / "eine-süße-katze-3-to-4-grid.png").exists())
    with Image.open(tmp_path / "eine-süße-katze-4.png") as picture:
        assert picture.size == (64, 64)
        assert picture.info == {
            "sampler": "dpmpp_2m",
            "steps": "3",
            "guidance": "2.5",
            **bundle.identity,
            "provider": "wasm",
            "negative": "a dog",
            "prompt": "eine süße Katze ☺",
            "seed": "4",
        }
    with Image.open(tmp_path / "eine-süße-katze-3-to-4-grid.png") as grid:
        assert grid.size == (130, 64)
        assert grid.info["seed"] == "3 to 4"


def test_the_golden_pictures_come_out(opened: Visitor) -> None:
    opened.js("document.getElementById('golden').click()")
    opened.until(lambda: "dB" in opened.text("status"))
    assert opened.text("status").startswith("This browser draws as it should"), opened.text("status")


def test_stop_keeps_what_is_finished(opened: Visitor) -> None:
    opened.choose(CAT | {"count": 16, "steps": 10})
    opened.press_draw()
    opened.until(lambda: opened.js("return document.querySelectorAll('#pictures img').length") >= 4)
    opened.js("document.getElementById('stop').click()")
    opened.until(lambda: opened.text("status").startswith("Stopped"))
    assert 4 <= opened.js("return document.getElementById('pictures').childElementCount") < 16


def test_previews_show_while_it_draws(opened: Visitor) -> None:
    opened.choose(CAT | {"steps": 60})
    opened.press_draw()
    code = (
        "const canvas = document.querySelector('#pictures canvas');"
        "return canvas ? Array.from(canvas.getContext('2d').getImageData(0, 0, 8, 8).data) : []"
    )
    opened.until(lambda: len(set(opened.js(code))) > 20)
    opened.js("document.getElementById('stop').click()")
    opened.until(lambda: opened.text("status").startswith("Stopped"))


def test_a_seed_that_is_not_held_is_another_each_time(opened: Visitor) -> None:
    opened.choose({"prompt": "", "steps": 1})
    seeds = set()
    for _ in range(3):
        opened.draw()
        seeds.add(opened.js("return document.getElementById('seed').value"))
    assert len(seeds) == 3


def test_an_address_leads_to_a_picture(opened: Visitor) -> None:
    opened.choose(CAT | {"count": 2})
    _, second = opened.draw()
    opened.js("document.querySelectorAll('figcaption button')[1].click()")
    link = opened.js("return location.href")
    opened.open(link)
    opened.ready()
    (again,) = opened.draw()
    assert np.abs(again.astype(int) - second.astype(int)).max() <= 1


def test_the_bundles_own_sampler_options_hold(
    visitor: Visitor, chromium: webdriver.Chrome, page: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(SHIPPED, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["sha256"]
    manifest["defaults"] |= {"sampler": "dpmpp_2m_sde", "sampler_options": {"eta": 0.5, "spacing": "karras"}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    list(write_page(folder, tmp_path / "site"))
    settings = {"sampler": {"use": "dpmpp_2m_sde", "eta": 0.5, "spacing": "karras"}}
    expected = Bundle.load(folder, provider="cpu").generate(CAT["prompt"], seed=3, steps=3, **settings)
    chromium.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    with serving(tmp_path / "site") as address:
        visitor.open(f"{address}#{urlencode(CAT)}")
        visitor.ready()
        same(visitor.draw(), expected)
        visitor.js("document.querySelector('figcaption a').click()")
        visitor.until(lambda: (tmp_path / "a-cute-orange-cat-3.png").exists())
    with Image.open(tmp_path / "a-cute-orange-cat-3.png") as picture:
        assert picture.info["sampler"] == json.dumps(
            {"eta": 0.5, "spacing": "karras", "use": "dpmpp_2m_sde", "steps": 3}
        )


def test_threads_come_by_headers_or_by_one_reload_or_not_at_all(visitor: Visitor, page: Path, address: str) -> None:
    def said(address: str) -> tuple[bool, str]:
        visitor.open(address)
        visitor.ready()
        return visitor.js("return crossOriginIsolated"), visitor.text("host")

    cores = min(visitor.js("return navigator.hardwareConcurrency"), 8)
    many = "One thread" if cores == 1 else f"{cores} threads"
    assert said(address) == (True, many)
    assert said(f"{address}?threads=1") == (True, "One thread")
    with plain_host(page) as (plain, asked):
        assert said(plain) == (cores > 1, many)
        assert asked.count("/") == 2  # the first visit and its one reload
        assert said(plain) == (cores > 1, many)
        visitor.draw()
    without = plain_host(page, lambda name, data: None if name == "sw.js" else data)
    with without as (plain, asked):
        isolated, words = False, ""
        visitor.open(plain)
        visitor.until(lambda: visitor.text("alert"))
        isolated, words = visitor.js("return crossOriginIsolated"), visitor.text("host")
        assert not isolated
        assert words.startswith("One thread: more need headers")
        assert "sw.js" in visitor.text("alert")
        assert len(visitor.draw()) == 1


def test_it_works_below_a_path_and_asks_nobody_else(
    visitor: Visitor, chromium: webdriver.Chrome, page: Path, tmp_path: Path
) -> None:
    (tmp_path / "some" / "where").mkdir(parents=True)
    (tmp_path / "some" / "where" / "page").symlink_to(page)
    chromium.get_log("browser")  # what earlier visits said
    with plain_host(tmp_path) as (plain, asked):
        visitor.open(f"{plain}some/where/page/#{urlencode(CAT)}")
        visitor.ready()
        assert len(visitor.draw()) == 1
        names = visitor.js("return performance.getEntriesByType('resource').map((entry) => entry.name)")
        assert all(name.startswith((f"{plain}some/where/page/", f"blob:{plain}")) for name in names)
        wanted = ("/some/where/page/", "/favicon.ico")
        assert all(path.startswith(wanted) for path in asked), asked
        assert not any("cute" in path for path in asked)
    errors = [entry for entry in chromium.get_log("browser") if entry["level"] == "SEVERE"]
    assert not errors, errors


def test_a_browser_that_lacks_something_is_told(visitor: Visitor, chromium: webdriver.Chrome, address: str) -> None:
    script = {"source": "delete globalThis.CompressionStream"}
    number = chromium.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", script)["identifier"]
    try:
        visitor.open(address)
        visitor.until(lambda: visitor.text("alert"))
        assert visitor.text("alert") == "This browser is too old to draw: it lacks CompressionStream"
    finally:
        chromium.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", {"identifier": number})


def test_a_gpu_that_does_not_prove_itself_is_not_used(
    visitor: Visitor, chromium: webdriver.Chrome, bundle: Bundle, tmp_path: Path
) -> None:
    list(write_page(SHIPPED, tmp_path / "site", webgpu=True))
    # A browser that says it had WebGPU, and has no adapter.
    script = {"source": "navigator.gpu ?? Object.defineProperty(navigator, 'gpu', { value: {} })"}
    number = chromium.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", script)["identifier"]
    try:
        with serving(tmp_path / "site") as address:
            visitor.open(f"{address}?provider=webgpu#{urlencode(CAT)}")
            visitor.until(lambda: "WebAssembly draws instead" in visitor.text("alert"))
            assert visitor.js("return document.getElementById('provider').value") == "wasm"
            same(visitor.draw(), bundle.generate(CAT["prompt"], seed=3, steps=3))
    finally:
        chromium.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", {"identifier": number})


def test_firefox_draws_the_same(firefox: Visitor, address: str, bundle: Bundle) -> None:
    firefox.open(f"{address}#{urlencode(CAT | {'count': 2, 'sampler': 'euler_a'})}")
    firefox.ready()
    same(firefox.draw(), bundle.generate(CAT["prompt"], n=2, seed=3, steps=3, sampler="euler_a"))
    firefox.js("document.getElementById('golden').click()")
    firefox.until(lambda: "dB" in firefox.text("status"))
    assert firefox.text("status").startswith("This browser draws as it should"), firefox.text("status")


def test_firefox_gets_threads_by_one_reload(firefox: Visitor, page: Path) -> None:
    with plain_host(page) as (plain, asked):
        firefox.open(plain)
        firefox.ready()
        cores = firefox.js("return navigator.hardwareConcurrency")
        assert firefox.js("return crossOriginIsolated") == (cores > 1)
        assert asked.count("/") == 1 + (cores > 1)
        assert len(firefox.draw()) == 1
