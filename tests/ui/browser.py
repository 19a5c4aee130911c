"""Chromium, to look at the page with."""

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement


def chromium_is_here() -> bool:
    """Whether Chromium and its driver are installed."""
    return shutil.which("chromium") is not None and shutil.which("chromedriver") is not None


@contextmanager
def start_chromium() -> Iterator[webdriver.Chrome]:
    """A browser without a window, with a profile of its own."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for flag in (
            *("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-dev-shm-usage"),
            *("disable-background-networking", "disable-component-update", "disable-sync"),
            f"user-data-dir={profile}",
        ):
            options.add_argument(f"--{flag}")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
        try:
            yield driver
        finally:
            driver.quit()


class Browser:
    """Chromium, by what a person does with it."""

    def __init__(self, driver: webdriver.Chrome, url: str) -> None:
        self.driver = driver
        self.url = url

    def open(self, *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """A new visit: its gallery is empty."""
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600},
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        self.driver.get(self.url)
        self.until(lambda: self.all("#header h1") and self.all("#gallery"))

    def until(self, condition: Callable[[], Any]) -> Any:
        """The first true value of `condition`; elements may vanish while it looks."""
        end, reason = time.monotonic() + 300, ""
        while time.monotonic() < end:
            try:
                if found := condition():
                    return found
            except Exception as error:
                reason = str(error).partition("\n")[0]
            time.sleep(0.05)
        raise AssertionError(f"waited in vain {reason}\n{self.one('body').text}")

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def value(self, selector: str) -> str:
        """What a field holds."""
        return str(self.one(selector).get_property("value"))

    def write(self, selector: str, text: str, *, end: str = "") -> None:
        """Replaces a field's text by typing, once more where the page was filled in between the keys."""
        for _ in range(3):
            field = self.until(lambda: self.one(selector).is_displayed() and self.one(selector))
            field.send_keys(Keys.CONTROL, "a")
            field.send_keys(Keys.BACKSPACE, text)
            if self.value(selector) == text:
                break
        field.send_keys(end)

    def press(self, selector: str) -> None:
        self.until(lambda: self.one(selector).is_displayed() and self.one(selector).is_enabled())
        self.one(selector).click()

    def pictures(self) -> list[str]:
        """Addresses of the gallery's pictures, in its order."""
        return [str(image.get_attribute("src")) for image in self.all("#gallery .grid-container img")]

    def choose(self, selector: str, text: str) -> None:
        """Takes what has `text` in it from a list that opens."""
        self.press(selector)
        self.until(lambda: [each for each in self.all("[role=option]") if text in each.text])[0].click()

    def busy(self) -> bool:
        return self.one("#stop").is_enabled()

    def draw(self, count: int) -> list[str]:
        """Presses Draw and waits; the addresses of the gallery's pictures, `count` by then."""
        before = self.pictures()
        self.press("#draw")
        self.until(lambda: self.pictures() != before)
        return self.drawn(count)

    def drawn(self, count: int) -> list[str]:
        """Waits for a drawing that has begun."""
        self.until(lambda: len(self.pictures()) == count and not self.all("#live .work") and not self.busy())
        return self.pictures()
