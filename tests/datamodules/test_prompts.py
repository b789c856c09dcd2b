from __future__ import annotations

from pathlib import Path

import jsonargparse
import pytest
import yaml

from datamodules.prompts import DEFAULT_INSTRUCTION, DEFAULT_TYPE_SENTENCES, PromptTemplate
from datamodules.types import VideoRecord
from rewards.answer_format import parse_response
from rewards.types import ProblemType

DEMO = {
    "question": " {problem}{options}",
    "options_prefix": " ",
    "option_separator": " ",
    "instruction": "",
    "type_sentences": {},
    "target_separator": "",
}


def record(**changes: object) -> VideoRecord:
    values = {
        "problem_id": "7",
        "problem": "Which color appears first?",
        "data_type": "video",
        "problem_type": ProblemType.MULTIPLE_CHOICE,
        "solution": "<answer>A</answer>",
        "process": "<think>Red comes first.</think>",
        "options": ("A. red", "B. green"),
        "path": "7.mp4",
        "file": Path("data.jsonl"),
        "line": 3,
    }
    return VideoRecord(**{**values, **changes})


def test_the_default_prompt_is_question_options_instruction_and_sentence():
    assert PromptTemplate().user_text(record()) == (
        "Which color appears first?\nA. red\nB. green\n"
        f"{DEFAULT_INSTRUCTION}\n"
        "The final answer is the letter of the right option alone."
    )


def test_the_default_instruction_names_the_tags_that_are_read():
    for tag in ("<think>", "</think>", "<answer>", "</answer>"):
        assert DEFAULT_INSTRUCTION.count(tag) == 1
    assert set(DEFAULT_TYPE_SENTENCES) == set(ProblemType)


def test_the_question_text_is_the_prompt_without_instruction():
    assert PromptTemplate().question_text(record()) == "Which color appears first?\nA. red\nB. green"
    assert PromptTemplate().question_text(record(options=())) == "Which color appears first?"


@pytest.mark.parametrize(
    "problem",
    ["Which comes first?\nA. red\nB. green", "Which comes first? Options:\nA.  red\n B. green\nAnswer with a letter."],
)
def test_options_in_the_problem_are_not_repeated(problem):
    assert PromptTemplate(instruction="", type_sentences={}).user_text(record(problem=problem)) == problem


@pytest.mark.parametrize("problem", ["Which?\nA. red", "Which?\nA. red\nB. greenish", "Is it red or green?"])
def test_options_of_which_only_a_part_stands_in_the_problem_are_listed(problem):
    text = PromptTemplate(instruction="", type_sentences={}).user_text(record(problem=problem))
    assert text == f"{problem}\nA. red\nB. green"


def test_braces_in_a_problem_mean_themselves():
    assert PromptTemplate(question="Q: {problem} {{x}}").question_text(record(problem="f{a}?", options=())) == (
        "Q: f{a}? {x}"
    )


def test_messages_hold_media_then_text():
    template = PromptTemplate(**DEMO)
    text = {"type": "text", "text": " Which color appears first? A. red B. green"}
    assert template.messages(record()) == [{"role": "user", "content": [{"type": "video"}, text]}]
    assert template.messages(record(data_type="image")) == [{"role": "user", "content": [{"type": "image"}, text]}]
    assert template.messages(record(data_type="text", path=None)) == [{"role": "user", "content": [text]}]


@pytest.mark.parametrize("system", ["You watch closely.", ""])
def test_a_system_prompt_comes_first(system):
    messages = PromptTemplate(system=system).messages(record())
    assert messages[0] == {"role": "system", "content": [{"type": "text", "text": system}]}
    assert [message["role"] for message in messages] == ["system", "user"]


def test_a_target_is_well_formed_and_needs_a_process():
    assert PromptTemplate().target(record()) == "<think>Red comes first.</think>\n<answer>A</answer>"
    assert parse_response(PromptTemplate().target(record())).well_formed
    assert PromptTemplate(**DEMO).target(record()) == "<think>Red comes first.</think><answer>A</answer>"
    with pytest.raises(ValueError, match=r"data.jsonl:3 \(problem_id 7\): the record has no `process`"):
        PromptTemplate().target(record(process=None))


def test_a_given_mapping_replaces_the_sentences():
    template = PromptTemplate(instruction="Answer.", type_sentences={"OCR": "Copy the text."})
    assert template.user_text(record(problem_type=ProblemType.OCR, options=())).endswith("?\nAnswer.\nCopy the text.")
    assert template.user_text(record(options=())).endswith("?\nAnswer.")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"question": "{problem} {hint}"}, r"has the unknown field \{hint\}; allowed fields are \{problem\} and"),
        ({"question": "{problem.upper}"}, r"has the unknown field \{problem.upper\}"),
        ({"question": "{problem} {}"}, r"has the unknown field \{\}"),
        ({"question": "{options}"}, r"lacks \{problem\}"),
        ({"question": "{problem} {"}, "is not a format string"),
        ({"question": "{problem!r}"}, "formats a field"),
        ({"question": "{problem:>9}"}, "formats a field"),
        ({"type_sentences": {"ocr": "Copy."}}, "names 'ocr'; problem types are 'multiple choice', 'numerical', 'OCR'"),
    ],
)
def test_a_wrong_template_is_refused_with_what_is_allowed(arguments, message):
    with pytest.raises(ValueError, match=message):
        PromptTemplate(**arguments)


def test_options_without_a_place_are_refused_not_dropped():
    template = PromptTemplate(question="{problem}")
    with pytest.raises(ValueError, match=r"data.jsonl:3 \(problem_id 7\): .* Put \{options\} into it"):
        template.user_text(record())
    assert template.question_text(record(options=())) == "Which color appears first?"


def test_the_template_is_configured_from_yaml():
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--prompt", type=PromptTemplate)
    config = yaml.safe_dump({"prompt": {"class_path": "datamodules.prompts.PromptTemplate", "init_args": DEMO}})
    template = parser.instantiate_classes(parser.parse_string(config)).prompt
    assert template.user_text(record()) == " Which color appears first? A. red B. green"
    counted = record(problem_type=ProblemType.NUMERICAL, options=(), problem="How many?")
    assert template.user_text(counted) == " How many?"
