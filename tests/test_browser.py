"""Every page of a smoke study in a real Chromium, network off: nothing missing, nothing hidden.

The study's prompt, workload and model are hostile (`tests.hostile`); nothing of them may run.
Skipped where there is no Chromium; on Debian `apt-get install chromium` brings one.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from tests import hostile
from tests.conftest import PROJECT
from tests.small_notebook import write_notebook

from batchgauge.reporting.matrix import run_matrix
from batchgauge.reporting.page import content_policy
from batchgauge.reporting.study import books
from batchgauge.text import visible

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

    def open_page(name: str, width: int = 1440, scheme: str = "light", folder=smoke_study):
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
        page.on("dialog", lambda dialog: (page.problems.append(dialog.message), dialog.dismiss()))
        page.goto((folder / "reports" / f"{name}.html").as_uri())
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


@pytest.mark.parametrize("name", PAGES[1:])
def test_the_first_screen_has_answer_and_figure(opened, name):
    """Question and answer at both widths; at 1,440 pixels the figure that decides as well."""
    for width in WIDTHS.values():
        page = opened(name, width)
        for part in ("h1", ".question", ".answer"):
            assert page.locator(part).first.bounding_box()["y"] < 700
        assert page.locator(".answer").count() == 1
    box = opened(name).locator("figure").first.bounding_box()
    assert box["y"] < 450
    assert box["y"] + 200 < 900


def test_the_index_answers_on_its_first_screen(opened):
    """Three answers with a figure each, then the picture whose budget can be moved."""
    page = opened("index")
    tiles = page.locator(".hero .tile")
    assert tiles.count() == 3
    assert all(tiles.nth(i).bounding_box()["y"] < 300 for i in range(3))
    assert page.locator("figure.chart").bounding_box()["y"] < 500
    assert not page.locator("#scorecard").get_attribute("open")
    live = page.locator("figure.is-live .live")
    budget = live.locator("input[type=range]").first
    before = live.locator("svg").inner_html()
    budget.focus()
    for _ in range(5):
        page.keyboard.press("ArrowLeft")
    page.wait_for_function("before => document.querySelector('.live svg').innerHTML !== before",
                           arg=before)  # fmt: skip
    assert page.problems == []


def test_a_figure_says_its_values_on_hover(opened):
    """The mouse on a dot shows the values; leaving takes them away."""
    page = opened("baseline_performance")
    mark = page.locator("figure.is-live .mark-symbol.role-mark path").last
    mark.hover(force=True)
    tip = page.locator("#vg-tooltip-element.visible")
    tip.wait_for()
    assert "batch size" in tip.inner_text()
    page.mouse.move(2, 2)
    page.wait_for_selector("#vg-tooltip-element.visible", state="detached")


def test_a_figure_says_its_values_to_the_keyboard(opened):
    """Arrow keys go from mark to mark and read each one's values."""
    page = opened("baseline_performance")
    page.locator("figure.is-live .live").first.focus()
    said = []
    for _ in range(2):
        page.keyboard.press("ArrowRight")
        said.append(page.locator(".reading").first.inner_text())
    assert said[0] != said[1]
    assert all("batch size" in text for text in said)


def test_a_legend_leaves_one_series_alone(opened):
    """A click on a name in the legend fades the others, a second one brings them back."""
    page = opened("roadmap")
    names = page.locator("#roadmap_ranking .live .role-legend-label text")
    page.locator("#roadmap_ranking").scroll_into_view_if_needed()
    names.first.wait_for()
    assert names.count() == 2
    marks = """() => [...document.querySelectorAll(
      '#roadmap_ranking .live .mark-symbol.role-mark path')]
      .map(p => [p.getAttribute('aria-label'), p.getAttribute('opacity')])"""
    every = [label for label, _ in page.evaluate(marks)]
    for name in names.all_text_contents():
        for shown in (name, ""):
            names.get_by_text(name, exact=True).click()
            wanted = [[label, "1" if f"series: {shown}" in label else "0.1"] for label in every]
            assert {opacity for _, opacity in wanted} == ({"1", "0.1"} if shown else {"1"})
            page.wait_for_function(
                f"wanted => JSON.stringify(({marks})()) === JSON.stringify(wanted)", arg=wanted
            )


@pytest.mark.parametrize("name", PAGES)
def test_everything_is_there_without_javascript(browser, smoke_study, name):
    """The still pictures stand where the living ones would; nothing is hidden but the code."""
    context = browser.new_context(java_script_enabled=False, offline=True)
    page = context.new_page()
    page.goto((smoke_study / "reports" / f"{name}.html").as_uri())
    for i in range(page.locator("figure.chart").count()):
        still = page.locator("figure.chart .still svg").nth(i)
        assert still.bounding_box()["height"] > 50
        assert page.locator("figure.chart .still").nth(i).get_attribute("aria-label")
    assert page.locator(".live svg").count() == 0
    context.close()


