"""The page and the README quote what was measured."""

import pytest

from tests.performance import performance_page


def test_the_page_is_made_of_the_results():
    assert performance_page.PAGE.read_text(encoding="utf-8") == performance_page.page()


def test_the_readme_quotes_the_results():
    readme = performance_page.README.read_text(encoding="utf-8")
    assert performance_page.with_table(readme) == readme


def test_a_readme_without_the_marks_is_refused():
    with pytest.raises(ValueError, match="once each"):
        performance_page.with_table("# VideoRFT")
