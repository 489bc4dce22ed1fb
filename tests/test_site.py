"""The documentation's site: no warning, no dead link, nothing from the web, a search without a server."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, as ``make docs`` builds it."""
    if any(importlib.util.find_spec(name) is None for name in ("mkdocs", "material", "mkdocstrings")):
        pytest.skip("needs mkdocs-material and mkdocstrings (the extras docs and dev)")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


def checked(folder: Path) -> tuple[int, list[str]]:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "check_site.py", folder], capture_output=True, text=True, timeout=100
    )
    return done.returncode, done.stderr.splitlines()


def test_no_link_is_dead_and_nothing_is_loaded_from_the_web(site: Path):
    assert checked(site) == (0, [])
    assert len(list(site.glob("*.html"))) > 15
    assert 'href="../dsrl_offpolicy' not in (site / "architecture.html").read_text()  # the site holds no code


def test_what_is_wrong_with_a_site_is_found(tmp_path: Path):
    (tmp_path / "there.html").write_text('<h1 id="top">x</h1><a href="https://example.org">the web</a>')
    (tmp_path / "index.html").write_text(
        '<script src="https://unpkg.com/x"></script><link rel="stylesheet" href="//fonts.example/x.css">'
        '<link rel="canonical" href="https://example.org/"><a href="there.html#top">a</a>'
        '<a href="there.html#bottom">b</a><a href="nowhere.html">c</a><a href="#none">d</a><img src="gone.png">'
    )
    (tmp_path / "style.css").write_text("@import url('https://fonts.example/y.css'); a {background: url(z.png)}")
    status, lines = checked(tmp_path)
    assert status == 1
    assert lines == [
        "index.html: loads https://unpkg.com/x",
        "index.html: loads //fonts.example/x.css",
        "index.html: there.html#bottom: no such heading",
        "index.html: nowhere.html: no such file",
        "index.html: #none: no such heading",
        "index.html: gone.png: no such file",
        "style.css: loads https://fonts.example/y.css",
    ]
    (tmp_path / "empty").mkdir()
    assert checked(tmp_path / "empty")[0] == 1


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium, which the extra dev installs")
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("needs Debian's packages chromium and chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


def test_its_search_finds_a_page_without_a_server(site: Path, browser: Any):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    browser.get((site / "index.html").as_uri())
    browser.execute_script("document.querySelector('[data-md-toggle=search]').click()")
    browser.find_element(By.CSS_SELECTOR, "[data-md-component=search-query]").send_keys("fingerprint")
    hits = WebDriverWait(browser, 60).until(
        lambda b: [a.get_attribute("href") for a in b.find_elements(By.CSS_SELECTOR, ".md-search-result__link")]
    )
    assert any("reference.html" in hit for hit in hits), hits
    asked = [entry["message"] for entry in browser.get_log("performance")]
    assert not [line for line in asked if '"Network.requestWillBeSent"' in line and '"url":"http' in line]
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
