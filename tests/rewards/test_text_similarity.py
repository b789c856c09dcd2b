import random

import pytest
from nltk import edit_distance

from rewards.accuracy import mean_rouge, word_error_rate


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        ("hello world", "hello world", 0.0),
        ("hello", "hello world", 1 / 2),  # one insertion for two reference words
        ("hello big world", "hello world", 1 / 2),  # one deletion
        ("one two three", "one 2 three", 1 / 3),  # one substitution
        ("b c d", "a b c d e", 2 / 5),  # two insertions, shifted by one
        ("a b c d", "x", 4.0),  # one substitution, three deletions, one reference word: above 1
        ("", "a b", 1.0),
        ("Hello", "hello", 1.0),  # exact comparison
        ("hello \n world", "hello world", 0.0),  # any whitespace separates
    ],
)
def test_word_error_rate(prediction, reference, expected):
    assert word_error_rate(prediction, reference) == pytest.approx(expected, abs=1e-12)


def test_word_error_rate_agrees_with_nltk_on_random_texts():
    generator = random.Random(0)
    for _ in range(100):
        prediction, reference = (generator.choices("abcd", k=generator.randint(1, 12)) for _ in range(2))
        expected = edit_distance(prediction, reference) / len(reference)
        assert word_error_rate(" ".join(prediction), " ".join(reference)) == pytest.approx(expected)


@pytest.mark.parametrize("reference", ["", " \n"])
def test_word_error_rate_needs_reference_words(reference):
    with pytest.raises(ValueError, match="no words"):
        word_error_rate("hello", reference)


def test_mean_rouge_by_hand():
    # Stems: a man run down the street (6); a man is run down the street (7).
    # ROUGE-1: 6 common, P = 6/6, R = 6/7, F = 12/13. ROUGE-L: common subsequence of 6, the same F.
    # ROUGE-2: a-man, run-down, down-the, the-street are common, P = 4/5, R = 4/6, F = 8/11.
    expected = (12 / 13 + 8 / 11 + 12 / 13) / 3
    score = mean_rouge("a man runs down the street", "a man is running down the street")
    assert score == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        ("The Red Car, turning left.", "the red car turns left", 1.0),  # case, punctuation and endings do not count
        ("cat", "cat", 2 / 3),  # one word has no bigram: (1 + 0 + 1) / 3
        ("dog", "cat", 0.0),
        ("", "cat", 0.0),
        ("红色", "红色", 0.0),  # only a-z and 0-9 make tokens
    ],
)
def test_mean_rouge_limits(prediction, reference, expected):
    assert mean_rouge(prediction, reference) == pytest.approx(expected, abs=1e-12)
