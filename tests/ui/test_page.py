"""The page in Chromium, end to end: what a person does, and what they get."""

import io
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

from ldmkit.runtime.bundle import Bundle
from ldmkit.ui.serve import Server

PROMPT = "a cute orange cat with green eyes on a blue background"
THUMBNAILS = "#gallery .grid-container button"


def fetched(client: httpx.Client, address: str) -> Any:
    """The picture, as a download gets it."""
    response = client.get(address)
    assert response.status_code == 200
    assert response.headers["content-type"] == "image/png"
    return Image.open(io.BytesIO(response.content))


def same(first: Image.Image, second: Image.Image) -> bool:
    return np.array_equal(np.asarray(first), np.asarray(second))


def test_a_prompt_becomes_the_runtimes_picture_and_the_seed_decides(
    browser: Any, client: httpx.Client, bundles: dict[str, Bundle]
) -> None:
    browser.open()
    browser.write("#count input[type=number]", "1")
    browser.write("#prompt textarea", PROMPT)
    first = fetched(client, browser.draw(1)[0])
    assert same(first, bundles["toy-cats"].generate(PROMPT, seed=0)[0])
    browser.write("#seed input", "1")
    second = fetched(client, browser.draw(2)[0])
    assert not same(first, second)
    browser.write("#seed input", "0")
    again = fetched(client, browser.draw(2)[0])  # what was drawn before is shown once, in front
    assert same(first, again)


def test_settings_are_read_from_the_picture_and_used_again(browser: Any, client: httpx.Client) -> None:
    browser.open()
    browser.press("#settings button")
    for field, text in {
        "#prompt textarea": "a <b>grey</b> cat & more",
        "#negative textarea": "blue",
        "#seed input": "41",
        "#steps input[type=number]": "3",
        "#guidance input[type=number]": "2.5",
        "#count input[type=number]": "2",
    }.items():
        browser.write(field, text)
    browser.choose("#width input", "96")
    addresses = browser.draw(2)
    expected = {
        "prompt": "a <b>grey</b> cat & more",
        "negative": "blue",
        "seed": "42",
        "steps": "3",
        "guidance": "2.5",
        "sampler": "dpmpp_2m",
        "bundle": "toy-cats",
    }
    second = fetched(client, addresses[1])
    assert {key: second.text[key] for key in expected} == expected
    assert second.size == (96, 64)
    for field in ("#prompt textarea", "#negative textarea"):
        browser.write(field, "something else")
    browser.write("#seed input", "7")
    browser.write("#steps input[type=number]", "9")
    browser.choose("#width input", "32")
    browser.all(THUMBNAILS)[1].click()
    shown = browser.until(lambda: browser.one("#details").text)
    assert not [value for value in (*expected.values(), "96 x 64") if value not in shown]
    browser.press("#again")
    browser.until(lambda: browser.value("#seed input") == "42")
    assert browser.value("#prompt textarea") == expected["prompt"]
    assert browser.value("#negative textarea") == "blue"
    assert browser.value("#steps input[type=number]") == "3"
    assert browser.value("#guidance input[type=number]") == "2.5"
    assert browser.value("#width input") == "96"
    browser.until(lambda: browser.driver.switch_to.active_element.get_attribute("id") == "draw")
    redrawn = fetched(client, browser.draw(2)[0])
    assert np.abs(np.asarray(redrawn, int) - np.asarray(second, int)).max() <= 1  # alone now, not in a batch of two
    assert not browser.all("#chosen"), "the picture that was shown large is closed, and its settings with it"


def test_the_settings_are_those_of_the_picture_shown_though_new_ones_come_before_it(browser: Any) -> None:
    browser.open()
    browser.write("#count input[type=number]", "1")
    (first,) = browser.draw(1)
    browser.press("#settings button")
    browser.write("#steps input[type=number]", "250")
    browser.write("#count input[type=number]", "4")
    browser.write("#seed input", "5")
    browser.press("#draw")
    browser.until(browser.busy)
    browser.one(f'{THUMBNAILS}:has([src="{first}"])').click()
    browser.drawn(5)
    assert browser.pictures()[4] == first
    assert browser.one("#gallery .preview .media-button img").get_attribute("src") == first
    browser.until(lambda: "Seed\n0\n" in browser.one("#details").text)
    browser.press("#gallery button[aria-label=Close]")
    browser.until(lambda: not browser.all("#chosen"))


def test_the_download_button_saves_the_file_with_its_settings(browser: Any, tmp_path: Path) -> None:
    browser.driver.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    browser.open()
    browser.write("#count input[type=number]", "1")
    browser.write("#prompt textarea", PROMPT, end=Keys.ENTER)
    browser.drawn(1)
    browser.all(THUMBNAILS)[0].click()
    browser.press("#download")
    (saved,) = browser.until(lambda: list(tmp_path.glob("*.png")))
    assert saved.name == "a-cute-orange-cat-with-green-eyes-on-a-blue-background-0.png"
    with Image.open(saved) as image:
        assert image.text["prompt"] == PROMPT  # type: ignore[attr-defined]


