"""Every page of a smoke study in a real Chromium, network off: nothing missing, nothing hidden.

Skipped where there is no Chromium; on Debian `apt-get install chromium` brings one.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from tests.conftest import PROJECT

from batchgauge.reporting.study import books

pytestmark = [pytest.mark.browser, pytest.mark.slow]

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
]
PAGES = ["index", *(book.report for book in books(PROJECT / "notebooks"))]
WIDTHS = {"phone": 390, "desktop": 1440}


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium."""
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine; install one to run the browser tests")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()


@pytest.fixture
def opened(browser, smoke_study):
    """A function that opens a page of the study and remembers what went wrong on it."""
    contexts = []

    def open_page(name: str, width: int = 1440, scheme: str = "light"):
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True
        )
        contexts.append(context)
        page = context.new_page()
        page.problems = []
        page.on("requestfailed", lambda r: page.problems.append(f"request failed: {r.url[:100]}"))
        page.on("pageerror", lambda error: page.problems.append(str(error)))
        page.on(
            "console",
            lambda m: page.problems.append(m.text) if m.type in {"error", "warning"} else None,
        )
        page.asked = []
        page.on("request", lambda r: page.asked.append(r.url))
        page.goto((smoke_study / "reports" / f"{name}.html").as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
@pytest.mark.parametrize("name", PAGES)
def test_a_page_opens_with_the_network_off(opened, name, width):
    """No failed request, no console error, nothing asked for, no sideways scroll."""
    page = opened(name, width)
    assert page.problems == []
    assert [u for u in page.asked if not u.startswith(("file:", "data:"))] == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")


@pytest.mark.parametrize("name", PAGES)
def test_pictures_have_words_and_links_lead_somewhere(opened, smoke_study, name):
    """Every image has alt text; every link inside the study and each anchor resolves."""
    page = opened(name)
    assert page.evaluate("[...document.images].filter(i => !i.alt.trim()).length") == 0
    hrefs = page.evaluate("[...document.querySelectorAll('a[href]')].map(a => a.href)")
    for href in hrefs:
        parts = urlsplit(href)
        if parts.scheme != "file":
            assert parts.scheme == "https", href
            continue
        target = Path(unquote(parts.path))
        in_project = PROJECT / os.path.relpath(target, smoke_study)
        assert target.exists() or in_project.exists(), href
        if parts.fragment and target == smoke_study / "reports" / f"{name}.html":
            assert page.evaluate("id => !!document.getElementById(id)", unquote(parts.fragment)), (
                href
            )


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_no_serious_accessibility_fault(opened, name, scheme):
    """axe-core finds nothing serious or critical, with all code unfolded, in both schemes."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = opened(name, scheme=scheme)
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    found = axe.run(page).response["violations"]
    serious = [
        (v["id"], v["nodes"][0]["html"][:200])
        for v in found
        if v["impact"] in {"serious", "critical"}
    ]
    assert serious == []


def test_the_first_screen_has_title_question_and_answer(opened):
    """At both widths a report's answer begins within the first screen."""
    for width in WIDTHS.values():
        page = opened(PAGES[-1], width)
        for part in ("h1", ".question", ".answer"):
            assert page.locator(part).first.bounding_box()["y"] < 700


def test_code_unfolds_with_one_click(opened):
    """One click shows all code, another hides it again."""
    page = opened(PAGES[1])
    assert page.locator("details.code[open]").count() == 0
    page.click("[data-toggle-code]")
    assert page.locator("details.code:not([open])").count() == 0
    page.click("[data-toggle-code]")
    assert page.locator("details.code[open]").count() == 0


def test_tables_sort(opened):
    """A click on a heading sorts by the full value, a second one the other way round."""
    page = opened("index")
    values = "[...document.querySelectorAll('.scorecard .m')].map(c => Number(c.dataset.value))"
    before = page.evaluate(values)
    heading = page.locator(".scorecard thead th", has_text="measured").locator("button")
    heading.click()
    assert page.evaluate(values) == sorted(before)
    heading.click()
    assert page.evaluate(values) == sorted(before, reverse=True)


def test_the_theme_can_be_chosen(opened):
    """The button turns a light page dark, whatever the system says."""
    page = opened("index")
    colour = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(colour)
    page.click("[data-toggle-theme]")
    assert page.evaluate(colour) != light


def test_a_figure_opens_larger(opened):
    """On a phone a click shows the picture larger than the page is wide; another closes it."""
    page = opened("baseline_performance", WIDTHS["phone"])
    page.locator(".zoom").first.click()
    enlarged = page.locator("dialog.enlarged img")
    assert enlarged.bounding_box()["width"] > WIDTHS["phone"]
    page.keyboard.press("Escape")
    assert page.locator("dialog.enlarged").count() == 0
