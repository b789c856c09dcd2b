"""A few questions of every benchmark as its authors' files hold them; the tests ask them about generated clips.

Question k shows number k of red, green, blue, yellow first and then the next of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from datamodules.evaluation.benchmarks.benchmark import Row
from datamodules.evaluation.benchmarks.vsibench import NUMERIC_TASKS


def _vsibench(number: int, task: str, question: str, answer: str) -> Row:
    options = None if task in NUMERIC_TASKS else ["A. red", "B. green", "C. blue", "D. yellow"]
    row = {"id": number, "dataset": "arkitscenes", "scene_name": f"4106902{number}", "question_type": task}
    return {**row, "question": question, "ground_truth": answer, "options": options}


def _videommmu(name: str, question_type: str, answer: str) -> Row:
    options = [] if question_type == "open" else ["red", "green", "blue", "yellow"]
    question = {"id": name, "question": "Which color appears first?", "options": options, "answer": answer}
    return {**question, "question_type": question_type, "link_selected": "https://example.org/watch"}


def _mmvu(number: int, answer: str) -> Row:
    address = f"https://example.org/datasets/MMVU/resolve/main/videos/Art/{number}.mp4"
    choices = {"A": "red", "B": "green", "C": "blue", "D": "yellow", "E": "white"}
    row = {"id": f"validation_{number}", "video": address, "question_type": "multiple-choice", "answer": answer}
    metadata = {"subject": "Art", "textbook": "", "rationale": "", "knowledge": []}
    return {**row, "metadata": metadata, "question": "Which color appears first?", "choices": choices}


def _mvbench(number: int, answer: str, **times: float) -> Row:
    row = {"video": f"clip{number}.mp4", "question": "Which color appears first?", "answer": answer}
    return {**row, "candidates": ["red", "green", "blue", "yellow"], **times}


def _tempcompass(video: str, question: str, answer: str) -> Mapping[str, Mapping[str, list[Row]]]:
    return {video: {"order": [{"question": question, "answer": answer}]}}


def _videomme(number: int, duration: str, answer: str) -> Row:
    video = {"video_id": f"00{number}", "videoID": f"fFjv93ACGo{number}", "url": "https://example.org/watch"}
    kinds = {"duration": duration, "domain": "Knowledge", "sub_category": "Geography"}
    question = {"question_id": f"00{number}-1", "task_type": "Temporal Perception", "answer": answer}
    options = ["A. red.", "B. green.", "C. blue.", "D. yellow."]
    return {**video, **kinds, **question, "question": "Which color appears first?", "options": options}


EXAMPLES: Mapping[str, Mapping[str, Any]] = {
    "vsibench": {
        "": [
            _vsibench(0, "obj_appearance_order", "Which color appears first?", "A"),
            _vsibench(1, "object_rel_direction_easy", "Which color appears first?", "B"),
            _vsibench(2, "object_counting", "How many squares appear?", "2"),
            _vsibench(3, "object_abs_distance", "How far away is the square, in meters?", "2.0"),
        ]
    },
    "videommmu": {
        "Perception": [_videommmu("dev_Biology_3", "perception", "A")],
        "Comprehension": [_videommmu("validation_Art_Theory_7", "multiple-choice", "B")],
        "Adaptation": [
            _videommmu("test_Finance_12", "multiple-choice", "C"),
            _videommmu("validation_Public_Health_1", "open", "yellow"),
        ],
    },
    "mmvu": {"": [_mmvu(number, letter) for number, letter in enumerate("ABCD")]},
    "mvbench": {
        "Action Sequence": [_mvbench(0, "red", start=0.0, end=1.0)],
        "Action Antonym": [_mvbench(1, "green")],
        "Action Localization": [_mvbench(2, "blue", start=0.0, end=1.0)],
        "Moving Count": [_mvbench(3, "yellow")],
    },
    "tempcompass": {
        "multi-choice": _tempcompass(
            "103440", "Which color appears first?\nA. red\nB. green\nC. blue\nD. yellow", "A. red"
        ),
        "yes_no": _tempcompass("103441_reverse", "Is blue the first color?", "no"),
        "caption_matching": _tempcompass(
            "103442",
            "Which caption matches the video better?\nCaption A: yellow first.\nCaption B: blue first.",
            "Caption B: blue first.",
        ),
        "captioning": _tempcompass(
            "103443_reverse",
            "Write a caption.\nInformation A: {'color': 'red'}\nInformation B: {'color': 'yellow'}\nGenerated Caption:",
            "B. yellow",
        ),
    },
    "videomme": {
        "": [_videomme(*row) for row in ((0, "short", "A"), (1, "medium", "B"), (2, "long", "C"), (3, "long", "D"))]
    },
}
"""Benchmark -> part, or "" without parts -> content of its annotation file."""
