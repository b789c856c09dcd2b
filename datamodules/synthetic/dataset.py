"""Generated video questions with known answers: the data of the demo and of the tests.

A scene is a plain background on which colored shapes flash. It is drawn and encoded as a real H.264 file, so that
every later stage (decoding, encoding, sampling, rewards) does what it does in a full-size run. The chain of thought of
the fine-tuning split comes from a teacher with two systematic errors, both of which a reward for the answer alone can
correct: it gives the first color where the last one is asked for, and it overlooks a flash at the very end.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from datamodules.synthetic.generated_folder import publish_folder
from datamodules.synthetic.scene import COLORS, FRAMES, SIZE, Flash, Scene, Shape, render, write_clip
from rewards.types import DataType, ProblemType

Task = Literal["order", "count"]

ORDER_COLORS = ("red", "green", "blue", "yellow")
ORDER_OPTIONS = ("A. red", "B. green", "C. blue", "D. yellow")
NUM_CHOICES = 4
"""Possible answers of either task; a uniform guess is right once in this many times."""
SLOTS = 4
"""Equal parts of a clip; a counted shape flashes in some of them, at most once in each."""

_STREAMS = {"sft": 0, "rl": 1, "eval": 2, "corpus": 3}  # one random stream each, so splits share no scene


@dataclass(frozen=True, kw_only=True)
class Question:
    """A scene, a question about it and what the teacher answers (wrongly where it errs)."""

    task: Task
    problem: str
    problem_type: ProblemType
    options: tuple[str, ...]
    process: str
    """Chain of thought with its tags."""
    solution: str
    """The answer with its tags."""
    scene: Scene


def questions(rng: np.random.Generator, count: int, *, teacher_error: float = 0.0) -> Iterator[Question]:
    """Draw `count` questions, the two tasks in turn.

    `teacher_error` is the probability that the teacher errs on a question that is prone to its errors.
    """
    for index in range(count):
        yield (_order_question if index % 2 == 0 else _count_question)(rng, teacher_error)


def write_dataset(
    output: Path,
    *,
    seed: int,
    sft_clips: int = 600,
    rl_clips: int = 400,
    eval_clips: int = 192,
    teacher_error: float = 0.7,
) -> None:
    """Write the demo's three splits: `clips/*.mp4`, `sft.jsonl`, `rl.jsonl`, `eval.jsonl`.

    The folder appears complete or not at all. A folder written with the same arguments is kept as it is; one
    written with others is replaced. Call it from one process only. Only fine-tuning records carry a `process`.

    Args:
        output: folder to create.
        seed: decides every scene; the splits draw from separate random streams.
        sft_clips: records for supervised fine-tuning, with the imperfect teacher's chain of thought.
        rl_clips: records for GRPO, right answers only.
        eval_clips: held-out records, right answers only.
        teacher_error: as in `questions`.

    Raises:
        UserError: `output` holds files that were not generated here.
    """
    counts = {"sft": sft_clips, "rl": rl_clips, "eval": eval_clips}

    def build(folder: Path) -> None:
        from tqdm import tqdm

        (folder / "clips").mkdir()
        with tqdm(total=sum(counts.values()), desc="generating clips", disable=None) as bar:
            for split, count in counts.items():
                drawn = questions(_stream(seed, split), count, teacher_error=teacher_error if split == "sft" else 0.0)
                records = []
                for index, question in enumerate(drawn):
                    path = f"clips/{split}_{index:05d}.mp4"
                    write_clip(folder / path, render(question.scene))
                    records.append(_video_record(question, index, path, with_process=split == "sft"))
                    bar.update()
                lines = "".join(json.dumps(record) + "\n" for record in records)
                (folder / f"{split}.jsonl").write_text(lines, encoding="utf-8")

    arguments = {"dataset": "demo", "seed": seed, "teacher_error": teacher_error, **counts}
    publish_folder(output, arguments=arguments, build=build)


def corpus(seed: int = 0) -> Iterator[str]:
    """Texts of all kinds of record, prompts and targets in pieces, to train the tiny model's tokenizer on.

    Answers stand apart from their tags: Qwen's splitting rule joins a letter to the ">" before it, and a token
    ">A" would hide from the model that the answer is the letter of an option. All six kinds of record share the
    vocabulary, so that many words of the demo stay in pieces. Measured on three seeds: 60 steps of GRPO reach an
    accuracy of 0.95 to 0.99 so, and 0.82 to 0.90 with a vocabulary of the demo's two kinds, each word one token.
    """
    rng = _stream(seed, "corpus")
    for index in range(600):
        record, _ = mixed_record(rng, index)
        yield "user\n"
        yield " " + " ".join((record["problem"], *record["options"]))
        yield "assistant\n"
        yield f"{record['process']}<answer>"
        yield "</answer>"


def mixed_record(rng: np.random.Generator, index: int) -> tuple[dict[str, Any], Scene | str | None]:
    """One of six kinds of record, by `index`, and what its media file shows: a scene, a text or (no file) nothing."""
    kind = index % 6
    if kind in (0, 3):
        question = (_order_question if kind == 0 else _count_question)(rng, 0.0)
        return _video_record(question, index, f"media/{index:05d}.mp4", with_process=True), question.scene
    if kind == 2:
        left, right = rng.integers(1, 10, size=2).tolist()
        texts = _texts(f"I add the two. The sum is {left + right}.", f"{left + right}")
        return _record(index, "text", ProblemType.NUMERICAL, f"What is {left} plus {right}?", **texts), None

    path = f"media/{index:05d}.png"
    if kind == 1:
        text = f"{rng.integers(10, 100)}"
        texts = _texts(f"I read one digit after the other. The text is {text}.", text)
        return _record(index, "image", ProblemType.OCR, "Which number is written here?", path=path, **texts), text
    color, shape = list(COLORS)[rng.integers(len(COLORS))], _shape(rng)
    flash = _flash(rng, color, shape, start=0, stop=1)
    scene = Scene(background=_background(rng), flashes=(flash,), frames=1, width=SIZE * 3 // 2)
    if kind == 4:
        texts = _texts(f"I see one shape. It is a {color} {shape}.", f"a {color} {shape}")
        problem, problem_type = "What does the picture show?", ProblemType.FREE_FORM
    else:
        share = f"{2 * flash.radius:.2f}"
        texts = _texts(f"I compare the {shape} with the picture. The share is {share}.", share)
        problem = f"How wide is the {shape}, as a share of the height of the picture?"
        problem_type = ProblemType.REGRESSION
    return _record(index, "image", problem_type, problem, path=path, **texts), scene


def _stream(seed: int, name: str) -> np.random.Generator:
    return np.random.default_rng([seed, _STREAMS[name]])


def _background(rng: np.random.Generator) -> tuple[int, int, int]:
    red, green, blue = rng.integers(0, 50, size=3).tolist()
    return red, green, blue


def _flash(rng: np.random.Generator, color: str, shape: Shape, *, start: int, stop: int) -> Flash:
    x, y = rng.uniform(0.25, 0.75, size=2).tolist()
    radius = float(rng.uniform(0.14, 0.22))
    return Flash(start=start, stop=stop, color=color, shape=shape, center=(x, y), radius=radius)


def _shape(rng: np.random.Generator) -> Shape:
    return "square" if rng.random() < 0.5 else "circle"


def _order_question(rng: np.random.Generator, teacher_error: float) -> Question:
    """Two shapes of different colors, one after the other; which color comes first (or last)?"""
    first, last = (ORDER_COLORS[index] for index in rng.permutation(len(ORDER_COLORS))[:2])
    asked = "first" if rng.random() < 0.5 else "last"
    errs = asked == "last" and rng.random() < teacher_error
    answer = first if asked == "first" or errs else last
    shape = _shape(rng)
    flashes = (
        _flash(rng, first, shape, start=0, stop=FRAMES // 2),
        _flash(rng, last, shape, start=FRAMES // 2, stop=FRAMES),
    )
    return Question(
        task="order",
        problem=f"Which color appears {asked}?",
        problem_type=ProblemType.MULTIPLE_CHOICE,
        options=ORDER_OPTIONS,
        process=f"<think> I see {first} then {last}. The {asked} is {answer}.</think>",
        solution=f"<answer>{'ABCD'[ORDER_COLORS.index(answer)]}</answer>",
        scene=Scene(background=_background(rng), flashes=flashes),
    )


def _count_question(rng: np.random.Generator, teacher_error: float) -> Question:
    """One kind of shape flashes in 1 to 4 of the clip's four parts; how often?"""
    slots = sorted(rng.permutation(SLOTS)[: rng.integers(1, SLOTS + 1)].tolist())
    errs = SLOTS - 1 in slots and rng.random() < teacher_error
    seen = [slot for slot in slots if not (errs and slot == SLOTS - 1)]
    color, shape = list(COLORS)[rng.integers(len(COLORS))], _shape(rng)
    length = FRAMES // SLOTS
    flashes = tuple(_flash(rng, color, shape, start=slot * length, stop=(slot + 1) * length) for slot in slots)
    checks = " ".join("yes" if slot in seen else "no" for slot in range(SLOTS))
    return Question(
        task="count",
        problem="How many times does a shape appear?",
        problem_type=ProblemType.NUMERICAL,
        options=(),
        process=f"<think> I check each part: {checks}. The total is {len(seen)}.</think>",
        solution=f"<answer>{len(seen)}</answer>",
        scene=Scene(background=_background(rng), flashes=flashes),
    )


def _video_record(question: Question, index: int, path: str, *, with_process: bool) -> dict[str, Any]:
    """The record in the published schema, with the task and the number of possible answers as extra fields."""
    texts = {"process": question.process} if with_process else {}
    texts["solution"] = question.solution
    extra = {"task": question.task, "num_choices": NUM_CHOICES, "options": question.options}
    return _record(index, "video", question.problem_type, question.problem, path=path, **texts, **extra)


def _record(
    index: int, data_type: DataType, problem_type: ProblemType, problem: str, *, path: str | None = None, **fields: Any
) -> dict[str, Any]:
    record = {"problem_id": index, "problem": problem, "data_type": data_type, "problem_type": problem_type.value}
    if path is not None:
        record["path"] = f"./{path}"
    return record | {"options": [], **fields, "data_source": "synthetic"}


def _texts(thought: str, answer: str) -> dict[str, str]:
    return {"process": f"<think> {thought}</think>", "solution": f"<answer>{answer}</answer>"}