def test_an_empty_prompt_draws_unconditionally(browser: Any, client: httpx.Client, bundles: dict[str, Bundle]) -> None:
    browser.open()
    browser.write("#count input[type=number]", "1")
    drawn = fetched(client, browser.draw(1)[0])
    assert drawn.text["prompt"] == ""
    assert same(drawn, bundles["toy-cats"].generate(None, seed=0)[0])


def test_the_keyboard_is_enough(browser: Any) -> None:
    browser.open()
    keys = ActionChains(browser.driver)

    def focused() -> str:
        element = browser.driver.switch_to.active_element
        return str(element.get_attribute("outerHTML")).partition(">")[0]

    def tab_to(what: str) -> None:
        passed = []
        for _ in range(40):
            if what in focused():
                return
            passed.append(focused())
            keys.send_keys(Keys.TAB).perform()
        raise AssertionError(f"Tab leads past {passed}, and not to {what}")

    browser.until(lambda: focused().startswith("<textarea"))  # the prompt has the focus from the start
    keys.send_keys(PROMPT, Keys.ENTER).perform()
    browser.drawn(4)
    tab_to('aria-label="Seed"')
    tab_to('id="dice"')
    keys.send_keys(Keys.SPACE).perform()
    browser.until(lambda: browser.value("#seed input") != "0")
    keys.key_down(Keys.SHIFT).send_keys(Keys.TAB).key_up(Keys.SHIFT).perform()
    keys.key_down(Keys.CONTROL).send_keys(Keys.ENTER).key_up(Keys.CONTROL).perform()
    browser.drawn(8)
    tab_to('type="range"')
    assert browser.driver.switch_to.active_element.value_of_css_property("outline-style") == "solid"
    tab_to('aria-label="Thumbnail 2 of 8"')
    keys.send_keys(Keys.ENTER).perform()
    browser.until(lambda: PROMPT in browser.one("#details").text)
    tab_to('id="again"')
    keys.send_keys(Keys.ENTER).perform()
    browser.until(lambda: browser.value("#count input[type=number]") == "1")


def test_an_example_fills_the_prompt(browser: Any, bundles: dict[str, Bundle]) -> None:
    browser.open()
    browser.all(".example")[1].click()
    browser.until(lambda: browser.value("#prompt textarea") == bundles["toy-cats"].manifest.examples[1])


def test_what_is_too_large_is_refused_in_words(browser: Any) -> None:
    browser.open()
    browser.press("#settings button")
    browser.write("#steps input[type=number]", "5000")
    browser.write("#seed input", "99999999999", end=Keys.ENTER)
    message = browser.until(lambda: " ".join(each.text for each in browser.all(".toast-wrap")))
    assert "the seed is 99999999999; it must be from 0 to 4294967295" in message
    assert browser.value("#steps input[type=number]") == "200", "the widget itself keeps to its limit"
    assert not browser.pictures()
    browser.until(lambda: not browser.busy())


def begin_long_drawing(browser: Any) -> None:
    """3200 network calls of 4 pictures."""
    browser.open()
    browser.press("#settings button")
    browser.write("#steps input[type=number]", "200")
    browser.write("#count input[type=number]", "16")
    browser.press("#draw")


def test_previews_and_the_stop_button(browser: Any, server: Server) -> None:
    begin_long_drawing(browser)
    browser.until(lambda: len(browser.all("#live .tiles img")) == 4)
    first = browser.one("#live progress").get_attribute("value")
    browser.until(lambda: browser.one("#live progress").get_attribute("value") != first)
    browser.press("#stop")
    note = browser.until(lambda: browser.one("#live .note").text)
    assert note.startswith("Stopped: ")
    assert note.endswith(" of 16 pictures were finished.")
    browser.until(lambda: not server.page.turns)


def test_a_page_that_waits_says_so_and_can_be_stopped(browser: Any, forger: Any) -> None:
    browser.open()
    browser.write("#count input[type=number]", "1")
    _, other = forger.join(steps=200, count=16)
    forger.until_in_queue(1)
    browser.press("#draw")
    browser.until(lambda: browser.one("#live .note").text == "Waiting: 1 drawing is before this one.")
    browser.press("#stop")
    browser.until(lambda: browser.one("#live .note").text == "Stopped: 0 of 1 pictures were finished.")
    browser.press("#draw")
    browser.until(lambda: browser.one("#live .note").text.startswith("Waiting:"))
    forger.stop(other)
    browser.drawn(1)


