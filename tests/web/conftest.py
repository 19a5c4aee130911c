"""The page of the shipped bundle, and browsers to visit it."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver

from ldmkit.errors import LdmkitError
from ldmkit.runtime.bundle import Bundle
from ldmkit.web.serve import serving
from ldmkit.web.write import write_page
from tests.ui.browser import chromium_is_here, start_chromium
from tests.web.visitor import Visitor, start_firefox

SHIPPED = Path(__file__).parents[2] / "exports" / "toy-cats"


@pytest.fixture(scope="session")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("npm") is None:
        pytest.skip("npm, which fetches the page's runtime, is not installed")
    folder = tmp_path_factory.mktemp("web") / "page"
    try:
        list(write_page(SHIPPED, folder))
    except LdmkitError as error:
        if os.environ.get("CI") or "npm registry" not in str(error):
            raise
        pytest.skip(f"the page's runtime was never fetched here, and cannot be now: {error}")
    return folder


@pytest.fixture(scope="session")
def address(page: Path) -> Iterator[str]:
    """Of the page, served as `ldmkit ui --web` does."""
    with serving(page) as url:
        yield url


@pytest.fixture(scope="session")
def chromium() -> Iterator[webdriver.Chrome]:
    if not chromium_is_here():
        pytest.skip("chromium and chromedriver are not installed")
    with start_chromium() as driver:
        yield driver


@pytest.fixture
def visitor(chromium: webdriver.Chrome) -> Visitor:
    """A first visit: what earlier ones left in the browser is gone."""
    chromium.get("about:blank")
    chromium.execute_cdp_cmd("Network.clearBrowserCache", {})
    return Visitor(chromium)


@pytest.fixture
def opened(chromium: webdriver.Chrome, address: str) -> Visitor:
    """The page as the visit before left it, if it can draw there: to load and to compile takes longer than to draw."""
    visitor = Visitor(chromium)
    can_draw = "return document.getElementById('draw')?.disabled === false"
    if chromium.current_url.partition("#")[0] != address or not visitor.js(can_draw):
        visitor.open(address)
        visitor.ready()
    return visitor


@pytest.fixture(scope="session")
def firefox() -> Iterator[Visitor]:
    if not (shutil.which("firefox-esr") or shutil.which("firefox")):
        pytest.skip("firefox is not installed")
    with start_firefox() as driver:
        yield Visitor(driver)


@pytest.fixture(scope="session")
def bundle() -> Bundle:
    return Bundle.load(SHIPPED, provider="cpu")
