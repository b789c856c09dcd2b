"""Whatever a model writes is parsed, in linear time, and scored within [0, 1]."""

from __future__ import annotations

import math
import re
import time

from hypothesis import Phase, assume, example, given, settings
from hypothesis import strategies as st

from datamodules.evaluation.benchmarks import BENCHMARKS
from rewards.accuracy import ACCURACY_FUNCTIONS, accuracy_reward
from rewards.answer_format import ANSWER_CLOSE, ANSWER_OPEN, THINK_CLOSE, THINK_OPEN, parse_response, wrap_answer
from rewards.errors import UserError
from rewards.evaluation.scoring import predicted_answer, score_item
from rewards.normalize import parse_number, without_emphasis, written_number
from rewards.options import chosen_letter, option_letters, split_option
from rewards.types import ProblemType
from tests.properties.strategies import ANSWERS, ANY_TEXT, FRAGMENTS, LETTERED, TAGS

PUBLISHED_FORMAT = re.compile(
    rf"{THINK_OPEN}.*?{THINK_CLOSE}\s*{ANSWER_OPEN}.*?{ANSWER_CLOSE}", re.DOTALL
)  # of the published reward; quadratic
GOLD = {
    "multiple choice": "B",
    "numerical": "1,200.5",
    "OCR": "EXIT 12",
    "free-form": "a red ball rolls",
    "regression": "-3.5",
}
LONG = 2**15
"""Characters of a long text; a pattern that takes quadratic time takes seconds."""
LIMIT = 0.5
"""Seconds of CPU time; linear code takes a hundredth of it."""


@given(st.lists(st.sampled_from([*TAGS, "x", " ", "\n"]), max_size=14).map("".join))
def test_format_is_that_of_the_published_pattern(text):
    assert parse_response(text).well_formed == (PUBLISHED_FORMAT.fullmatch(text) is not None)


@given(ANSWERS | ANY_TEXT)
def test_parts_are_parts_of_the_text(text):
    parsed = parse_response(text)
    assert (parsed.answer or "") in text and (parsed.think or "") in text
    assert not parsed.well_formed or None not in (parsed.answer, parsed.think)


@settings(phases=set(Phase) - {Phase.shrink})  # a slow case needs no smaller form
@given(st.lists(FRAGMENTS, min_size=1, max_size=3).map("".join), ANSWERS, ANSWERS)
@example("\n", "", "")
@example("</think><answer>", "<think>", "")
def test_long_texts_take_linear_time(unit, start, end):
    text = start + unit * (LONG // len(unit)) + end
    for read in (
        parse_response,
        written_number,
        chosen_letter,
        split_option,
        lambda text: chosen_letter(text, ["A. left", "B. right"]),
        lambda text: _letters(question=text),
        lambda text: accuracy_reward("multiple choice", text, "<answer>A</answer>", parsing="tolerant"),
        lambda text: accuracy_reward("numerical", text, "<answer>1</answer>", parsing="tolerant"),
    ):
        before = time.thread_time()
        read(text)
        assert time.thread_time() - before < LIMIT


@given(st.floats(-1e15, 1e15).map(lambda number: round(number, 3)), st.sampled_from(["{}", "**{}**", " `{}` ", "{}."]))
@example(0.3, "{}.")
@example(5.0, "**{}.**")
def test_written_numbers_are_read_back(number, form):
    assume("e" not in repr(number))
    assert written_number(form.format(repr(number))) == number
    assert written_number(form.format(f"{number:,.3f}")) == number


@given(ANSWERS | ANY_TEXT)
@example("0.3.")
def test_numbers_are_finite_and_nothing_else_is_one(text):
    for number in (parse_number(text), written_number(text)):
        assert number is None or math.isfinite(number)
    if written_number(text) is not None:
        assert re.search(r"\d", text) and not re.search(r"[^\d\s.,+\-eE*`]", text)


@given(ANSWERS | ANY_TEXT, st.just([]) | LETTERED)
def test_a_chosen_letter_is_one_of_the_options(text, options):
    letter = chosen_letter(text, options)
    assert letter is None or letter in without_emphasis(text).upper()
    labeled = [option for option in map(split_option, options) if option is not None and option.text]
    if options and len(labeled) == len(options):
        assert letter is None or letter in [option.letter for option in labeled]
        for option in labeled:
            if "*" not in option.text and "`" not in option.text:
                assert chosen_letter(f"{option.letter}. {option.text}", options) == option.letter


def _letters(question: str, options: tuple[str, ...] = ()) -> tuple[str, ...]:
    try:
        return option_letters(options, question, where="here")
    except UserError:
        return ()


@given(ANSWERS | ANY_TEXT, st.just([]) | LETTERED | st.lists(ANY_TEXT, max_size=3))
def test_letters_of_a_question_are_the_first_of_the_alphabet(question, options):
    letters = _letters(question, tuple(options))
    assert "".join(letters) == "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(letters)]


@given(ANSWERS | ANY_TEXT, st.sampled_from(sorted(GOLD)), st.just([]) | LETTERED)
@example("<answer>1e308</answer>", "regression", [])
@example("<answer>" + "y" * 5000 + "</answer>", "free-form", [])
def test_scores_lie_between_0_and_1_and_tolerance_never_costs(text, kind, options):
    for completion in (text, wrap_answer(text)):
        strict = accuracy_reward(kind, completion, wrap_answer(GOLD[kind]), options=options)
        tolerant = accuracy_reward(kind, completion, wrap_answer(GOLD[kind]), parsing="tolerant", options=options)
        assert 0 <= strict <= tolerant <= 1


@given(st.sampled_from(sorted(ACCURACY_FUNCTIONS)), ANSWERS)
def test_any_gold_answer_is_graded_or_refused(kind, gold):
    try:
        score = accuracy_reward(kind, wrap_answer(gold), wrap_answer(gold))
    except UserError:
        return
    assert 0 <= score <= 1


@given(
    st.sampled_from(sorted(BENCHMARKS)),
    st.sampled_from(sorted(GOLD)),
    st.sampled_from(["videorft", "official"]),
    ANSWERS | ANY_TEXT,
    st.data(),
)
def test_benchmark_scores_lie_between_0_and_1(name, kind, rule, completion, data):
    scoring = BENCHMARKS[name]
    categories = {}
    if scoring.task_means is not None:
        tasks = [task for tasks in scoring.task_means.means.values() for task in tasks]
        categories[scoring.task_means.field] = data.draw(st.sampled_from(tasks))
    try:
        score = score_item(
            scoring,
            rule,
            problem_type=ProblemType(kind),
            categories=categories,
            prediction=predicted_answer(completion),
            answer=GOLD[kind],
        )
    except UserError:
        return
    assert score is None or 0 <= score <= 1
