"""TempCompass (arXiv 2403.00476): four tasks on 410 videos about order, speed, direction and other things of time."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from string import ascii_uppercase

from datamodules.evaluation.benchmarks.annotation import checked_rows, lettered, video_record
from datamodules.evaluation.benchmarks.benchmark import Benchmark, Record, Row
from rewards.errors import UserError
from rewards.options import split_option
from rewards.types import ProblemType

_LETTER_FIRST = re.compile(r"[A-Z](?:[.)]|$)")
_CAPTION = re.compile(r"\A(?:Option|Caption|Sentence) (?:\d|[A-Z]): ")


def official_score(kind: ProblemType, task: str | None, prediction: str, answer: str) -> float | None:
    """TempCompass's matching rules without its language model (`--disable_llm`).

    The gold answer's spelling says which of the three applies. "yes" or "no": the prediction starts with it, letter
    case apart. "A" or "A. text": the prediction is it or its letter, or starts with the letter and "." or ")".
    "Caption A: text": the prediction is that, "Caption A" (full stops apart) or the text, which may follow a ") ".
    What no rule matches is 0 here; the authors ask a language model. Captioning is always graded by one and has no
    score here (problem type free-form).

    Raises:
        UserError: a gold answer of none of these spellings.
    """
    if answer.lower() in ("yes", "no"):
        return float(prediction.lower().startswith(answer.lower()))
    if kind is not ProblemType.MULTIPLE_CHOICE:
        return None
    if _LETTER_FIRST.match(answer):
        letter = answer[0]
        return float(prediction in (answer, letter) or prediction.startswith((f"{letter}.", f"{letter})")))
    index, colon, text = answer.partition(": ")
    if not colon:
        raise UserError(
            f"The gold answer {answer!r} is no letter, no yes or no, and no caption written 'Caption A: text'."
        )
    after_mark = prediction.split(") ")[1] if ") " in prediction else prediction
    return float(
        prediction in (answer, text) or after_mark == text or index in (prediction, prediction.replace(".", ""))
    )


def convert(
    questions: Mapping[str, Mapping[str, Sequence[Row]]], task: str, *, folder: str = "TempCompass/videos"
) -> Iterator[Record]:
    """Records of one task's JSON file: video id -> aspect -> list of {question, answer}.

    Yes and no, and the two captions of caption matching, become options with letters: as free text a right "no" would
    earn two thirds, for it has no pair of words to compare. The reference of captioning is the answer's text. The
    official scorer's question and answer are kept as `original_question` and `original_answer`.
    """
    for video, aspects in questions.items():
        for aspect, rows in aspects.items():
            for number, row in enumerate(checked_rows(f"TempCompass {task} {video} {aspect}", rows, "question answer")):
                yield video_record(
                    problem_id=f"{task}/{video}/{aspect}/{number}",
                    path=f"./{folder}/{video}.mp4",
                    data_source="TempCompass",
                    task=task,
                    aspect=aspect,
                    original_question=row["question"],
                    original_answer=row["answer"],
                    **_FORMS[task](row["question"], row["answer"]),
                )


def _multi_choice(question: str, answer: str) -> Record:
    problem, *options = (line.strip() for line in question.split("\n") if line.strip())
    chosen = split_option(answer)
    return _choice(problem, options, chosen.letter if chosen else answer)


def _yes_no(question: str, answer: str) -> Record:
    texts = ["yes", "no"]
    if answer not in texts:
        raise UserError(f"TempCompass yes_no: answer {answer!r} is neither 'yes' nor 'no'.")
    return _choice(question, texts, ascii_uppercase[texts.index(answer)])


def _caption_matching(question: str, answer: str) -> Record:
    problem, *captions = (line.strip() for line in question.split("\n") if line.strip())
    label = _CAPTION.match(answer)
    right = [number for number, caption in enumerate(captions) if label and caption.startswith(label[0])]
    if len(right) != 1:
        raise UserError(f"TempCompass caption matching: answer {answer!r} is none of {captions}, or several.")
    return _choice(problem, [_CAPTION.sub("", caption) for caption in captions], ascii_uppercase[right[0]])


def _choice(problem: str, texts: Sequence[str], answer: str) -> Record:
    kind = ProblemType.MULTIPLE_CHOICE
    return {"problem": problem, "options": lettered(texts), "answer": answer, "problem_type": kind}


def _captioning(question: str, answer: str) -> Record:
    chosen = split_option(answer)
    reference = chosen.text if chosen else answer
    return {"problem": question, "options": [], "answer": reference, "problem_type": ProblemType.FREE_FORM}


_FORMS: Mapping[str, Callable[[str, str], Record]] = {
    "multi-choice": _multi_choice,
    "yes_no": _yes_no,
    "caption_matching": _caption_matching,
    "captioning": _captioning,
}
"""Task -> what a record holds of a question and its answer."""


TEMPCOMPASS = Benchmark(
    name="tempcompass",
    title="TempCompass",
    items=7540,
    notes=(
        "Four tasks on 410 videos. The official score has a GPT model grade captioning, and answers of the other tasks "
        "that its rules cannot read."
    ),
    published={"VideoRFT-7B": 73.7, "Video-R1-7B": 73.2, "Qwen2.5-VL-7B": 69.2, "VideoRFT-3B": 61.0},
    official=official_score,
    breakdowns={
        "task": ("task", "task_type", "original_question_type", "question_type"),
        "aspect": ("aspect", "dim"),
    },
    convert=convert,
    parts=tuple(_FORMS),
)
