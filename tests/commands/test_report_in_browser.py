"""A report as a browser shows it: Debian's Chromium without a window, steered by selenium.

The screenshots are left in pytest's temporary folder, or in the folder that ``REPORT_SCREENSHOTS`` names.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from report_runs import TABLE, write_quickstart

from dsrl_offpolicy.commands.report import write_report

selenium = pytest.importorskip("selenium", reason="selenium is not installed")
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
if CHROMIUM is None or DRIVER is None:
    pytest.skip("needs Debian's packages chromium and chromium-driver", allow_module_level=True)

DESK, PHONE = (1280, 900), (390, 844)


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    """A report of three seeds, one of which is ill."""
    folder = tmp_path_factory.mktemp("report")
    ill = {"q_mean": lambda p: -55 - 500 * p}
    runs = [
        write_quickstart(folder / f"pick-place-seed{seed}", seed, curve, TABLE, changes=ill if seed == 3 else None)
        for seed, curve in ((1, [8, 14, 19]), (2, [6, 10, 18]), (3, [7, 12, 20]))
    ]
    write_report(runs, folder / "report.html")
    return folder / "report.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--hide-scrollbars",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


def show(browser: Any, page: Path, size: tuple[int, int], scheme: str = "light") -> None:
    """Load the page at a size, in a scheme."""
    width, height = size
    emulated = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": size == PHONE}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", emulated)
    wanted = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", wanted)
    browser.get(page.as_uri())


def shoot(browser: Any, page: Path, name: str) -> Path:
    """Leave a picture of the whole page."""
    folder = Path(os.environ.get("REPORT_SCREENSHOTS", page.parent))
    size = browser.execute_script("return [innerWidth, document.documentElement.scrollHeight]")
    emulated = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", emulated)
    assert browser.save_screenshot(str(folder / name))
    return folder / name


def axis_titles(browser: Any) -> list[str]:
    return browser.execute_script(
        "return [...document.querySelectorAll('.js-plotly-plot')].map((p) => p.layout.xaxis.title.text)"
    )


def plots(browser: Any) -> int:
    return browser.execute_script("return document.querySelectorAll('.js-plotly-plot .main-svg .trace').length")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
def test_it_renders_without_an_error_and_fits(browser, page, size, scheme):
    show(browser, page, size, scheme)
    assert [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []
    assert plots(browser) > 30  # three runs in a dozen charts
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    picture = shoot(browser, page, f"report-{'phone' if size == PHONE else 'desk'}-{scheme}.png")
    assert picture.stat().st_size > 20_000


def test_colours_follow_the_scheme_while_the_page_is_open(browser, page):
    def colours() -> list[str]:
        return browser.execute_script(
            "return [getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color,"
            " document.querySelector('.js-plotly-plot').layout.font.color]"
        )

    show(browser, page, DESK, "light")
    light = colours()
    wanted = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", wanted)
    dark = colours()
    assert all(before != after for before, after in zip(light, dark, strict=True))


def test_the_axis_is_switched_for_all_charts_that_have_it(browser, page):
    show(browser, page, DESK)
    first = axis_titles(browser)
    assert first.count("env steps") >= 10 and "gradient steps" in first  # Stage 1 has no env steps
    ends = "return document.getElementById('chart-td_error') === null ? 0 : 1"
    assert browser.execute_script(ends) == 0  # ids are numbers, not names from files
    where = "return Math.max(...document.getElementById('chart-success').data.flatMap((t) => t.x))"
    assert browser.execute_script(where) == 20_000
    browser.find_element("css selector", "input[value=minutes]").click()
    assert set(axis_titles(browser)) == {"minutes", "gradient steps"}  # rows of Stage 1 here have no minutes
    assert browser.execute_script(where) == 10.5
    browser.find_element("css selector", "input[value=gradient_steps]").click()
    assert set(axis_titles(browser)) == {"gradient steps"}
    assert browser.execute_script(where) == 21_000


def test_further_metrics_are_drawn_when_they_are_opened(browser, page):
    show(browser, page, DESK)
    before = len(axis_titles(browser))
    browser.execute_script("document.querySelector('#curves ~ details summary').click()")
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, 20).until(lambda b: len(axis_titles(b)) > before)


def test_it_asks_no_server(browser, page):
    show(browser, page, DESK)
    assert browser.execute_script("return performance.getEntriesByType('resource').map((e) => e.name)") == []


def test_what_is_ill_is_open_with_its_remedy(browser, page):
    show(browser, page, DESK)
    shown = browser.execute_script(
        "return [...document.querySelectorAll('details[open]')].map((d) => d.innerText)"
    )
    assert len(shown) == 1 and "pick-place-seed3, stage2" in shown[0] and "reduce critic_lr" in shown[0]
