"""Is the answer right? One function per kind of question, as in the published VideoRFT rewards.

Each takes the text of the prediction ("" if the completion has no answer) and the text of the gold answer, both
without tags and surrounding whitespace, and returns a score in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from rewards.answer_format import parse_response, wrap_answer
from rewards.base import Reward
from rewards.normalize import parse_number
from rewards.text_similarity import mean_rouge, word_error_rate
from rewards.types import ProblemType, RewardInput


def multiple_choice_accuracy(prediction: str, gold: str) -> float:
    """1 if both texts are equal, letter case and punctuation included, else 0."""
    return float(prediction == gold)


def numerical_accuracy(prediction: str, gold: str) -> float:
    """1 if both numbers are equal when rounded to two decimals and both or neither contain "." or ",", else 0.

    Raises:
        ValueError: the gold answer is not a number.
    """
    gold_number = _gold_number(gold)
    number = parse_number(prediction)
    if number is None or _has_separator(prediction) != _has_separator(gold):
        return 0.0
    return float(round(number, 2) == round(gold_number, 2))


def ocr_accuracy(prediction: str, gold: str) -> float:
    """1 - word error rate, at least 0."""
    return max(0.0, 1.0 - word_error_rate(prediction, gold))


def free_form_accuracy(prediction: str, gold: str) -> float:
    """Mean F1 of ROUGE-1, ROUGE-2 and ROUGE-L; an exact answer of a single word scores 2/3."""
    return mean_rouge(prediction, gold)


def regression_accuracy(prediction: str, gold: str) -> float:
    """1 - relative error, at least 0. Against a gold answer of 0, 1 for exactly 0 and else 0.

    Raises:
        ValueError: the gold answer is not a number.
    """
    gold_number = _gold_number(gold)
    number = parse_number(prediction)
    if number is None:
        return 0.0
    if gold_number == 0:
        return float(number == 0)
    return max(0.0, 1.0 - abs(number - gold_number) / abs(gold_number))


ACCURACY_FUNCTIONS: Mapping[str, Callable[[str, str], float]] = {
    ProblemType.MULTIPLE_CHOICE: multiple_choice_accuracy,
    ProblemType.NUMERICAL: numerical_accuracy,
    ProblemType.OCR: ocr_accuracy,
    ProblemType.FREE_FORM: free_form_accuracy,
    ProblemType.REGRESSION: regression_accuracy,
}


def accuracy_reward(problem_type: str | ProblemType, completion: str, solution: str) -> float:
    """Score one completion, in [0, 1].

    `accuracy_reward(problem_type, solution, solution)` is what the gold answer itself gets: a quick check of a record.

    Args:
        problem_type: one of `ProblemType`. Any other string scores 0, as in the published rewards; training and
            `check rewards` never get here with one, because records and completion files refuse it.
        completion: the model's text; without a closed answer element the prediction is empty.
        solution: the gold answer with its tags.

    Raises:
        ValueError: the solution has no answer element, an empty one, or one that is no number where the problem type
            needs a number.
    """
    accuracy_function = ACCURACY_FUNCTIONS.get(problem_type)
    if accuracy_function is None:
        return 0.0
    gold = parse_response(solution).answer
    if not gold:  # An empty gold answer would reward every completion that answers nothing.
        raise ValueError(f"The solution {solution!r} has no answer; write it as {wrap_answer('...')}.")
    return accuracy_function(parse_response(completion).answer or "", gold)


class AccuracyReward(Reward):
    """Agreement of the answer with the solution, in [0, 1], by the rule of the question's problem type."""

    name = "accuracy"

    def score(self, group: RewardInput, raw: Mapping[str, Sequence[float]]) -> list[float]:
        return [accuracy_reward(group.problem_type, completion, group.solution) for completion in group.completions]


def _gold_number(gold: str) -> float:
    number = parse_number(gold)
    if number is None:
        raise ValueError(f"The gold answer {gold!r} is not a number; write digits only, or mend the problem type.")
    return number


def _has_separator(text: str) -> bool:
    return "." in text or "," in text
