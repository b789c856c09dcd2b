"""The page in a real browser: it loads and runs nothing of the data, its filter filters, and a phone can show it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from lightning_modules.evaluation.report.run_folder import load_run
from lightning_modules.evaluation.report.write import write_report
from tests.lightning_modules.evaluation.report.made_up_runs import write_made_up_run, write_run_folder
from tests.lightning_modules.evaluation.report.test_report_files import ATTACK

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (requirements-dev.txt)")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium or google-chrome on PATH")


@pytest.fixture(scope="module")
def browser() -> Iterator[playwright.Browser]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a run whose questions and completions are an attack, compared with a run that is wrong everywhere."""
    root = tmp_path_factory.mktemp("browser")
    first = write_made_up_run(root / "first", root / "data", ["mmvu", "videomme"], items=24, seed=0, skill=0.6)
    predictions = [
        replace(item, question=ATTACK, completion=f"<think>{ATTACK}</think><answer>{item.answer}</answer>")
        for items in load_run(first).predictions.values()
        for item in items
    ]
    run = write_run_folder(root / "run", root / "data", predictions)
    other = [replace(item, answer="B", scores=dict.fromkeys(item.scores, 0.0), failure=None) for item in predictions]
    return write_report(run, compare=write_run_folder(root / "other", root / "data", other)).html


@pytest.fixture
def page(browser, report) -> Iterator[playwright.Page]:
    """The loaded page; what it requested and complained about is in `page.requests` and `page.complaints`."""
    page = browser.new_page()
    page.requests, page.complaints = [], []
    page.on("request", lambda request: page.requests.append(request.url))
    page.on("console", lambda message: page.complaints.append(message.text))
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.goto(report.as_uri())
    yield page
    page.close()


def shown(page: playwright.Page, name: str) -> list[str]:
    """A data attribute of every card that can be seen."""
    cards = page.locator("article").filter(visible=True)
    return cards.evaluate_all("(cards, name) => cards.map((card) => card.dataset[name])", name)


def choose(page: playwright.Page, label: str, option: str) -> None:
    page.locator("#filter").get_by_label(label).select_option(option)


def test_page_loads_only_itself_and_without_a_complaint(page, report):
    assert [url for url in page.requests if not url.startswith("data:")] == [report.as_uri()]
    assert page.complaints == []
    assert page.locator("img").count() > 10
    assert page.evaluate("[...document.images].every((image) => image.complete && image.naturalWidth > 400)")


def test_a_script_in_a_question_is_text(page):
    assert page.locator(".question").first.text_content() == ATTACK
    assert page.evaluate("typeof window.attacked") == "undefined"


def test_the_policy_stops_scripts_that_are_not_ours(page):
    # As if markup of the data had slipped through.
    page.evaluate("document.body.insertAdjacentHTML('beforeend', `<img src='data:,' onerror='window.attacked=1'>`)")
    page.wait_for_timeout(200)
    assert page.evaluate("typeof window.attacked") == "undefined"
    assert any("Content Security Policy" in complaint for complaint in page.complaints)


def test_filter_by_outcome_benchmark_and_category(page):
    assert len(shown(page, "outcome")) == 24
    choose(page, "Outcome", "wrong")
    outcomes = shown(page, "outcome")
    assert set(outcomes) == {"wrong"} and 0 < len(outcomes) < 24
    assert page.get_by_role("status").text_content() == f"{len(outcomes)} of 24 examples"

    choose(page, "Benchmark", "Video-MME")
    assert set(shown(page, "benchmark")) == {"Video-MME"} and set(shown(page, "outcome")) == {"wrong"}

    choose(page, "Outcome", "all")
    choose(page, "Category", "duration: short")
    categories = shown(page, "categories")
    assert 0 < len(categories) < 12 and all("duration: short" in each.split("\n") for each in categories)

    # The other benchmark has no durations: its choice forgets the category instead of showing nothing.
    choose(page, "Benchmark", "MMVU")
    assert page.locator("#filter").get_by_label("Category").input_value() == ""
    assert shown(page, "benchmark") == ["MMVU"] * 12
    choose(page, "Benchmark", "all")
    assert len(shown(page, "outcome")) == 24


def test_filter_by_change_and_disagreement(page):
    choose(page, "Compared", "better than the other run")
    # The other run is wrong everywhere, so better is exactly what is right here.
    assert set(shown(page, "outcome")) == {"right"}
    choose(page, "Compared", "all")
    choose(page, "Scoring rules", "disagree")
    cards = shown(page, "rules")
    assert set(cards) == {"disagree"} and len(cards) < 24


def test_reasoning_opens_by_a_click(page):
    reasoning = page.locator(".reasoning").first
    assert not reasoning.is_visible()
    page.locator("summary").first.click()
    assert reasoning.is_visible() and reasoning.text_content() == ATTACK


def test_both_themes_differ_and_a_phone_needs_no_sideways_scrolling(page):
    page.set_viewport_size({"width": 390, "height": 800})
    colors = set()
    for theme in ("light", "dark"):
        page.emulate_media(color_scheme=theme)
        colors.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert len(colors) == 2
    # The score of the first benchmark stands within the window.
    box = page.locator("#scores td.number b").first.bounding_box()
    assert box["x"] + box["width"] <= 390


def test_without_scripts_all_is_there_but_the_filter(browser, report):
    page = browser.new_page(java_script_enabled=False)
    page.goto(report.as_uri())
    assert page.locator("article").count() == 24 and not page.locator("#filter").is_visible()
    page.close()
