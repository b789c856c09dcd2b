"""The words around a question, for fine-tuning, sampling and evaluation alike; nothing else in the project has any.

A prompt is the media, then the question (options on lines of their own), then the instruction to reason and answer
inside tags, then a sentence for the problem type. The wording is our own and can be replaced in the configuration.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from string import Formatter
from typing import TYPE_CHECKING, Any

from datamodules.types import VideoRecord
from rewards.answer_format import ANSWER_CLOSE, ANSWER_OPEN, THINK_CLOSE, THINK_OPEN
from rewards.errors import UserError
from rewards.types import ProblemType

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DEFAULT_INSTRUCTION = (
    "Think it through step by step before you answer, and look back at what you see where that helps. "
    f"Write your reasoning between {THINK_OPEN} and {THINK_CLOSE}, then your final answer, and nothing else, "
    f"between {ANSWER_OPEN} and {ANSWER_CLOSE}."
)
DEFAULT_TYPE_SENTENCES: Mapping[str, str] = {
    ProblemType.MULTIPLE_CHOICE: "The final answer is the letter of the right option alone.",
    ProblemType.NUMERICAL: "The final answer is a number in digits, without a unit.",
    ProblemType.OCR: "The final answer is the text that can be read there, copied exactly.",
    ProblemType.FREE_FORM: "The final answer is a short text in your own words.",
    ProblemType.REGRESSION: "The final answer is your best estimate as a single number in digits, without a unit.",
}
QUESTION_FIELDS = ("problem", "options")


class PromptTemplate:
    """Turns a record into the messages of a chat template and the text to be learned.

    Args:
        system: system message, the same in fine-tuning, RL and evaluation. None sends none (the chat template may
            then put in its own); an empty string sends an empty one.
        question: the question, with the fields `{problem}` and `{options}`; literal braces are doubled.
        options_prefix: written before the options where a record lists any.
        option_separator: written between the options.
        instruction: how to reason and answer; empty for none.
        type_sentences: problem type -> closing sentence. None takes the default sentences; where a mapping is given, a
            type that it lacks gets no sentence.
        separator: written between question, instruction and sentence.
        target_separator: written between the chain of thought and the answer of a fine-tuning target.

    Raises:
        UserError: `question` has another field, lacks `{problem}` or is not a format string, or a key of
            `type_sentences` is not a problem type.
    """

    def __init__(
        self,
        system: str | None = None,
        question: str = "{problem}{options}",
        options_prefix: str = "\n",
        option_separator: str = "\n",
        instruction: str = DEFAULT_INSTRUCTION,
        type_sentences: dict[str, str] | None = None,
        separator: str = "\n",
        target_separator: str = "\n",
    ) -> None:
        self._fields = _checked_fields(question)
        self.system = system
        self.question = question
        self.options_prefix = options_prefix
        self.option_separator = option_separator
        self.instruction = instruction
        self.type_sentences = dict(DEFAULT_TYPE_SENTENCES if type_sentences is None else type_sentences)
        self.separator = separator
        self.target_separator = target_separator
        _check_types(self.type_sentences)

    def settings(self) -> dict[str, Any]:
        """The arguments that make this template, as plain JSON."""
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    def question_text(self, record: VideoRecord) -> str:
        """The question with its options, without instruction and sentence.

        Options that stand in the problem already, as in the published VideoRFT files, are not repeated.

        Raises:
            UserError: the record lists options that its problem lacks, and the template has no place for them.
        """
        listed = bool(record.options) and not _contains_options(record.problem, record.options)
        if listed and "options" not in self._fields:
            raise UserError(
                f"{record.where}: the record lists options, for which the prompt template's question "
                f"({self.question!r}) has no place. Put {{options}} into it."
            )
        options = self.options_prefix + self.option_separator.join(record.options) if listed else ""
        return self.question.format(problem=record.problem, options=options)

    def user_text(self, record: VideoRecord) -> str:
        """Everything that the user says after the media."""
        parts = (self.question_text(record), self.instruction, self.type_sentences.get(record.problem_type, ""))
        return self.separator.join(part for part in parts if part)

    def messages(self, record: VideoRecord) -> list[dict[str, Any]]:
        """The prompt for `apply_chat_template`: the system message if there is one, then media and user text.

        Media items carry no path: frames are read and encoded by us, the template only places the token.
        """
        media = [] if record.data_type == "text" else [{"type": record.data_type}]
        user = {"role": "user", "content": [*media, _text_item(self.user_text(record))]}
        if self.system is None:
            return [user]
        return [{"role": "system", "content": [_text_item(self.system)]}, user]

    def text(self, record: VideoRecord, tokenizer: PreTrainedTokenizerBase) -> str:
        """The prompt in the tokenizer's chat template, generation marker included, one token for the media."""
        text = tokenizer.apply_chat_template(self.messages(record), tokenize=False, add_generation_prompt=True)
        assert isinstance(text, str)
        return text

    def target(self, record: VideoRecord) -> str:
        """What fine-tuning teaches: chain of thought and answer, with their tags.

        Raises:
            UserError: the record has no chain of thought.
        """
        if record.process is None:
            raise UserError(
                f"{record.where}: the record has no `process`, the chain of thought that fine-tuning teaches. "
                "Use a file with chains of thought, or leave the record out."
            )
        return record.process + self.target_separator + record.solution


def _text_item(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def _contains_options(problem: str, options: tuple[str, ...]) -> bool:
    """Every option stands in the problem as words of its own, however the two are wrapped into lines."""
    text = " ".join(problem.split())
    return all(re.search(rf"(?<!\w){re.escape(' '.join(option.split()))}(?!\w)", text) for option in options)


def _checked_fields(question: str) -> frozenset[str]:
    try:
        parsed = [(name, spec, conversion) for _, name, spec, conversion in Formatter().parse(question)]
    except ValueError as error:
        fault = f"is not a format string ({error})"
    else:
        fields = frozenset(name for name, _, _ in parsed if name is not None)
        if unknown := sorted(fields.difference(QUESTION_FIELDS)):
            fault = "has the unknown field " + ", ".join(f"{{{name}}}" for name in unknown)
        elif any(spec or conversion for _, spec, conversion in parsed):
            fault = "formats a field"
        elif "problem" not in fields:
            fault = "lacks {problem}"
        else:
            return fields
    raise UserError(
        f"The prompt template's question {question!r} {fault}; allowed fields are {{problem}} and {{options}}, "
        "{problem} is needed, and a literal brace is doubled."
    )


def _check_types(type_sentences: Mapping[str, str]) -> None:
    allowed = [item.value for item in ProblemType]
    unknown = [name for name in type_sentences if name not in allowed]
    if unknown:
        raise UserError(
            f"The prompt template's type_sentences names {', '.join(map(repr, unknown))}; "
            f"problem types are {', '.join(map(repr, allowed))}."
        )
