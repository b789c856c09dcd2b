"""Forms and faults of the benchmarks' own annotations; whole files are converted in test_benchmark_samples."""

from __future__ import annotations

import numpy as np
import pytest

from datamodules.evaluation.benchmarks import mmvu, mvbench, tempcompass, videomme, videommmu, vsibench

VSI = {
    "id": 12,
    "dataset": "scannet",
    "scene_name": "scene0011_00",
    "question_type": "object_rel_distance",
    "question": "Which object is closest to the sink?",
    "ground_truth": "B",
    "options": ["A. chair", "B. stove"],
}


def test_vsibench_choice_in_full():
    assert list(vsibench.convert([VSI])) == [
        {
            "problem_id": "12",
            "problem": "Which object is closest to the sink?",
            "data_type": "video",
            "problem_type": "multiple choice",
            "options": ["A. chair", "B. stove"],
            "solution": "<answer>B</answer>",
            "path": "./VSI-Bench/scannet/scene0011_00.mp4",
            "data_source": "VSI-Bench",
            "original_question_type": "object_rel_distance",
            "scene_name": "scene0011_00",
        }
    ]


def test_vsibench_numbers_are_regression_questions():
    row = {**VSI, "question_type": "object_abs_distance", "ground_truth": 2.1, "options": None}
    (record,) = vsibench.convert([row], folder="vsi")
    assert (record["problem_type"], record["options"], record["solution"]) == ("regression", [], "<answer>2.1</answer>")
    assert record["path"] == "./vsi/scannet/scene0011_00.mp4"


MMMU = {
    "id": "validation_Architecture_and_Engineering_4",
    "question": "Which beam bends? <image 1>",
    "options": np.array(["left", "right"]),
    "answer": "B",
    "question_type": "multiple-choice",
}


def test_videommmu_tracks():
    (comprehension,) = videommmu.convert([MMMU], "Comprehension")
    assert comprehension["path"] == "./VideoMMMU/Engineering/validation_Architecture_and_Engineering_4.mp4"
    assert comprehension["options"] == ["A. left", "B. right"]
    assert comprehension["problem"] == MMMU["question"]
    assert (comprehension["track"], comprehension["subject"]) == ("Comprehension", "Architecture_and_Engineering")
    (before,) = videommmu.convert([MMMU], "Adaptation", question_only=True)
    assert before["path"] == "./VideoMMMU/question_only/validation_Architecture_and_Engineering_4_image.mp4"
    assert before["problem"] == f"{videommmu.ADAPTATION_HINT}\n{MMMU['question']}"
    assert before["problem_id"] != comprehension["problem_id"]


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ("1,200.5", "numerical"),
        ("-3", "numerical"),
        (".5", "numerical"),
        ("3 apples", "free-form"),
        ("red", "free-form"),
    ],
)
def test_videommmu_open_questions(answer, kind):
    (record,) = videommmu.convert([{**MMMU, "question_type": "open", "options": [], "answer": answer}], "Adaptation")
    assert (record["problem_type"], record["options"], record["solution"]) == (kind, [], f"<answer>{answer}</answer>")


def test_mmvu_leaves_open_questions_and_empty_choices_out():
    row = {
        "id": "validation_1",
        "video": "https://example.org/main/videos/Chemistry/0.mp4",
        "question_type": "multiple-choice",
        "metadata": {"subject": "Chemistry"},
        "question": "How many grams?",
        "choices": {"A": "10.0", "B": "5.0", "C": ""},
        "answer": "A",
    }
    (record,) = mmvu.convert([row, {**row, "question_type": "open-ended", "answer": "10"}])
    assert record["options"] == ["A. 10.0", "B. 5.0"]
    assert record["path"] == "./MMVU/videos/Chemistry/0.mp4"


MVB = {"video": "ZS9XR.mp4", "question": "What first?", "candidates": ["ate", "sat", "ran"], "answer": "ran"}


