"""Tiny made-up data sets in the schema of each benchmark: its own annotation, its published data file, its videos.

Questions are about generated scenes and their answers right (VSI-Bench's distance alone is made up), so that a run on
the samples means something and takes seconds on a CPU.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.evaluation.benchmarks import BENCHMARKS
from datamodules.evaluation.layouts import MVBENCH_TASKS
from datamodules.synthetic.dataset import ORDER_COLORS
from datamodules.synthetic.scene import FRAMES, FRAMES_PER_SECOND, Flash, Scene, render, write_clip

ITEMS = 4
"""Questions of a sample, and videos."""
SECONDS = FRAMES / FRAMES_PER_SECOND
"""Length of each video."""
ASKED = "Which color appears first?"

_COLORS = list(ORDER_COLORS)
_OPTIONS = [f"{letter}. {color}" for letter, color in zip("ABCD", _COLORS, strict=True)]


@dataclass(frozen=True, kw_only=True)
class BenchmarkSample:
    """Where `write_benchmark_sample` put a benchmark's sample."""

    data_root: Path
    """Folder that the records' `path` fields are relative to."""
    file: Path
    """Records in the form of the published data file."""
    annotations: dict[str, Any]
    """The benchmark's own annotation of the same questions: task or track, or "all" -> rows, as its files hold them."""


