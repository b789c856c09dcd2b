"""From each benchmark's own annotation to records: rows in, dictionaries of the record schema out.

Options get letters, answers become `<answer>...</answer>`, paths are relative to the data root. Fields that scores are
broken down by, and those that only the official scorer reads, are kept under their own names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from string import ascii_uppercase
from typing import Any, Literal

from datamodules.evaluation.layouts import MVBENCH_TASKS, VIDEOMMMU_DISCIPLINES, VSIBENCH_CHOICE, VSIBENCH_NUMERIC
from rewards.answer_format import wrap_answer
from rewards.types import ProblemType

Row = Mapping[str, Any]

TempCompassTask = Literal["multi-choice", "yes_no", "caption_matching", "captioning"]

VideoMMMUTrack = Literal["Perception", "Comprehension", "Adaptation"]
ADAPTATION_HINT = "The picture that the question speaks of is shown at the end of the video."

_LABEL = re.compile(r"\A([A-Z])\s*[.):]\s*")
_CAPTION = re.compile(r"\A(?:Option|Caption|Sentence) (?:\d|[A-Z]): ")


def convert_vsibench(rows: Iterable[Row], *, folder: str = "VSI-Bench") -> Iterator[dict[str, Any]]:
    """Rows of `test.jsonl`: id, dataset, scene_name, question_type, question, ground_truth, options.

    Raises:
        ValueError: a row lacks a field, or its question type is unknown.
    """
    for row in _checked("VSI-Bench", rows, "id dataset scene_name question_type question ground_truth"):
        kind = row["question_type"]
        if kind not in VSIBENCH_NUMERIC | VSIBENCH_CHOICE:
            known = ", ".join(sorted(VSIBENCH_NUMERIC | VSIBENCH_CHOICE))
            raise ValueError(f"VSI-Bench question {row['id']}: question_type is {kind!r}; known are {known}.")
        numeric = kind in VSIBENCH_NUMERIC
        yield _record(
            problem_id=str(row["id"]),
            problem=row["question"],
            problem_type=ProblemType.REGRESSION if numeric else ProblemType.MULTIPLE_CHOICE,
            options=[] if numeric else _lettered(_listed(row)),
            answer=str(row["ground_truth"]),
            path=f"./{folder}/{row['dataset']}/{row['scene_name']}.mp4",
            data_source="VSI-Bench",
            original_question_type=kind,
            scene_name=row["scene_name"],
        )


def convert_videommmu(
    rows: Iterable[Row], track: VideoMMMUTrack, *, folder: str = "VideoMMMU", question_only: bool = False
) -> Iterator[dict[str, Any]]:
    """Rows of one track: id ("dev_Biology_3"), question, options, answer, question_type, and others.

    Args:
        rows: of the Parquet file of a track.
        track: which one it is.
        folder: folder of the disciplines' folders, relative to the data root.
        question_only: point to the clips without the lecture, for the score before it in the knowledge gain.

    Raises:
        ValueError: a row lacks a field, its subject is unknown, or its answer is the letter of no option.
    """
    discipline_of = {subject: name for name, subjects in VIDEOMMMU_DISCIPLINES.items() for subject in subjects}
    for row in _checked("VideoMMMU", rows, "id question answer question_type"):
        subject = "_".join(row["id"].split("_")[1:-1])
        if subject not in discipline_of:
            raise ValueError(f"VideoMMMU question {row['id']!r}: its subject {subject!r} is none of the 30 known ones.")
        options = [] if row["question_type"] == "open" else _lettered(_listed(row))
        video = f"question_only/{row['id']}_image" if question_only else f"{discipline_of[subject]}/{row['id']}"
        hint = f"{ADAPTATION_HINT}\n" if track == "Adaptation" else ""
        kind = ProblemType.MULTIPLE_CHOICE if options else _open_kind(row["answer"])
        yield _record(
            problem_id=f"{track}/{row['id']}",
            problem=hint + row["question"],
            problem_type=kind,
            options=options,
            answer=str(row["answer"]),
            path=f"./{folder}/{video}.mp4",
            data_source="VideoMMMU",
            track=track,
            subject=subject,
            discipline=discipline_of[subject],
            question_type=row["question_type"],
        )


def convert_mmvu(rows: Iterable[Row], *, folder: str = "MMVU") -> Iterator[dict[str, Any]]:
    """Multiple-choice rows of `validation.json`: id, video (an address), question, choices, answer, metadata.

    Open-ended rows are left out: the benchmark's published score on them needs a judge.

    Raises:
        ValueError: a row lacks a field, or its answer is the letter of no choice.
    """
    for row in _checked("MMVU", rows, "id video question_type question choices answer metadata"):
        if row["question_type"] != "multiple-choice":
            continue
        before, found, video = row["video"].partition("/videos/")
        yield _record(
            problem_id=row["id"],
            problem=row["question"],
            problem_type=ProblemType.MULTIPLE_CHOICE,
            options=[f"{letter}. {text}" for letter, text in row["choices"].items() if text],
            answer=row["answer"],
            path=f"./{folder}/videos/{video if found else before}",
            data_source="MMVU",
            subject=row["metadata"]["subject"],
        )


def convert_mvbench(rows: Iterable[Row], task: str, *, folder: str = "MVBench/video") -> Iterator[dict[str, Any]]:
    """Rows of one task's JSON file: video, question, candidates, answer (a candidate), and for five tasks start, end.

    Episodic Reasoning comes as folders of pictures, three a second; its records expect a video of 3 frames per second
    made of each, under the folder's name with `.mp4`.

    Raises:
        ValueError: unknown task, a row lacks a field, or its answer is none of the candidates.
    """
    if task not in MVBENCH_TASKS:
        raise ValueError(f"{task!r} is no task of MVBench; its tasks are {', '.join(MVBENCH_TASKS)}.")
    subfolder, timed = MVBENCH_TASKS[task]
    needed = "video question candidates answer" + (" start end" if timed else "")
    for number, row in enumerate(_checked(f"MVBench {task}", rows, needed)):
        candidates = list(row["candidates"])
        if row["answer"] not in candidates:
            raise ValueError(f"MVBench {task}, row {number}: answer {row['answer']!r} is none of {candidates}.")
        video = f"{row['video']}.mp4" if task == "Episodic Reasoning" else row["video"]
        yield _record(
            problem_id=f"{task}/{number}",
            problem=row["question"],
            problem_type=ProblemType.MULTIPLE_CHOICE,
            options=_lettered(candidates),
            answer=ascii_uppercase[candidates.index(row["answer"])],
            path=f"./{folder}/{subfolder}/{video}",
            data_source="MVBench",
            task_type=task,
            **({"start": row["start"], "end": row["end"]} if timed else {}),
        )


def convert_tempcompass(
    questions: Mapping[str, Mapping[str, Sequence[Row]]], task: TempCompassTask, *, folder: str = "TempCompass/videos"
) -> Iterator[dict[str, Any]]:
    """One task's JSON file: video id -> aspect -> list of {question, answer}.

    Yes and no, and the two captions of caption matching, become options with letters: as free text a right "no" would
    earn two thirds, for it has no pair of words to compare. The reference of captioning is the answer's text. The
    official scorer's question and answer are kept as `original_question` and `original_answer`.

    Raises:
        ValueError: unknown task, a row lacks a field, or its answer is none of the options.
    """
    convert = _TEMPCOMPASS_FORMS.get(task)
    if convert is None:
        raise ValueError(f"{task!r} is no task of TempCompass; its tasks are {', '.join(_TEMPCOMPASS_FORMS)}.")
    for video, aspects in questions.items():
        for aspect, rows in aspects.items():
            for number, row in enumerate(_checked(f"TempCompass {task} {video} {aspect}", rows, "question answer")):
                yield _record(
                    problem_id=f"{task}/{video}/{aspect}/{number}",
                    path=f"./{folder}/{video}.mp4",
                    data_source="TempCompass",
                    task=task,
                    aspect=aspect,
                    original_question=row["question"],
                    original_answer=row["answer"],
                    **convert(row["question"], row["answer"]),
                )


def convert_videomme(rows: Iterable[Row], *, folder: str = "Video-MME/data") -> Iterator[dict[str, Any]]:
    """Rows of the Parquet file: question_id, videoID, duration, domain, sub_category, task_type, question, options.

    Raises:
        ValueError: a row lacks a field, or its answer is the letter of no option.
    """
    kept = ("duration", "domain", "sub_category", "task_type")
    for row in _checked("Video-MME", rows, " ".join(("question_id videoID question options answer", *kept))):
        yield _record(
            problem_id=row["question_id"],
            problem=row["question"],
            problem_type=ProblemType.MULTIPLE_CHOICE,
            options=_lettered(row["options"]),
            answer=row["answer"],
            path=f"./{folder}/{row['videoID']}.mp4",
            data_source="Video-MME",
            videoID=row["videoID"],
            **{name: row[name] for name in kept},
        )


def _multi_choice(question: str, answer: str) -> dict[str, Any]:
    problem, *options = (line.strip() for line in question.split("\n") if line.strip())
    letter = _LABEL.match(answer)
    return {
        "problem": problem,
        "problem_type": ProblemType.MULTIPLE_CHOICE,
        "options": _lettered(options),
        "answer": letter[1] if letter else answer,
    }


def _yes_no(question: str, answer: str) -> dict[str, Any]:
    texts = ("yes", "no")
    if answer not in texts:
        raise ValueError(f"TempCompass yes_no: answer {answer!r} is neither 'yes' nor 'no'.")
    kind, letter = ProblemType.MULTIPLE_CHOICE, ascii_uppercase[texts.index(answer)]
    return {"problem": question, "problem_type": kind, "options": _lettered(texts), "answer": letter}


def _caption_matching(question: str, answer: str) -> dict[str, Any]:
    problem, *captions = (line.strip() for line in question.split("\n") if line.strip())
    label = _CAPTION.match(answer)
    right = [number for number, caption in enumerate(captions) if label and caption.startswith(label[0])]
    if len(right) != 1:
        raise ValueError(f"TempCompass caption matching: answer {answer!r} is none of {captions}, or several.")
    return {
        "problem": problem,
        "problem_type": ProblemType.MULTIPLE_CHOICE,
        "options": _lettered([_CAPTION.sub("", caption) for caption in captions]),
        "answer": ascii_uppercase[right[0]],
    }


def _captioning(question: str, answer: str) -> dict[str, Any]:
    reference = _LABEL.sub("", answer)
    return {"problem": question, "problem_type": ProblemType.FREE_FORM, "options": [], "answer": reference}


_TEMPCOMPASS_FORMS = {
    "multi-choice": _multi_choice,
    "yes_no": _yes_no,
    "caption_matching": _caption_matching,
    "captioning": _captioning,
}


def _record(*, problem_type: ProblemType, options: list[str], answer: str, **fields: Any) -> dict[str, Any]:
    letters = [option[0] for option in options]
    if problem_type is ProblemType.MULTIPLE_CHOICE and answer not in letters:
        raise ValueError(f"Question {fields['problem_id']}: answer {answer!r} is the letter of none of {options}.")
    record = {"data_type": "video", "problem_type": str(problem_type), "options": options}
    return {**fields, **record, "solution": wrap_answer(answer)}


def _listed(row: Row) -> list[str]:
    """The row's options; Parquet gives them as an array, whose truth value is none."""
    options = row.get("options")
    return [] if options is None else list(options)


def _lettered(options: Iterable[str]) -> list[str]:
    """Options as "A. text"; letters that they carry already are kept where they are A, B, C and so on."""
    texts = [str(option).strip() for option in options]
    labels = [_LABEL.match(text) for text in texts]
    if all(label and label[1] == letter for label, letter in zip(labels, ascii_uppercase, strict=False)):
        return [f"{label[1]}. {text[label.end() :]}" for label, text in zip(labels, texts, strict=True)]
    return [f"{letter}. {text}" for letter, text in zip(ascii_uppercase, texts, strict=False)]


def _open_kind(answer: object) -> ProblemType:
    number = re.fullmatch(r"[-+]?[\d,]*\.?\d+", str(answer).strip())
    return ProblemType.NUMERICAL if number else ProblemType.FREE_FORM


def _checked(benchmark: str, rows: Iterable[Row], needed: str) -> Iterator[Row]:
    for number, row in enumerate(rows):
        missing = [name for name in needed.split() if row.get(name) is None]
        if missing:
            raise ValueError(
                f"{benchmark}, row {number}: {', '.join(missing)} missing; given are {', '.join(row)}. "
                "Convert the benchmark's own annotation file."
            )
        yield row
