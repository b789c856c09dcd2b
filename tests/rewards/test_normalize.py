import pytest

from rewards.normalize import option_letter, parse_number, written_number


@pytest.mark.parametrize(
    ("text", "number"),
    [("42", 42.0), ("-2", -2.0), ("1,200", 1200.0), ("1,234,567.5", 1234567.5), ("1e3", 1000.0), (".5", 0.5)],
)
def test_numbers_are_read(text, number):
    assert parse_number(text) == number


@pytest.mark.parametrize("text", ["", "five", "5 apples", "5%", "1/2", "1.2.3", "12:30", "nan", "inf", "-inf", "1e999"])
def test_anything_else_is_none(text):
    assert parse_number(text) is None


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1,200", 1200.0),
        ("-1,234,567.5", -1234567.5),
        ("1200", 1200.0),
        ("**5**", 5.0),
        ("`5`", 5.0),
        ("5.", 5.0),
        (".5", 0.5),
        ("+2", 2.0),
        (" 1e3 ", 1000.0),
    ],
)
def test_written_numbers_are_read(text, number):
    assert written_number(text) == number


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1,5",
        "12,00",
        "1,2000",
        ",5",
        "5 apples",
        "5 m",
        "5%",
        "$5",
        "1/2",
        "1-2",
        "2*3*4",
        "*3* 4",
        "five",
        "1_000",
        "nan",
        "inf",
        "1e999",
        "1 200",
        "x = 5",
        "5, 6",
    ],
)
def test_numbers_with_anything_else_are_none(text):
    assert written_number(text) is None


OPTIONS = ("A. left", "B. right", "C. p.m.", "D. Vitamin A or B")


@pytest.mark.parametrize("options", [(), OPTIONS], ids=["no options", "options"])
@pytest.mark.parametrize(
    "text",
    [
        "A",
        "a",
        " A ",
        "A.",
        "A)",
        "A:",
        "a.",
        "(A)",
        "(a)",
        "**A**",
        "*A*",
        "`A`",
        "**A.**",
        "**(A)**",
        "Option A",
        "option a",
        "OPTION (A)",
        "Option A.",
        "A. left",
        "a. Left",
        "(A) left",
        "A) left.",
        "A: left",
        "A.\nleft",
        "**A. left**",
        "**A**. left",
        "**A.** left",
        "Option A. left",
        "Option A: left",
    ],
)
def test_an_answer_that_names_one_option_gives_its_letter(text, options):
    assert option_letter(text, options) == "A"


@pytest.mark.parametrize("options", [(), OPTIONS], ids=["no options", "options"])
@pytest.mark.parametrize(
    "text",
    [
        "",
        "left",
        "A left",
        "a dog",
        "A - left",
        "AB",
        "A, B",
        "A B",
        "A/B",
        "A or B",
        "A and B",
        "A. B",
        "A. or B.",
        "A. left B. right",
        "A. left or (B) right",
        "A. wrong, it is B",
        "(A) (B)",
        "Option",
        "Option AB",
        "Options A",
        "The answer is A",
        "A is right",
        "A.M.",
        "A.left",
        "1",
        "1.",
        "Ä",
        "**A",
        "(A",
        "A]",
        "A. no, A",
    ],
)
def test_an_answer_that_names_none_or_more_than_one_gives_none(text, options):
    assert option_letter(text, options) is None


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("E", None),  # not listed
        ("A. right", None),  # the text is another option's
        ("A. left side", None),
        ("B. RIGHT.", "B"),
        ("C. p.m.", "C"),
        ("D. Vitamin A or B", "D"),  # letters of the option's own text are no ambiguity
    ],
)
def test_listed_options_decide_what_a_letter_and_its_text_may_be(text, letter):
    assert option_letter(text, OPTIONS) == letter


@pytest.mark.parametrize(
    ("text", "letter"), [("B. A dog runs", "B"), ("B. What I saw", "B"), ("B. a cat", "B"), ("E. 5 p.m.", "E")]
)
def test_without_options_words_of_one_letter_are_no_other_option(text, letter):
    assert option_letter(text) == letter
    assert option_letter(text, ("left", "right")) == letter  # options without letters say nothing about letters
