"""Score of one benchmark answer, under the rule of the paper's script or under the benchmark's own.

Protocol `videorft` is what the released evaluation script computes, the same for all six benchmarks. Protocol
`official` is the rule of each benchmark's authors as far as it needs no language model as a judge; every difference
from their code stands in the docstring of the rule. Neither ever draws a random option for an answer that cannot be
read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Literal, get_args

import numpy as np
import torch

from rewards.accuracy import multiple_choice_accuracy, numerical_accuracy, tolerant_numerical_accuracy
from rewards.answer_format import parse_response
from rewards.normalize import parse_number
from rewards.options import chosen_letter
from rewards.types import ProblemType

Protocol = Literal["videorft", "official"]

VSI_NUMERIC_TASKS = ("object_counting", "object_abs_distance", "object_size_estimation", "room_size_estimation")
VSI_DIRECTION_LEVELS = ("object_rel_direction_easy", "object_rel_direction_medium", "object_rel_direction_hard")
VSI_CHOICE_TASKS = ("object_rel_distance", *VSI_DIRECTION_LEVELS, "route_planning", "obj_appearance_order")

_LETTER_FIRST = re.compile(r"[A-Z](?:[.)]|$)")


class UngradedError(ValueError):
    """A kind of item that the protocol has no rule for; other items of the benchmark may well have one."""


def predicted_answer(completion: str) -> str:
    """The text that is scored: the first answer element, or the whole completion if there is none or an empty one.

    The fallback is the released script's; the RL rewards do not have it (there an answer without tags is no answer).
    """
    return parse_response(completion).answer or completion.strip()


def score_item(
    benchmark: str,
    protocol: Protocol,
    *,
    problem_type: str | ProblemType,
    question_type: str | None,
    prediction: str,
    answer: str,
) -> float:
    """Score one answered question, in [0, 1].

    An item that failed (media that do not decode, an engine error) has no prediction and must not come here: it is a
    row whose score is None, see `rewards.evaluation.metrics.aggregate`.

    Args:
        benchmark: a key of `OFFICIAL_RULES`.
        protocol: `videorft` (see `videorft_score`) or `official` (see the rule in `OFFICIAL_RULES`).
        problem_type: one of `ProblemType`.
        question_type: the record's `original_question_type`; only the official rule of VSI-Bench reads it.
        prediction: the text that `predicted_answer` gives; "" is a wrong answer.
        answer: the gold answer without its tags.

    Raises:
        ValueError: unknown benchmark, protocol, problem type or VSI-Bench question type; an empty gold answer, or one
            that is no number where the rule needs a number; a problem type that the official rule cannot grade.
    """
    check_benchmark(benchmark, protocol)
    kind = ProblemType(problem_type)
    if not answer.strip():
        raise ValueError(f"The gold answer of a {benchmark} item is empty; every prediction would be wrong.")
    if protocol == "videorft":
        return videorft_score(kind, prediction.strip(), answer.strip())
    return OFFICIAL_RULES[benchmark](kind, question_type, prediction.strip(), answer.strip())


def check_benchmark(benchmark: str, protocol: str) -> None:
    """Raise a ValueError that lists what is allowed if either name is unknown."""
    if benchmark not in OFFICIAL_RULES:
        raise ValueError(f"benchmark is {benchmark!r}; it must be one of {', '.join(map(repr, OFFICIAL_RULES))}.")
    if protocol not in get_args(Protocol):
        raise ValueError(f"protocol is {protocol!r}; it must be one of {', '.join(map(repr, get_args(Protocol)))}.")


def videorft_score(kind: ProblemType, prediction: str, answer: str) -> float:
    """The released script's `reward_fn`, for all benchmarks alike.

    Multiple choice: equal texts. Numerical: equal when rounded to two decimals, 0 if exactly one of the two contains
    "." or ",". Regression: `float32_mean_relative_accuracy`, thousands commas removed. OCR and free-form: 0, because
    the script has no rule for them. Unlike the script, a gold answer that is no number is an error and not a 0.
    """
    if kind is ProblemType.MULTIPLE_CHOICE:
        return multiple_choice_accuracy(prediction, answer)
    if kind is ProblemType.NUMERICAL:
        return numerical_accuracy(prediction, answer)
    if kind is ProblemType.REGRESSION:
        gold, number = _gold_number(parse_number(answer), answer), parse_number(prediction)
        return 0.0 if number is None else float32_mean_relative_accuracy(number, gold)
    return 0.0


def float32_mean_relative_accuracy(prediction: float, gold: float) -> float:
    """Share of theta in {0.50, 0.55, ..., 0.95} with |p - g| / (|g| + 1e-8) < 1 - theta, in float32 as released.

    Float32 decides ties: (3, 4) gives 0.5, while 5.25 against 5, an error of exactly 0.05, passes even theta = 0.95.
    """
    target = torch.tensor(gold, dtype=torch.float32)
    error = (torch.tensor(prediction, dtype=torch.float32) - target).abs() / (target.abs() + 1e-8)
    thresholds = torch.arange(0.5, 0.95 + 0.05 / 2, 0.05, dtype=torch.float32)
    return (error < 1 - thresholds).float().mean().item()


def mean_relative_accuracy(prediction: float, gold: float) -> float:
    """VSI-Bench (arXiv 2412.14171): share of theta in {0.50, 0.55, ..., 0.95} with |p - g| / g <= 1 - theta.

    In float64; (3, 4) gives 0.6. The error is divided by g itself, as in the authors' code, where a negative g would
    accept everything.

    Raises:
        ValueError: the gold number is not positive; lengths, areas and counts of the benchmark all are.
    """
    if gold <= 0:
        raise ValueError(f"The gold answer {gold:g} is not positive; its relative error is undefined.")
    error = abs(prediction - gold) / gold
    return float((error <= 1 - np.linspace(0.5, 0.95, 10)).mean())


def vsibench_official(kind: ProblemType, question_type: str | None, prediction: str, answer: str) -> float:
    """VSI-Bench's `vsibench_process_results`: the first word without full stops at its end, compared by question type.

    Choice tasks: equal to the gold letter, letter case apart ("B because" is B, "(B)" is nothing). Numeric tasks:
    `mean_relative_accuracy` of that word as a number, 0 if it is none; a comma makes it none ("1,200" scores 0).
    """
    word = prediction.split(" ")[0].rstrip(".").strip()
    if question_type in VSI_CHOICE_TASKS:
        return float(word.lower() == answer.lower())
    if question_type in VSI_NUMERIC_TASKS:
        gold, number = _gold_number(_plain_number(answer), answer), _plain_number(word)
        return 0.0 if number is None else mean_relative_accuracy(number, gold)
    raise unknown_vsi_task(question_type)


def unknown_vsi_task(question_type: str | None) -> ValueError:
    """The error of a question type that VSI-Bench does not have."""
    allowed = ", ".join(VSI_NUMERIC_TASKS + VSI_CHOICE_TASKS)
    return ValueError(
        f"original_question_type is {question_type!r}; the official VSI-Bench score needs one of {allowed}. "
        f"Add it to the record, or use protocol videorft."
    )


def videommmu_official(kind: ProblemType, question_type: str | None, prediction: str, answer: str) -> float:
    """VideoMMMU (arXiv 2501.13826): the option letter, or the number at two decimals.

    The authors use MMMU's parser on whole responses. Where that finds no letter it draws an option at random, and it
    looks for key phrases around numbers. Ours reads the answer alone with `rewards.normalize`: what names no option,
    or could name two, is wrong, and so is a number with words around it.
    """
    if kind is ProblemType.MULTIPLE_CHOICE:
        return _same_letter(chosen_letter(prediction), answer)
    if kind in (ProblemType.NUMERICAL, ProblemType.REGRESSION):
        return tolerant_numerical_accuracy(prediction, answer)
    raise _ungraded("VideoMMMU", kind)


def mmvu_exact_letter(kind: ProblemType, question_type: str | None, prediction: str, answer: str) -> float:
    """MMVU (arXiv 2501.12380) is graded by a GPT model, which no local rule reproduces: this is exact letter.

    It scores the multiple-choice items only, by equal texts, and `aggregate` names the result exact_letter_accuracy
    and never overall, so that it cannot be taken for the authors' number.
    """
    if kind is ProblemType.MULTIPLE_CHOICE:
        return multiple_choice_accuracy(prediction, answer)
    raise _ungraded("MMVU", kind)


def mvbench_official(kind: ProblemType, question_type: str | None, prediction: str, answer: str) -> float:
    """MVBench's `check_ans` (arXiv 2311.17005): the first word, in small letters and without full stops, against "(a)".

    Right is a piece of "(a)" that holds the letter ("a", "a)", "(a"), or a word that contains "(a)". The authors' code
    also accepts the pieces without a letter, "" and "(" and ")": an empty answer is right there and wrong here.
    """
    if kind is not ProblemType.MULTIPLE_CHOICE:
        raise _ungraded("MVBench", kind)
    word = prediction.lower().split(" ")[0]
    letter = answer.lower()
    marked = f"({letter})"
    piece = word.replace(".", "")
    return float((letter in piece and piece in marked) or marked in word)


def tempcompass_official(kind: ProblemType, question_type: str | None, prediction: str, answer: str) -> float:
    """TempCompass's matching rules without its language model (`--disable_llm`, arXiv 2403.00476).

    The gold answer's spelling says which of the three applies. "yes" or "no": the prediction starts with it, letter
    case apart. "A" or "A. text": the prediction is it or its letter, or starts with the letter and "." or ")".
    "Caption A: text": the prediction is that, "Caption A" (full stops apart) or the text, which may follow a ") ".
    What no rule matches is 0 here; the authors ask a language model. Captioning is always graded by one and is
    refused (problem type free-form).
    """
    if answer.lower() in ("yes", "no"):
        return float(prediction.lower().startswith(answer.lower()))
    if kind is not ProblemType.MULTIPLE_CHOICE:
        raise _ungraded("TempCompass", kind)
    if _LETTER_FIRST.match(answer):
        letter = answer[0]
        return float(prediction in (answer, letter) or prediction.startswith((f"{letter}.", f"{letter})")))
    index, colon, text = answer.partition(": ")
    if not colon:
        raise ValueError(
            f"The gold answer {answer!r} is no letter, no yes or no, and no caption written 'Caption A: text'."
        )
    after_mark = prediction.split(") ")[1] if ") " in prediction else prediction
    return float(
        prediction in (answer, text) or after_mark == text or index in (prediction, prediction.replace(".", ""))
    )


def videomme_official(kind: ProblemType, question_type: str | None, prediction: str, answer: str) -> float:
    """Video-MME (arXiv 2405.21075): the first capital A, B, C or D anywhere in the prediction is the answer.

    The phrases that the authors' code removes first ("The best answer is") hold no such capital, so they change
    nothing; "Best answer: C" reads as B there and here. Their code leaves an answer without such a capital out of the
    denominator; here it is wrong.
    """
    if kind is not ProblemType.MULTIPLE_CHOICE:
        raise _ungraded("Video-MME", kind)
    match = re.search("[ABCD]", prediction)
    return _same_letter(match[0] if match else None, answer)


OFFICIAL_RULES: Mapping[str, Callable[[ProblemType, str | None, str, str], float]] = {
    "vsibench": vsibench_official,
    "videommmu": videommmu_official,
    "mmvu": mmvu_exact_letter,
    "mvbench": mvbench_official,
    "tempcompass": tempcompass_official,
    "videomme": videomme_official,
}
"""Benchmark -> rule of protocol `official`: (problem type, question type, prediction, gold answer) -> [0, 1]."""


def _plain_number(text: str) -> float | None:
    return None if "," in text else parse_number(text)


def _gold_number(number: float | None, text: str) -> float:
    if number is None:
        raise ValueError(f"The gold answer {text!r} is not a number; write digits only, or mend the problem type.")
    return number


def _same_letter(letter: str | None, answer: str) -> float:
    return float(letter is not None and letter == answer.upper())


def _ungraded(name: str, kind: ProblemType) -> UngradedError:
    return UngradedError(
        f"problem_type is {str(kind)!r}; {name}'s authors grade it with a language model or not at all, and there is "
        f"no official rule for it here. Leave these records out, or use protocol videorft."
    )
