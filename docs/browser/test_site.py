# SPDX-License-Identifier: LGPL-3.0-or-later
"""The built site in a browser, headless Chromium: scripts/browse-docs runs this.

The directory of the site is in the environment variable ``SITE``, that of screenshots, if they are
wanted, in ``SCREENSHOTS``.
"""

import functools
import http.server
import os
import shutil
import threading
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait

SITE = Path(os.environ["SITE"])
PAGES = sorted(str(page.relative_to(SITE)) for page in SITE.glob("**/*.html"))
PHONE = 360


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def address():
    handler = functools.partial(Quiet, directory=SITE)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def browser(**mobile):
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    # Root has no sandbox, and many containers no large /dev/shm.
    for argument in ("headless=new", "no-sandbox", "disable-dev-shm-usage"):
        options.add_argument(f"--{argument}")
    if mobile:
        options.add_experimental_option("mobileEmulation", {"deviceMetrics": mobile})
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    return webdriver.Chrome(options=options, service=service)


@pytest.fixture(scope="module")
def desktop():
    with browser() as driver:
        driver.set_window_size(1280, 900)
        yield driver


@pytest.fixture(scope="module")
def phone():
    with browser(width=PHONE, height=740, pixelRatio=2.0) as driver:
        yield driver


def shown(driver, name):
    if directory := os.environ.get("SCREENSHOTS"):
        driver.save_screenshot(f"{directory}/{name}.png")


def test_there_are_pages():
    assert {"index.html", "start.html", "tutorial.html", "benchmarks.html"} <= set(PAGES)
    assert len(PAGES) > 25


def test_the_start_page_leads_to_the_others(desktop, address):
    desktop.get(f"{address}/index.html")
    assert "Linux filesystem interface" in desktop.find_element(By.TAG_NAME, "h1").text
    shown(desktop, "index")
    desktop.find_element(By.LINK_TEXT, "Start here").click()
    WebDriverWait(desktop, 10).until(lambda driver: driver.current_url.endswith("start.html"))
    assert desktop.find_element(By.TAG_NAME, "h1").text.startswith("Start here")


def test_a_search_finds_the_reference_of_a_call(desktop, address):
    desktop.get(f"{address}/index.html")
    desktop.find_element(By.CSS_SELECTOR, "input[name=q]").send_keys("openat2", Keys.ENTER)
    wanted = "a[href*='reference/truenas_os.html#truenas_os.openat2']"
    found = WebDriverWait(desktop, 20).until(
        lambda driver: driver.find_elements(By.CSS_SELECTOR, f"#search-results {wanted}")
    )
    shown(desktop, "search")
    found[0].click()
    entry = WebDriverWait(desktop, 10).until(
        lambda driver: driver.find_element(By.ID, "truenas_os.openat2")
    )
    assert "pathname" in entry.text
    where = "return arguments[0].getBoundingClientRect().top"
    # It scrolls there smoothly.
    WebDriverWait(desktop, 10).until(lambda driver: 0 <= driver.execute_script(where, entry) < 300)


@pytest.mark.parametrize("page", PAGES)
def test_a_page_has_no_errors_on_the_console(desktop, address, page):
    desktop.get(f"{address}/{page}")
    logged = [entry for entry in desktop.get_log("browser") if "favicon" not in entry["message"]]
    assert logged == []


def test_an_error_on_the_console_would_be_seen(desktop, address):
    desktop.get(f"{address}/index.html")
    desktop.execute_script("console.error('wrong')")
    assert any("wrong" in entry["message"] for entry in desktop.get_log("browser"))


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_readable_on_a_phone(phone, address, page):
    phone.get(f"{address}/{page}")
    shown(phone, f"phone-{page.replace('/', '-')}")
    # Nothing makes the page wider than the screen; what is wide scrolls by itself.
    assert phone.execute_script("return document.documentElement.scrollWidth") <= PHONE
    for text in phone.find_elements(By.CSS_SELECTOR, "article p, article li, article pre"):
        size = text.value_of_css_property("font-size")
        assert float(size.removesuffix("px")) >= 12, text.text
    for image in phone.find_elements(By.CSS_SELECTOR, "article img, article svg.diagram"):
        assert 250 < image.rect["width"] <= PHONE
