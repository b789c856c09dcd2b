"""The letters that a multiple-choice question offers, wherever its options stand."""

from __future__ import annotations

import re
from string import ascii_uppercase

from datamodules.types import VideoRecord

_LABEL = re.compile(r"\s*\(?([A-Z])[.):]")
_LABELED_LINE = re.compile(r"^\s*(?:(?:Option|Caption|Sentence) )?\(?([A-Z])[.):](?=\s)", re.MULTILINE)


def option_letters(record: VideoRecord) -> tuple[str, ...]:
    """Letters of the record's `options`, or, where it lists none, of the labeled lines of its question.

    Raises:
        ValueError: no options, an option without a letter, or letters that are not A, B, C and so on.
    """
    if record.options:
        matches = [_LABEL.match(option) for option in record.options]
        letters = tuple(match[1] for match in matches if match)
        source = f"options {list(record.options)!r}"
    else:
        matches = letters = tuple(_LABELED_LINE.findall(record.problem))
        source = "the lines of the question"
    if len(letters) < 2 or len(letters) < len(matches) or "".join(letters) != ascii_uppercase[: len(letters)]:
        raise ValueError(
            f"{record.where}: {source} give the letters {', '.join(letters) or 'none'}; scoring options needs at least "
            "two, labeled A., B., C. and so on. Label them in the record, or generate answers instead."
        )
    return letters
