"""Word error rate and ROUGE: how close a predicted text is to the gold text."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from rewards.errors import UserError

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer

ROUGE_VARIANTS = ("rouge1", "rouge2", "rougeL")


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
