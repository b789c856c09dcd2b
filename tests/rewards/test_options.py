"""Option letters in the options of a record, in the lines of a question and in answers."""

import time

import pytest

from rewards.options import chosen_letter, option_letters, split_option


@pytest.mark.parametrize(
    ("option", "letter", "text"),
    [
        ("A. left", "A", "left"),
        ("A) left.", "A", "left."),
        ("B: left", "B", "left"),
        (" (C) left ", "C", "left"),
        ("D.left", "D", "left"),
        ("A. one\nor two", "A", "one\nor two"),
        ("A.", "A", ""),
    ],
)
def test_an_option_is_split_into_letter_and_text(option, letter, text):
    assert split_option(option) == (letter, text)


@pytest.mark.parametrize("option", ["left", "", "A left", "AB. left", "1. left", "a.m.", "a. left"])
def test_an_option_without_a_label_is_none(option):
    assert split_option(option) is None


@pytest.mark.parametrize(
    ("options", "question", "letters"),
    [
        (("A. red", "B. blue"), "Which?", "AB"),
        (("(A) red", "(B) blue", "(C) B. green"), "Which?", "ABC"),
        (("A: red", "B) blue."), "Which?", "AB"),
        ((), "Which?\nA. red\nB. blue\nC. green", "ABC"),
        ((), "Which caption?\nCaption A: A. Smith runs.\nCaption B: he walks.", "AB"),
        ((), "Who is B. Smith?\n  (A) one\n  (B) two", "AB"),
    ],
)
def test_letters_of_options_or_of_labeled_lines(options, question, letters):
    assert option_letters(options, question, where="eval.json:3") == tuple(letters)


@pytest.mark.parametrize(
    ("options", "question", "shown"),
    [
        ((), "Which?", "the lines of the question give the letters none"),
        ((), "A. what?", "letters A;"),
        (("red", "blue"), "Which?", "letters none;"),
        (("a. red", "b. blue"), "Which?", "letters none;"),
        (("A. red", "blue", "C. green"), "Which?", "letters A, C;"),
        (("A. red", "C. blue"), "Which?", "letters A, C;"),
        ((), "1. one\nB. two\nC. three", "letters B, C;"),
    ],
)
def test_questions_without_letters_are_refused(options, question, shown):
    with pytest.raises(ValueError, match=r"^eval\.json:3 \(problem_id 7\): .*Label them") as error:
        option_letters(options, question, where="eval.json:3 (problem_id 7)")
    assert shown in str(error.value)


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
    assert chosen_letter(text, options) == "A"


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
    assert chosen_letter(text, options) is None


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
    assert chosen_letter(text, OPTIONS) == letter


@pytest.mark.parametrize(
    ("text", "letter"), [("B. A dog runs", "B"), ("B. What I saw", "B"), ("B. a cat", "B"), ("E. 5 p.m.", "E")]
)
def test_without_options_words_of_one_letter_are_no_other_option(text, letter):
    assert chosen_letter(text) == letter
    assert chosen_letter(text, ("left", "right")) == letter  # options without letters say nothing about letters


def test_labels_without_texts_decide_nothing():
    assert chosen_letter("A. left", ("A.", "B.")) == "A"


def test_letters_of_a_long_question_take_linear_time():
    """A pattern that searches on across empty lines takes 7 s for these 16 KB."""
    question = "A. left\nB. right\n" + "\n" * 2**14 + "?"
    before = time.thread_time()
    assert option_letters((), question, where="record") == ("A", "B")
    assert time.thread_time() - before < 1