@pytest.mark.parametrize("name", ["index", "speedup"])
def test_a_page_prints(opened, name, tmp_path):
    """On paper still pictures, open tables whose heads repeat, no buttons; and a PDF of it."""
    page = opened(name, scheme="dark")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print")
    assert page.locator("details.aside:not([open])").count() == 0
    display = "(e) => getComputedStyle(e).display"
    assert page.locator(".topbar").evaluate(display) == "none"
    assert page.locator("figure.chart .live").first.evaluate(display) == "none"
    assert page.locator("figure.chart .still").first.evaluate(display) == "block"
    assert page.locator("thead").first.evaluate(display) == "table-header-group"
    colour = "getComputedStyle(document.documentElement).getPropertyValue('--paper').trim()"
    assert page.evaluate(colour) == "#fff"
    page.pdf(path=str(tmp_path / "page.pdf"))
    assert (tmp_path / "page.pdf").stat().st_size > 10_000


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_small_and_its_tables_fit(opened, smoke_study, name):
    """Under 3 MB; a table wider than its place scrolls inside it, its first column in sight."""
    assert (smoke_study / "reports" / f"{name}.html").stat().st_size < 3e6
    page = opened(name)
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    cut = """() => [...document.querySelectorAll('main table')].filter(t => {
      const box = t.closest('.scroll') || t;
      return box.getBoundingClientRect().right > innerWidth + 1;
    }).length"""
    assert page.evaluate(cut) == 0
    stops = "document.querySelectorAll('th button[tabindex=\"0\"]').length"
    assert page.evaluate(stops) <= page.locator("main table").count()


def test_code_unfolds_with_one_click(opened):
    """One click shows all code, another hides it again."""
    page = opened(PAGES[1])
    assert page.locator("details.code[open]").count() == 0
    page.click("[data-toggle-code]")
    assert page.locator("details.code:not([open])").count() == 0
    page.click("[data-toggle-code]")
    assert page.locator("details.code[open]").count() == 0


def test_tables_sort(opened):
    """A click on a heading sorts by the full value, a second one the other way round.

    One stop of the Tab key a table: arrow keys go to the other headings.
    """
    page = opened("index")
    page.evaluate("document.getElementById('scorecard').open = true")
    table = page.locator(".scorecard", has=page.locator("th button")).first
    values = "t => [...t.querySelectorAll('.m')].map(c => Number(c.dataset.value))"
    before = table.evaluate(values)
    heading = table.locator("thead th", has_text="measured").locator("button")
    heading.click()
    assert table.evaluate(values) == sorted(before)
    heading.click()
    assert table.evaluate(values) == sorted(before, reverse=True)
    table.locator("th button").first.focus()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.textContent") == "goal"


def test_the_theme_can_be_chosen(opened):
    """The button turns a light page dark, whatever the system says."""
    page = opened("index")
    colour = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(colour)
    page.click("[data-toggle-theme]")
    assert page.evaluate(colour) != light


def test_a_figure_opens_larger(opened):
    """On a phone a click shows the picture larger than the page is wide; another closes it."""
    page = opened("bottleneck_analysis", WIDTHS["phone"])
    page.locator(".zoom").first.click()
    enlarged = page.locator("dialog.enlarged img")
    assert enlarged.bounding_box()["width"] > WIDTHS["phone"]
    page.keyboard.press("Escape")
    assert page.locator("dialog.enlarged").count() == 0


# Every way into a page, each with everything that might run.
HOSTILE = f"""\
import sys
sys.path.insert(0, {str(PROJECT)!r})
from tests import hostile
import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import display
from batchgauge.profiling.flamegraph import render_svg
from batchgauge.profiling.listing import Listing
from batchgauge.profiling.lines import LineProfile
from batchgauge.profiling.stacks import Frame, StackProfile
from batchgauge.reporting import Report, Score, Section
from batchgauge.text import Markdown, code, visible
every, names = hostile.EVERYTHING, [*hostile.ALL.values(), hostile.FILE_NAME]
report = Report.begin("first", title=every, question=every, profile=profile, out_dir=out_dir)
frame = pd.DataFrame({{hostile.TAG: names, hostile.MARKDOWN: names, "n": 1.0}})
report.table(frame, caption=every)
report.finding(every)
report.finding(Markdown("**{{}}** {{}}").format(every, code(hostile.TAG)))
fig, ax = plt.subplots()
ax.barh([visible(name) for name in names], frame["n"])
ax.set_title(every)
report.figure(fig, "hostile", alt=every, caption=every)
stacks = tuple(((Frame(n, n, 1, "python"), Frame(n, "a.py", 2, "python")), 1.0) for n in names)
stacks = StackProfile(hostile.TAG, "s", stacks, float(len(names)), 9)
report.show(Section("flames", {{}}, every, document=lambda: render_svg(stacks, title=every)))
lines = pd.DataFrame({{"function": every, "line": 1, "source": names, "hits": 1, "share": 0.1}})
display(Listing(type("Profile", (), {{"frame": lines}}), [every]))
print(every)
for text in names:
    report.score(Score(text, text, 1.0, 2.0, unit=hostile.TAG))
report.answer(every)
report.finish()
"""
REMAINS = """() => {
  const count = (selector, test = () => true) =>
    [...document.querySelectorAll(selector)].filter(test).length;
  return {
    title: ['evil', '1'].includes(document.title),
    elements: count('.evil, [onerror], [onload], [onclick], [onfocus], [onmouseover]'),
    scripts: count('script:not([data-own]):not([type="application/json"])'),
    links: count('[href], [src]', e => /^(javascript:|https?:..evil)/.test(e.href || e.src)),
    headings: count('h1, h2, h3', e => e.textContent.trim() === 'evil'),
  };
}"""
NOTHING = {"title": False, "elements": 0, "scripts": 0, "links": 0, "headings": 0}