def test_mvbench_times_are_kept_where_the_task_has_them():
    (timed,) = mvbench.convert([{**MVB, "start": 1.5, "end": 9.25}], "Action Sequence")
    assert (timed["start"], timed["end"], timed["solution"]) == (1.5, 9.25, "<answer>C</answer>")
    assert timed["path"] == "./MVBench/video/star/Charades_v1_480/ZS9XR.mp4"
    (untimed,) = mvbench.convert([{**MVB, "start": 0, "end": 1}], "Object Shuffle")
    assert "start" not in untimed
    frames = {**MVB, "video": "friends_s03e09_clip_07", "start": 0, "end": 2}
    (episode,) = mvbench.convert([frames], "Episodic Reasoning")
    assert episode["path"] == "./MVBench/video/tvqa/frames_fps3_hq/friends_s03e09_clip_07.mp4"


def temporal(task, question, answer):
    (record,) = tempcompass.convert({"1034": {"speed": [{"question": question, "answer": answer}]}}, task)
    assert (record["problem_id"], record["path"]) == (f"{task}/1034/speed/0", "./TempCompass/videos/1034.mp4")
    assert (record["original_question"], record["original_answer"]) == (question, answer)
    return record


def test_tempcompass_captions_become_lettered_options():
    record = temporal(
        "caption_matching", "Which fits?\nOption 1: A man: fast.\nOption 2: Slow. A man", "Option 2: Slow. A man"
    )
    assert record["problem"] == "Which fits?"
    assert record["options"] == ["A. A man: fast.", "B. Slow. A man"]
    assert record["solution"] == "<answer>B</answer>"


def test_tempcompass_other_tasks():
    choice = temporal("multi-choice", "How fast?\nA. fast\nB. slow", "B. slow")
    assert (choice["problem"], choice["options"]) == ("How fast?", ["A. fast", "B. slow"])
    assert choice["solution"] == "<answer>B</answer>"
    judged = temporal("yes_no", "Is it fast?", "no")
    assert (judged["options"], judged["solution"]) == (["A. yes", "B. no"], "<answer>B</answer>")
    assert temporal("captioning", "Describe.", "B. slow, A. Smith")["solution"] == "<answer>slow, A. Smith</answer>"


def test_options_keep_their_letters_or_get_them():
    row = {
        "question_id": "001-1",
        "videoID": "fFjv93ACGo8",
        "duration": "short",
        "domain": "Knowledge",
        "sub_category": "Law",
        "task_type": "OCR Problems",
        "question": "?",
        "answer": "B",
    }
    for options in (["A. x.", "B. y."], ["x.", "y."], ["A) x.", "B) y."]):
        (record,) = videomme.convert([{**row, "options": options}])
        assert record["options"] == ["A. x.", "B. y."]
    (mixed,) = videomme.convert([{**row, "options": ["A. x.", "C. y."]}])
    assert mixed["options"] == ["A. A. x.", "B. C. y."]


@pytest.mark.parametrize(
    ("convert", "message"),
    [
        (lambda: vsibench.convert([{**VSI, "question_type": "quiz"}]), "question 12: question_type is 'quiz'"),
        (lambda: vsibench.convert([{**VSI, "options": None}]), r"'B' is the letter of none of \[\]"),
        (lambda: vsibench.convert([VSI, {"id": 1}]), "VSI-Bench, row 1: dataset, scene_name, .* given are id"),
        (lambda: videommmu.convert([{**MMMU, "id": "dev_Alchemy_1"}], "Perception"), "subject 'Alchemy'"),
        (lambda: mvbench.convert([MVB], "Action Sequence"), "Action Sequence, row 0: start, end missing"),
        (lambda: mvbench.convert([{**MVB, "answer": "hid"}], "State Change"), "answer 'hid' is none of"),
        (
            lambda: tempcompass.convert(
                {"1": {"speed": [{"question": "?\nOption 1: x", "answer": "y"}]}}, "caption_matching"
            ),
            "answer 'y' is none of",
        ),
    ],
)
def test_faults_are_named(convert, message):
    with pytest.raises(ValueError, match=message):
        list(convert())