def write_benchmark_sample(output: Path, name: str) -> BenchmarkSample:
    """Write the sample of one benchmark: videos below `output` and the published data file in it.

    Question k is about a video whose first color is number k of `ORDER_COLORS`, so its answer is letter k.

    Args:
        output: folder, made where it does not exist; files of the same names are replaced.
        name: a key of `BENCHMARKS`.

    Raises:
        ValueError: unknown benchmark.
    """
    if name not in BENCHMARKS:
        raise ValueError(f"{name!r} is no benchmark; choose one of {', '.join(BENCHMARKS)}.")
    annotations, records = _SAMPLES[name]()
    for number, record in enumerate(records):
        path = output / record["path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        write_clip(path, render(_scene(number)))
    file = output / BENCHMARKS[name].file
    file.write_text(json.dumps(records, indent=1), encoding="utf-8")
    return BenchmarkSample(data_root=output, file=file, annotations=annotations)


def _scene(number: int) -> Scene:
    """Color `number` in the first half, the next one in the second."""
    middle = FRAMES // 2
    spans = ((0, middle, _COLORS[number % 4]), (middle, FRAMES, _COLORS[(number + 1) % 4]))
    flashes = tuple(
        Flash(start=start, stop=stop, color=color, shape="square", center=(0.5, 0.5), radius=0.2)
        for start, stop, color in spans
    )
    background = np.random.default_rng(number).integers(0, 50, size=3).tolist()
    return Scene(background=tuple(background), flashes=flashes)


def _published(number: int, path: str, **fields: Any) -> dict[str, Any]:
    record = {
        "problem_id": number,
        "problem": ASKED,
        "data_type": "video",
        "problem_type": "multiple choice",
        "options": _OPTIONS,
        "solution": f"<answer>{'ABCD'[number]}</answer>",
        "path": path,
    }
    return {**record, **fields}


def _vsibench() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Two choice questions, then two numbers: the scene's two squares, and a distance that no picture shows."""
    kinds = ("obj_appearance_order", "object_rel_direction_easy", "object_counting", "object_abs_distance")
    numbers = {2: ("How many squares appear?", "2"), 3: ("How far away is the square, in meters?", "2.0")}
    rows, records = [], []
    for number, kind in enumerate(kinds):
        question, answer = numbers.get(number, (ASKED, "ABCD"[number]))
        options = None if number in numbers else _OPTIONS
        scene = {"dataset": "arkitscenes", "scene_name": f"4106902{number}"}
        rows.append(
            {"id": number, **scene, "question_type": kind, "question": question, "ground_truth": answer}
            | {"options": options}
        )
        path = f"./VSI-Bench/{scene['dataset']}/{scene['scene_name']}.mp4"
        records.append(
            _published(number, path, original_question_type=kind)
            | {"problem": question, "options": options or [], "solution": f"<answer>{answer}</answer>"}
            | ({"problem_type": "regression"} if number in numbers else {})
        )
    return {"all": rows}, records


def _videommmu() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Options inside the question, as published; the last question is open."""
    tracks = ("Perception", "Comprehension", "Adaptation", "Adaptation")
    ids = ("dev_Biology_3", "validation_Art_Theory_7", "test_Finance_12", "validation_Public_Health_1")
    annotations: dict[str, Any] = {track: [] for track in tracks}
    records = []
    folders = ("Science", "Art", "Business", "Medicine")
    for number, (track, name, folder) in enumerate(zip(tracks, ids, folders, strict=True)):
        is_open = number == 3
        answer = _COLORS[number] if is_open else "ABCD"[number]
        row = {"id": name, "question": ASKED, "options": [] if is_open else list(_COLORS), "answer": answer}
        kind = "open" if is_open else "perception" if track == "Perception" else "multiple-choice"
        annotations[track].append({**row, "question_type": kind, "link_selected": "https://example.org/watch"})
        inline = ASKED if is_open else "\n".join((ASKED, *_OPTIONS))
        record = _published(number, f"./VideoMMMU/{folder}/{name}.mp4", problem=inline, options=[])
        record |= {"original_question_type": track, "data_source": "https://example.org/watch"}
        record |= {"problem_type": "free-form", "solution": f"<answer>{answer}</answer>"} if is_open else {}
        records.append(record)
    return annotations, records


def _mmvu() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    rows, records = [], []
    address = "https://example.org/datasets/MMVU/resolve/main/videos"
    for number in range(ITEMS):
        choices = {**dict(zip("ABCD", _COLORS, strict=True)), "E": "white"}
        rows.append(
            {"id": f"validation_{number}", "video": f"{address}/Art/{number}.mp4", "question_type": "multiple-choice"}
            | {"metadata": {"subject": "Art", "textbook": "", "rationale": "", "knowledge": []}, "question": ASKED}
            | {"choices": choices, "answer": "ABCD"[number]}
        )
        options = [*_OPTIONS, "E. white"]
        records.append(_published(number, f"./MMVU/videos/Art/{number}.mp4", options=options, subject="Art"))
    open_row = {**rows[0], "id": f"validation_{ITEMS}", "question_type": "open-ended", "answer": "red"}
    rows.append({**open_row, "choices": dict.fromkeys("ABCDE", "")})
    return {"all": rows}, records


def _mvbench() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """One question a task; two tasks are about a part of the video: its first half, where the first color is alone."""
    tasks = ("Action Sequence", "Action Antonym", "Action Localization", "Moving Count")
    annotations, records = {}, []
    for number, task in enumerate(tasks):
        folder, timed = MVBENCH_TASKS[task]
        times = {"start": 0.0, "end": SECONDS / 2} if timed else {}
        row = {"video": f"clip{number}.mp4", "question": ASKED, "candidates": list(_COLORS), "answer": _COLORS[number]}
        annotations[task] = [{**row, **times}]
        records.append(_published(number, f"./MVBench/video/{folder}/clip{number}.mp4", task_type=task, **times))
    return annotations, records


def _tempcompass() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """One question a task; options are inside the question, and null as a field."""
    other = [_COLORS[(number + 1) % 4] for number in range(ITEMS)]
    matching = f"Which caption matches the video better?\nCaption A: {other[2]} first.\nCaption B: {_COLORS[2]} first."
    choice = "\n".join((ASKED, *_OPTIONS))
    facts = f"Information A: {{'color': '{other[3]}'}}\nInformation B: {{'color': '{_COLORS[3]}'}}"
    questions = {
        "multi-choice": (choice, f"A. {_COLORS[0]}", "A", "multiple choice"),
        "yes_no": (f"Is {other[1]} the first color?", "no", "B", "multiple choice"),
        "caption_matching": (matching, f"Caption B: {_COLORS[2]} first.", "B", "multiple choice"),
        "captioning": (f"Write a caption.\n{facts}\nGenerated Caption:", f"B. {_COLORS[3]}", _COLORS[3], "free-form"),
    }
    annotations, records = {}, []
    for number, (task, (question, answer, gold, kind)) in enumerate(questions.items()):
        video = f"10344{number}_reverse" if number % 2 else f"10344{number}"
        annotations[task] = {video: {"order": [{"question": question, "answer": answer}]}}
        fields = {"problem": question, "options": None, "problem_type": kind, "task": task, "aspect": "order"}
        if task == "yes_no":
            fields |= {"options": ["A. yes", "B. no"]}
        path = f"./TempCompass/videos/{video}.mp4"
        records.append(_published(number, path, **fields, solution=f"<answer>{gold}</answer>"))
    return annotations, records


def _videomme() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    rows, records = [], []
    for number, duration in enumerate(("short", "medium", "long", "long")):
        groups = {"duration": duration, "domain": "Knowledge", "sub_category": "Geography"}
        groups["task_type"] = "Temporal Perception"
        video = f"fFjv93ACGo{number}"
        rows.append(
            {"video_id": f"00{number}", "question_id": f"00{number}-1", "videoID": video, **groups}
            | {"url": f"https://example.org/watch?v={video}", "question": ASKED, "answer": "ABCD"[number]}
            | {"options": [f"{option}." for option in _OPTIONS]}
        )
        options = [f"{option}." for option in _OPTIONS]
        records.append(_published(number, f"./Video-MME/data/{video}.mp4", options=options, **groups))
    return {"all": rows}, records


_SAMPLES: dict[str, Callable[[], tuple[dict[str, Any], list[dict[str, Any]]]]] = {
    "vsibench": _vsibench,
    "videommmu": _videommmu,
    "mmvu": _mmvu,
    "mvbench": _mvbench,
    "tempcompass": _tempcompass,
    "videomme": _videomme,
}