def test_a_page_that_is_closed_stops_drawing(browser: Any, server: Server) -> None:
    begin_long_drawing(browser)
    browser.until(lambda: server.page.turns)
    browser.driver.get("about:blank")
    browser.until(lambda: not server.page.turns)
    shown = list(server.page.sessions)[-1].pictures
    assert len(shown) < 16


def test_a_page_that_is_closed_while_it_waits_leaves_the_line(browser: Any, forger: Any) -> None:
    browser.open()
    _, other = forger.join(steps=200, count=16)
    forger.until_in_queue(1)
    browser.press("#draw")
    forger.until_in_queue(2)
    browser.driver.get("about:blank")
    forger.until_in_queue(1)
    assert not forger.server.page.sessions.find(other).stop.is_set(), "the drawing before it is still in work"
    forger.stop(other)
    forger.until_in_queue(0)


def test_another_bundle_without_text_or_previews_and_with_a_hostile_card(browser: Any) -> None:
    browser.open()
    browser.write("#prompt textarea", PROMPT)
    first = browser.draw(4)[0]
    browser.choose("#bundle input", "wordless")
    browser.until(lambda: browser.one("#header h1").text == "wordless")
    browser.press("#settings button")
    browser.until(lambda: browser.one("#steps").is_displayed())
    unused = "#prompt, #negative, .example, #width, #height"  # it draws one size only
    assert not [each for each in browser.all(unused) if each.is_displayed()]
    browser.write("#steps input[type=number]", "100")
    browser.press("#draw")
    browser.until(lambda: int(browser.one("#live progress").get_attribute("value")) > 0)
    assert not browser.all("#live img")
    browser.drawn(8)
    browser.press("#about button")
    card = browser.until(lambda: browser.one("#card").text)
    assert '<script>window.struck = 1</script><img src="x" onerror="window.struck = 1">' in card
    assert browser.driver.execute_script("return window.struck") is None
    (link,) = browser.all("#card a")
    assert link.get_attribute("href") == "https://elsewhere.invalid/"
    assert link.get_attribute("rel") == "noopener noreferrer nofollow"
    (image,) = browser.all("#card img")
    assert image.get_attribute("src").startswith("data:image/png;base64,")
    browser.one(f'{THUMBNAILS}:has([src="{first}"])').click()
    browser.press("#again")  # and the bundle that drew it is back with all that it takes
    browser.until(lambda: browser.one("#prompt textarea").is_displayed() and browser.one("#width").is_displayed())
    assert browser.value("#prompt textarea") == PROMPT
    assert browser.one("#header h1").text == "toy-cats"


def test_nothing_is_loaded_from_elsewhere(browser: Any) -> None:
    browser.driver.get_log("browser")
    browser.open()
    script = "return performance.getEntriesByType('resource').map(each => new URL(each.name).origin)"
    assert set(browser.driver.execute_script(script)) == {browser.url}
    assert not [entry for entry in browser.driver.get_log("browser") if entry["level"] == "SEVERE"]


@pytest.mark.parametrize("width", [390, 901], ids=["one column", "two"])
def test_nothing_sticks_out_sideways(browser: Any, width: int) -> None:
    browser.open(width=width)
    assert (browser.one("#pictures").rect["x"] > browser.one("#draw").rect["x"]) == (width > 900)
    browser.write("#prompt textarea", PROMPT, end=Keys.ENTER)
    browser.drawn(4)
    browser.all(THUMBNAILS)[0].click()
    browser.until(lambda: browser.one("#details").text)
    browser.press("#about button")
    browser.until(lambda: browser.one("#card").text)
    script = """return [...document.querySelectorAll('#top, #columns, #columns *, #about')]
        .filter(each => each.checkVisibility() && each.getBoundingClientRect().right > innerWidth + 1)
        .map(each => each.outerHTML.slice(0, 100))"""
    assert browser.driver.execute_script(script) == []
    assert browser.driver.execute_script("return document.documentElement.scrollWidth <= innerWidth")


def luminance(colour: str) -> float:
    """Relative luminance of a CSS `rgb(...)`, WCAG 2.2."""
    levels = [float(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    linear = [level / 12.92 if level <= 0.04045 else ((level + 0.055) / 1.055) ** 2.4 for level in levels]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_texts_can_be_read_in_both_themes(browser: Any, dark: bool) -> None:
    """Contrast of at least 4.5 to 1, WCAG 2.2 AA."""

    def contrast(first: float, second: float) -> float:
        return (max(first, second) + 0.05) / (min(first, second) + 0.05)

    browser.open(dark=dark)
    background = luminance(browser.one("body").value_of_css_property("background-color"))
    assert background < 0.05 if dark else background > 0.8
    for selector in ("#header h1", "#header p", ".example", "#seed span"):
        assert contrast(luminance(browser.one(selector).value_of_css_property("color")), background) >= 4.5, selector
    button = browser.one("#draw")
    assert contrast(*(luminance(button.value_of_css_property(name)) for name in ("color", "background-color"))) >= 4.5
