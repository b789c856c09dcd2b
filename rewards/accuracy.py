"""Is the answer right? One function per kind of question, as in the published VideoRFT rewards.

Each takes the text of the prediction ("" if the completion has no answer) and the text of the gold answer, both
without tags and surrounding whitespace, and returns a score in [0, 1]. Tolerant parsing, which the published rewards
do not have, accepts more spellings of option letters and numbers and never scores lower.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, get_args

from rewards.answer_format import parse_response, wrap_answer
from rewards.base import Reward
from rewards.errors import UserError, check_choice
from rewards.normalize import gold_number, parse_number, written_number
from rewards.options import chosen_letter
from rewards.types import ProblemType, RewardInput

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer

AnswerParsing = Literal["strict", "tolerant"]

ROUGE_VARIANTS = ("rouge1", "rouge2", "rougeL")


def multiple_choice_accuracy(prediction: str, gold: str) -> float:
    """1 if both texts are equal, including letter case and punctuation, else 0."""
    return float(prediction == gold)


def numerical_accuracy(prediction: str, gold: str) -> float:
    """1 if both numbers are equal when rounded to two decimals and both or neither contain "." or ",", else 0.

    Raises:
        UserError: the gold answer is not a number.
    """
    right = gold_number(gold)
    number = parse_number(prediction)
    if number is None or _has_separator(prediction) != _has_separator(gold):
        return 0.0
    return float(round(number, 2) == round(right, 2))


def ocr_accuracy(prediction: str, gold: str) -> float:
    """1 - word error rate, at least 0."""
    return max(0.0, 1.0 - word_error_rate(prediction, gold))


def free_form_accuracy(prediction: str, gold: str) -> float:
    """Mean F1 of ROUGE-1, ROUGE-2 and ROUGE-L; an exact answer of a single word scores 2/3."""
    return mean_rouge(prediction, gold)


def regression_accuracy(prediction: str, gold: str) -> float:
    """1 - relative error, at least 0. Against a gold answer of 0, 1 for exactly 0 and else 0.

    Raises:
        UserError: the gold answer is not a number.
    """
    right = gold_number(gold)
    number = parse_number(prediction)
    return 0.0 if number is None else _closeness(number, right)


def tolerant_multiple_choice_accuracy(prediction: str, gold: str, options: Sequence[str] = ()) -> float:
    """1 if both name the same option in a way that `chosen_letter` accepts, else 0."""
    letter = chosen_letter(prediction, options)
    return float(letter is not None and letter == chosen_letter(gold, options))


def tolerant_numerical_accuracy(prediction: str, gold: str, options: Sequence[str] = ()) -> float:
    """1 if both numbers are equal when rounded to two decimals, in any spelling that `written_number` accepts."""
    number = written_number(prediction)
    return float(number is not None and round(number, 2) == round(gold_number(gold), 2))


def tolerant_regression_accuracy(prediction: str, gold: str, options: Sequence[str] = ()) -> float:
    """`regression_accuracy`, in any spelling of the number that `written_number` accepts."""
    number = written_number(prediction)
    return 0.0 if number is None else _closeness(number, gold_number(gold))


ACCURACY_FUNCTIONS: Mapping[str, Callable[[str, str], float]] = {
    ProblemType.MULTIPLE_CHOICE: multiple_choice_accuracy,
    ProblemType.NUMERICAL: numerical_accuracy,
    ProblemType.OCR: ocr_accuracy,
    ProblemType.FREE_FORM: free_form_accuracy,
    ProblemType.REGRESSION: regression_accuracy,
}

TOLERANT_FUNCTIONS: Mapping[str, Callable[[str, str, Sequence[str]], float]] = {
    ProblemType.MULTIPLE_CHOICE: tolerant_multiple_choice_accuracy,
    ProblemType.NUMERICAL: tolerant_numerical_accuracy,
    ProblemType.REGRESSION: tolerant_regression_accuracy,
}
"""The kinds of question for which tolerant parsing accepts more; OCR and free-form answers have no other spelling."""


def accuracy_reward(
    problem_type: str | ProblemType,
    completion: str,
    solution: str,
    *,
    parsing: AnswerParsing = "strict",
    options: Sequence[str] = (),
) -> float:
    """Score one completion, in [0, 1].

    `accuracy_reward(problem_type, solution, solution)` scores the gold answer itself: a quick check of a record.

    Args:
        problem_type: one of `ProblemType`. Any other string scores 0, as in the published rewards; in training and in
            `check rewards` it cannot occur, because records and completion files refuse it.
        completion: the model's text; without a closed answer element the prediction is empty.
        solution: the gold answer with its tags.
        parsing: strict as published, or tolerant: the higher of the strict score and that of `TOLERANT_FUNCTIONS`.
        options: the record's answer options; tolerant parsing compares an answer such as "A. left" with them.

    Raises:
        UserError: the solution has no answer element, an empty one, or one that is not a number although the problem
            type needs a number.
    """
    accuracy_function = ACCURACY_FUNCTIONS.get(problem_type)
    if accuracy_function is None:
        return 0.0
    gold = parse_response(solution).answer
    if not gold:  # An empty gold answer would reward every completion that answers nothing.
        raise UserError(f"The solution {solution!r} has no answer; write it as {wrap_answer('...')}.")
    prediction = parse_response(completion).answer or ""
    score = accuracy_function(prediction, gold)
    if parsing == "tolerant" and problem_type in TOLERANT_FUNCTIONS:
        score = max(score, TOLERANT_FUNCTIONS[problem_type](prediction, gold, options))
    return score


class AccuracyReward(Reward):
    """Agreement of the answer with the solution, in [0, 1], by the rule of the question's problem type.

    Args:
        parsing: strict compares answers as the published code does: "A" is "A" and nothing else. tolerant also takes
            "a", "(A)", "A.", "A. left", "Option A" and "**A**" for "A", and "1,200" and "1200.0" for "1200".
        kwargs: weight, gate, name and problem_types, as for every `Reward`.

    Raises:
        UserError: parsing is unknown.
    """

    name = "accuracy"

    def __init__(self, parsing: AnswerParsing = "strict", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_choice(f"Reward {self.name!r}: parsing", parsing, get_args(AnswerParsing))
        self.parsing: AnswerParsing = parsing

    def score(self, group: RewardInput, raw: Mapping[str, Sequence[float]]) -> list[float]:
        return [
            accuracy_reward(group.problem_type, completion, group.solution, parsing=self.parsing, options=group.options)
            for completion in group.completions
        ]


def _closeness(number: float, right: float) -> float:
    if right == 0:
        return float(number == 0)
    return max(0.0, 1.0 - abs(number - right) / abs(right))


def _has_separator(text: str) -> bool:
    return "." in text or "," in text


def word_error_rate(prediction: str, reference: str) -> float:
    """Word-level edit distance divided by the number of reference words; above 1 for a much longer prediction.

    Words are split at whitespace and compared exactly, including letter case and punctuation.

    Raises:
        UserError: the reference has no words.
    """
    predicted_words, reference_words = prediction.split(), reference.split()
    if not reference_words:
        raise UserError(f"The word error rate against {reference!r} is undefined: the reference has no words.")
    return _edit_distance(predicted_words, reference_words) / len(reference_words)


def mean_rouge(prediction: str, reference: str) -> float:
    """Mean F1 of ROUGE-1, ROUGE-2 and ROUGE-L with Porter stemming, in [0, 1].

    Tokens are runs of [a-z0-9] in the lower-cased text. Text in another script therefore scores 0, and two equal texts
    of a single word score 2/3, because they have no bigram.
    """
    scores = _rouge_scorer().score(reference, prediction)
    return sum(scores[variant].fmeasure for variant in ROUGE_VARIANTS) / len(ROUGE_VARIANTS)


def _edit_distance(source: list[str], target: list[str]) -> int:
    """Fewest insertions, deletions and substitutions that turn `source` into `target` (Levenshtein, two rows)."""
    previous = list(range(len(target) + 1))
    for deletions, word in enumerate(source, start=1):
        current = [deletions]
        for column, target_word in enumerate(target, start=1):
            substitution = previous[column - 1] + (word != target_word)
            current.append(min(substitution, previous[column] + 1, current[-1] + 1))
        previous = current
    return previous[-1]


@cache
def _rouge_scorer() -> RougeScorer:
    # rouge_score imports nltk: a third of a second that only free-form questions should cost.
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(list(ROUGE_VARIANTS), use_stemmer=True)
