"""The page in a real browser, Chromium without a window; skipped where there is none, or no selenium to drive it."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ssl_vit.report.page import write_page
from ssl_vit.report.several import write_several
from tests.report.folders import run_folder

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium drives the browser: pip install selenium")
CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None, reason="no Chromium here: apt-get install chromium chromium-driver"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for word in (
        "--headless=new",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--disable-gpu",
        "--window-size=1200,900",
    ):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_page(run_folder(tmp_path_factory.mktemp("browser") / "run"))


def opened(browser: Any, page: Path) -> list[str]:
    """Open a page; the addresses that were asked for."""
    browser.get_log("performance")
    browser.get_log("browser")
    browser.get(page.absolute().as_uri())
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
    return [each["request"]["url"] for each in sent]


def colour_of(browser: Any, selector: str) -> list[int]:
    found = browser.execute_script(f"return getComputedStyle(document.querySelector('{selector}')).backgroundColor")
    return [int(part) for part in found.removeprefix("rgb(").removesuffix(")").split(",")]


def test_it_opens_without_an_error_and_without_the_network(browser: Any, page: Path) -> None:
    addresses = [address for address in opened(browser, page) if not address.startswith("data:")]
    assert addresses == [page.absolute().as_uri()]
    assert browser.get_log("browser") == []
    broken = "return [...document.images].filter((image) => !image.complete || !image.naturalWidth).length"
    assert browser.execute_script("return document.images.length") >= 6
    assert browser.execute_script(broken) == 0
    sideways = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert browser.execute_script(sideways) == 0


def test_pointing_at_an_image_of_the_map_shows_it(browser: Any, page: Path) -> None:
    opened(browser, page)
    dot = browser.find_element("css selector", "circle[data-tile='5']")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", dot)
    webdriver.ActionChains(browser).move_to_element(dot).perform()
    tip = browser.find_element("id", "tip")
    assert tip.is_displayed()
    assert "5.png" in tip.text
    shown = browser.execute_script("return getComputedStyle(document.querySelector('#tip .tile')).backgroundImage")
    assert shown.startswith('url("data:image/jpeg')
    larger = browser.execute_script('return document.querySelectorAll(\'circle[data-tile="5"][r="8"]\').length')
    assert larger == 2  # in both maps
    webdriver.ActionChains(browser).move_to_element(browser.find_element("css selector", "#map h2")).perform()
    assert not tip.is_displayed()


def test_pointing_at_a_curve_says_its_values(browser: Any, page: Path) -> None:
    opened(browser, page)
    chart = browser.find_element("css selector", "#curves svg.chart")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", chart)
    webdriver.ActionChains(browser).move_to_element(chart).perform()
    steps, value = browser.find_element("id", "tip").text.split(": ")
    assert 0 < float(steps) < 320
    assert 3 < float(value) < 4


def test_it_is_dark_where_the_system_is(browser: Any, page: Path) -> None:
    for scheme, dark in (("light", False), ("dark", True)):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        opened(browser, page)
        assert (max(colour_of(browser, "section")) < 80) is dark
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_it_prints_on_a4_and_light(browser: Any, page: Path) -> None:
    opened(browser, page)
    made = browser.execute_cdp_cmd("Page.printToPDF", {"preferCSSPageSize": True, "printBackground": False})
    pdf = base64.b64decode(made["data"])
    assert b"/MediaBox [0 0 594.95996 841.91998]" in pdf or b"/MediaBox [0 0 595 842]" in pdf, pdf[:600]
    features = [{"name": "prefers-color-scheme", "value": "dark"}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": features})
    assert min(colour_of(browser, "section")) == 255
    shown = "return getComputedStyle(document.querySelector('nav')).display"
    assert browser.execute_script(shown) == "none"
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})


def test_several_runs_open_likewise(browser: Any, tmp_path: Path) -> None:
    runs = [run_folder(tmp_path / name, seed=seed) for seed, name in enumerate("ab")]
    out = write_several(runs, tmp_path / "page.html")
    assert [address for address in opened(browser, out) if not address.startswith("data:")] == [out.as_uri()]
    assert browser.get_log("browser") == []
