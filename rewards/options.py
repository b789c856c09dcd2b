"""Letters of multiple-choice options: in the options of a record, in the lines of a question and in an answer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from string import ascii_uppercase
from typing import NamedTuple

from rewards.errors import UserError
from rewards.normalize import without_emphasis

_LABEL = r"\(?([A-Z])[.):]"
_OPTION = re.compile(rf"\s*{_LABEL}(.*)", re.DOTALL)
# Whitespace without line feeds: across empty lines, each of them would be searched to the end of all.
_LABELED_LINE = re.compile(rf"^[^\S\n]*(?:(?:Option|Caption|Sentence) )?{_LABEL}(?=\s)", re.MULTILINE)
_ANSWER = re.compile(
    r"(?:option\s+)?(?:(?P<bare>[a-z])|\((?P<round>[a-z])\)|(?P<marked>[a-z])[.):])(?:\s+(?P<text>.+))?",
    re.IGNORECASE | re.DOTALL,
)
_OTHER_LETTER = re.compile(
    r"(?<![\w.])(?:[A-Za-z][.):](?!\w)|[A-Za-z]$|[B-HJ-Z](?![\w'-])|A(?![\w'-]|\s+[a-z]))"  # I and "A dog" are words
)


class Option(NamedTuple):
    """An option taken apart: "A. left" is the letter "A" and the text "left"."""

    letter: str
    text: str


def split_option(option: str) -> Option | None:
    """Letter and text of an option: "A. left", "A) left", "A: left" or "(A) left"; None if it has no label.

    The letter is a capital, so "a.m." has no label.
    """
    match = _OPTION.match(option)
    return Option(match[1], match[2].strip()) if match else None


def option_letters(options: Sequence[str], question: str, *, where: str) -> tuple[str, ...]:
    """The letters that a question offers: those of its options or, if none are listed, of its labeled lines.

    Args:
        options: the options as listed in the record.
        question: the text of the question, whose lines may hold the options ("A. left", "Caption A: left").
        where: file, line and record, for the error message.

    Raises:
        UserError: fewer than two options, an option without a letter, or letters other than A, B, C and so on.
    """
    if options:
        letters = tuple(option.letter for option in map(split_option, options) if option)
        source = f"options {list(options)!r}"
    else:
        letters = tuple(_LABELED_LINE.findall(question))
        source = "the lines of the question"
    if len(letters) < max(2, len(options)) or "".join(letters) != ascii_uppercase[: len(letters)]:
        raise UserError(
            f"{where}: {source} give the letters {', '.join(letters) or 'none'}; scoring options needs at least "
            "two, labeled A., B., C. and so on. Label them in the record, or generate answers instead."
        )
    return letters


def chosen_letter(answer: str, options: Sequence[str] = ()) -> str | None:
    """The one option that an answer names, as a capital letter; None if it names none or could mean several.

    Accepted are the letter in either case, alone ("A", "a") or marked as one ("A.", "A)", "A:", "(A)"), the marked
    letter before an option's text ("A. left", "(A) left"), each of them after the word "Option", and all of it in
    Markdown emphasis ("**A**", "**A**. left"). Refused are a bare letter before a text ("A left", "a dog"), a text
    without a letter, two letters ("A or B", "A. left B. right") and sentences.

    Args:
        answer: the answer without its tags.
        options: the options as listed in the record. If all of them have a label and a text, the letter must be one of
            theirs, and a text after it must be that option's, letter case and a full stop at the end ignored.
            Otherwise any letter is accepted, and any text that contains no other letter by itself.
    """
    match = _ANSWER.fullmatch(without_emphasis(answer))
    if match is None or (match["bare"] and match["text"]):
        return None
    letter = (match["bare"] or match["round"] or match["marked"]).upper()
    texts = _texts_by_letter(options)
    if texts and letter not in texts:
        return None
    if match["text"] is None:
        return letter
    if texts:
        return letter if _plain(match["text"]) == texts[letter] else None
    return None if _OTHER_LETTER.search(match["text"]) else letter


def _texts_by_letter(options: Sequence[str]) -> dict[str, str]:
    """Letter -> plain text; empty unless every option has both."""
    whole = [option for option in map(split_option, options) if option and option.text]
    return {option.letter: _plain(option.text) for option in whole} if len(whole) == len(options) else {}


def _plain(text: str) -> str:
    return " ".join(text.split()).rstrip(".").casefold()