@pytest.mark.parametrize("name", PAGES)
def test_nothing_hostile_runs_on_a_page_of_the_study(opened, name):
    """Prompt, workload, file name and model name are text on every page, with scripts on."""
    page = opened(name)
    assert page.evaluate(REMAINS) == NOTHING
    assert page.problems == []
    if name == "tour":
        assert "<img src=x class=evil" in page.inner_text("main")


@pytest.fixture(scope="module")
def hostile_matrix(tmp_path_factory):
    """The comparison page of a matrix of one run, whose report is hostile wherever it can be."""
    folder = tmp_path_factory.mktemp("hostile")
    write_notebook(folder, only=HOSTILE)
    (folder / "runs.yaml").write_text("runs: {one: {profile: smoke, name: <b class=evil>}}")
    return run_matrix(folder / "runs.yaml", notebooks=folder / "notebooks", out_dir=folder)


def test_nothing_hostile_runs_whatever_a_report_says(opened, hostile_matrix):
    """Titles, answers, tables, captions, alt texts, listings, streams, scores: text all of it."""
    run = hostile_matrix.parent / "one"
    for name, folder in (("first", run), ("index", run), ("../index", hostile_matrix.parent)):
        page = opened(name, folder=folder)
        assert page.evaluate(REMAINS) == NOTHING, name
        assert page.problems == []
        assert [u for u in page.asked if not u.startswith(("file:", "data:"))] == []
        assert hostile.TAG in page.inner_text("main"), name
        page.hover("main")
        page.click("[data-toggle-theme]")
        assert page.evaluate(REMAINS) == NOTHING, name
    page = opened("index", folder=run)
    page.goto((run / "reports" / "figures" / "flames.svg").as_uri())
    assert page.evaluate("document.querySelectorAll('.evil').length") == 0
    assert page.evaluate("document.querySelectorAll('g.f').length") > 9  # it is well-formed


def test_markdown_and_notebooks_of_a_hostile_report_hold_no_tags(hostile_matrix):
    """Markdown has no tag outside code and no control character anywhere; nor has the notebook."""
    reports = hostile_matrix.parent / "one" / "reports"
    for path in (reports / "first.md", reports / "index.md", hostile_matrix.with_suffix(".md")):
        text = path.read_text(encoding="utf-8")
        assert text == visible(text)
        prose = re.sub(r"(?ms)^(`{3,})text$.*?^\1$", "", text)
        assert not re.search(r"<[a-z/!]", prose), path
        assert "evil" in prose
    executed = (reports / "notebooks" / "first.ipynb").read_text(encoding="utf-8")
    assert executed == visible(executed)
    for cell in json.loads(executed)["cells"]:
        for output in cell.get("outputs", []):
            said = "".join(output.get("data", {}).get("text/markdown", ""))
            assert not re.search(r"<[a-z/!]", re.sub(r"(?ms)^(`{3,})text$.*?^\1$", "", said))


def test_the_policy_is_a_second_wall(opened, tmp_path, smoke_study):
    """A tag that did come through would run nothing and load nothing; our own script runs."""
    (tmp_path / "reports").mkdir()
    html = (smoke_study / "reports" / "tour.html").read_text(encoding="utf-8")
    assert html.count(content_policy(alive=True)) == 1
    raw = f"{hostile.TAG}{hostile.SCRIPT}<img src='https://evil.invalid/'><base href='https://x/'>"
    page_with = html.replace("</main>", f"{raw}</main>")
    (tmp_path / "reports" / "tour.html").write_text(page_with, encoding="utf-8")
    page = opened("tour", folder=tmp_path)
    assert page.locator(".evil").count() > 0
    assert page.evaluate("document.title").startswith("A tour")
    stopped = [p for p in page.problems if "Content Security Policy" in p]
    for what in ("https://evil.invalid/", "https://x/", "script"):
        assert any(what in said for said in stopped), what
    page.click("[data-toggle-code]")
    assert page.locator("details.code:not([open])").count() == 0
