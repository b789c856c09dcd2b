"""The page in a real browser: it loads without a complaint, runs nothing of the data, and its filter filters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from lightning_modules.evaluation.report.run_folder import load_run
from lightning_modules.evaluation.report.write import write_report
from tests.lightning_modules.evaluation.report.headless_browser import PROGRAMS, Browser, find_browser
from tests.lightning_modules.evaluation.report.made_up_runs import write_made_up_run, write_run_folder
from tests.lightning_modules.evaluation.report.test_report_files import ATTACK

pytestmark = pytest.mark.skipif(find_browser() is None, reason=f"none of {', '.join(PROGRAMS)} is on PATH")

SHOWN = "[...document.querySelectorAll('article')].filter(card => card.checkVisibility())"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    root = tmp_path_factory.mktemp("browser")
    first = write_made_up_run(root / "first", root / "data", ["mmvu", "videomme"], items=24, seed=0, skill=0.6)
    predictions = [
        replace(item, question=ATTACK, completion=f"<think>{ATTACK}</think><answer>{item.answer}</answer>")
        for items in load_run(first).predictions.values()
        for item in items
    ]
    run = write_run_folder(root / "run", root / "data", predictions)
    other = [replace(item, answer="B", scores=dict.fromkeys(item.scores, 0.0), failure=None) for item in predictions]
    files = write_report(run, compare=write_run_folder(root / "other", root / "data", other))
    with Browser(find_browser(), root / "profile") as found:
        found.open(files.html.as_uri())
        yield found


def shown(browser: Browser, name: str) -> list[str]:
    return browser.evaluate(f"{SHOWN}.map(card => card.dataset.{name})")


def test_page_loads_without_an_error_and_runs_nothing_of_the_data(browser):
    assert browser.evaluate("typeof window.attacked") == "undefined"
    assert browser.evaluate("document.querySelector('.question').textContent") == ATTACK
    assert browser.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 400)")
    assert browser.evaluate("document.images.length") > 10
    assert browser.evaluate("document.querySelectorAll('svg.chart').length") == 2
    assert browser.messages == []


def test_the_policy_stops_scripts_that_are_not_ours(browser):
    # Markup that slipped through, played by a test.
    browser.evaluate(
        "document.body.insertAdjacentHTML('beforeend', '<img src=\"data:,\" onerror=\"window.attacked=1\">')"
    )
    browser.evaluate("new Promise(done => setTimeout(done, 200))")
    assert browser.evaluate("typeof window.attacked") == "undefined"
    assert any("Content Security Policy" in message for message in browser.messages)
    browser.evaluate("document.body.lastElementChild.remove()")
    browser.messages.clear()


def test_filter_by_outcome_benchmark_and_group(browser):
    assert len(shown(browser, "outcome")) == 24
    browser.click("input[name=outcome][value=wrong]")
    outcomes = shown(browser, "outcome")
    assert set(outcomes) == {"wrong"} and 0 < len(outcomes) < 24
    assert browser.evaluate("document.getElementById('shown').textContent") == f"{len(outcomes)} of 24 examples"

    browser.choose("select[name=benchmark]", "videomme")
    assert set(shown(browser, "benchmark")) == {"videomme"} and set(shown(browser, "outcome")) == {"wrong"}

    browser.click("input[name=outcome][value='']")
    browser.choose("select[name=group]", "duration/short")
    groups = shown(browser, "groups")
    assert groups and all("duration/short" in group.split("\n") for group in groups)
    assert len(groups) < 12

    # The other benchmark has no durations: its choice forgets the group instead of showing nothing.
    browser.choose("select[name=benchmark]", "mmvu")
    assert browser.evaluate("document.querySelector('select[name=group]').value") == ""
    assert len(shown(browser, "outcome")) == 12
    browser.choose("select[name=benchmark]", "")
    assert len(shown(browser, "outcome")) == 24


def test_filter_by_change_and_disagreement(browser):
    browser.choose("select[name=change]", "gained")
    # The other run is wrong everywhere, so better is exactly what is right here.
    assert set(shown(browser, "outcome")) == {"right"}
    browser.choose("select[name=change]", "")
    browser.click("input[name=disagree]")
    cards = shown(browser, "disagree")
    assert cards and set(cards) == {"yes"} and len(cards) < 24
    browser.click("input[name=disagree]")
    assert len(shown(browser, "outcome")) == 24


def test_reasoning_opens_by_a_click(browser):
    opened = "document.querySelector('details').open"
    assert browser.evaluate(opened) is False
    browser.click("details > summary")
    assert browser.evaluate(opened) is True
    assert browser.evaluate("document.querySelector('.reasoning').textContent") == ATTACK


def test_both_themes_differ_and_a_narrow_window_needs_no_sideways_scrolling(browser):
    colors = set()
    for theme in ("light", "dark"):
        browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])
        colors.add(browser.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert len(colors) == 2
    browser.call("Emulation.setDeviceMetricsOverride", width=390, height=800, deviceScaleFactor=1, mobile=True)
    assert browser.evaluate("document.documentElement.scrollWidth") == 390
    browser.call("Emulation.clearDeviceMetricsOverride")
    assert browser.messages == []
