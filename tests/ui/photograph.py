"""Takes the pictures of the page in docs/images: page.png, and page-phone.png in the dark theme.

python -m tests.ui.photograph [BUNDLE_DIR] [--out docs/images]
"""

import argparse
import base64
from pathlib import Path

from selenium.webdriver.common.keys import Keys

from ldmkit.runtime.bundle import Bundle
from ldmkit.ui.serve import running
from tests.ui.browser import Browser, start_chromium

REPOSITORY = Path(__file__).parents[2]
PROMPTS = (
    "a white cat with blue eyes on a pink background",
    "a black cat with yellow eyes on a green background",
    "a cute orange tabby cat with green eyes on a blue background",
)
"""drawn one after the other, four pictures each"""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("bundle", nargs="?", type=Path, default=REPOSITORY / "exports" / "toy-cats")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "docs" / "images")
    arguments = parser.parse_args()
    bundles = {arguments.bundle.resolve().name: Bundle.load(arguments.bundle, provider="cpu")}
    with running(bundles, host="127.0.0.1", port=0) as server, start_chromium() as driver:
        browser = Browser(driver, server.url)
        browser.open(width=1180, height=900)
        draw(browser)
        save(browser, arguments.out / "page.png", until="#columns")
        browser.open(width=390, height=844, dark=True)
        draw(browser)
        save(browser, arguments.out / "page-phone.png")


def draw(browser: Browser) -> None:
    """All prompts."""
    for k, prompt in enumerate(PROMPTS, 1):
        browser.write("#prompt textarea", prompt, end=Keys.ENTER)
        browser.drawn(4 * k)
    browser.driver.execute_script("document.activeElement.blur()")  # a caret would blink


def save(browser: Browser, path: Path, *, until: str | None = None) -> None:
    """The page from its top to the end of the window, or of the element `until`."""
    browser.driver.execute_script("scrollTo(0, 0)")
    loaded = "return [...document.images].every(each => each.complete && each.clientHeight)"
    browser.until(lambda: browser.driver.execute_script(loaded))
    width, height = browser.driver.execute_script("return [innerWidth, innerHeight]")
    if until is not None:
        height = browser.one(until).rect["y"] + browser.one(until).rect["height"] + 16
    clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
    taken = browser.driver.execute_cdp_cmd("Page.captureScreenshot", {"clip": clip, "captureBeyondViewport": True})
    path.write_bytes(base64.b64decode(taken["data"]))


if __name__ == "__main__":
    main()
