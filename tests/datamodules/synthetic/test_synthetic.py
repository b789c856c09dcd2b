"""Generated data: what is drawn is what is asked, the teacher errs as announced, folders are complete or absent."""

import json
import re
from collections import Counter

import numpy as np
import pytest

from datamodules.synthetic.dataset import NUM_CHOICES, corpus, questions, write_dataset
from datamodules.synthetic.generated_folder import STAMP
from datamodules.synthetic.scene import COLORS, FRAMES, Flash, Scene, render
from rewards.types import ProblemType
from tests.datamodules.synthetic.mixed_dataset import write_mixed_dataset

SMALL = {"seed": 3, "sft_clips": 6, "rl_clips": 4, "eval_clips": 4}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    root = tmp_path_factory.mktemp("synthetic") / "data"
    write_dataset(root, **SMALL)
    return root


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def decode(path):
    import av

    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])
        return frames, stream.average_rate, stream.codec_context.name


def visible_colors(scene):
    """Colors of the flashes in order, each checked to be visible in exactly its frames."""
    frames = render(scene)
    for flash in scene.flashes:
        x, y = (int(fraction * scene.width) for fraction in flash.center)
        shown = (frames[:, y, x] == COLORS[flash.color]).all(-1)
        assert shown[flash.start : flash.stop].all()
    return [flash.color for flash in scene.flashes]


def test_render_draws_the_flash_in_its_frames_and_nothing_else():
    flash = Flash(start=1, stop=3, color="red", shape="square", center=(0.5, 0.5), radius=0.25)
    frames = render(Scene(background=(1, 2, 3), flashes=(flash,), frames=4, height=8, width=8))

    assert frames.shape == (4, 8, 8, 3) and frames.dtype == np.uint8
    # The center lies at (4, 4) and half the side is 0.25 * 8 = 2: rows and columns 2 to 6, 25 pixels.
    red = (frames == COLORS["red"]).all(-1)
    assert red.sum((1, 2)).tolist() == [0, 25, 25, 0]
    assert red[1, 2:7, 2:7].all()
    assert (frames[~red] == (1, 2, 3)).all()


def test_circle_covers_the_pixels_within_its_radius():
    flash = Flash(start=0, stop=1, color="white", shape="circle", center=(0.5, 0.5), radius=0.25)
    frames = render(Scene(background=(0, 0, 0), flashes=(flash,), frames=1, height=8, width=8))
    # Integer points with dx^2 + dy^2 <= 2^2: 1 + 4 (one step) + 4 (diagonal) + 4 (two steps) = 13.
    assert (frames[0] > 0).all(-1).sum() == 13


def test_right_answers_follow_from_what_is_visible():
    for question in questions(np.random.default_rng(0), 60):
        colors = visible_colors(question.scene)
        if question.task == "order":
            wanted = colors[0] if "first" in question.problem else colors[-1]
            letter = next(option[0] for option in question.options if option.endswith(wanted))
            assert question.solution == f"<answer>{letter}</answer>"
            assert question.process.endswith(f" is {wanted}.</think>")
        else:
            assert question.solution == f"<answer>{len(colors)}</answer>"
            assert question.process.count(" yes") == len(colors)


def test_both_tasks_have_four_answers_that_all_occur():
    answers = {"order": Counter(), "count": Counter()}
    for question in questions(np.random.default_rng(1), 400):
        answers[question.task][question.solution] += 1
    for counted in answers.values():
        # 200 questions over 4 equally likely answers: 50 each, with a standard deviation of about 6.
        assert len(counted) == NUM_CHOICES and min(counted.values()) > 25


def test_the_erring_teacher_takes_the_first_color_for_the_last_and_misses_the_last_flash():
    prone = Counter()
    for question in questions(np.random.default_rng(2), 80, teacher_error=1.0):
        colors = visible_colors(question.scene)
        if question.task == "order":
            letter = "ABCD"[["red", "green", "blue", "yellow"].index(colors[0])]
            assert question.solution == f"<answer>{letter}</answer>"
            prone["last" in question.problem] += 1
        else:
            misses = question.scene.flashes[-1].stop == FRAMES
            assert question.solution == f"<answer>{len(colors) - misses}</answer>"
            assert f"The total is {len(colors) - misses}." in question.process
            prone[misses] += 1
    assert prone[True] > 10 and prone[False] > 10


def test_teacher_error_is_the_fraction_of_errors_among_prone_questions():
    outcomes = Counter()
    for question in questions(np.random.default_rng(4), 2000, teacher_error=0.7):
        if question.task == "count" and question.scene.flashes[-1].stop == FRAMES:
            outcomes[question.solution == f"<answer>{len(question.scene.flashes)}</answer>"] += 1
    # About 625 prone questions: the standard deviation of the fraction is sqrt(0.7 * 0.3 / 625) = 0.018.
    assert outcomes[False] / outcomes.total() == pytest.approx(0.7, abs=0.06)


def test_records_have_the_published_fields(small):
    sft, rl, held_out = (read(small / f"{split}.jsonl") for split in ("sft", "rl", "eval"))
    assert [len(sft), len(rl), len(held_out)] == [6, 4, 4]
    assert all(record["process"].startswith("<think>") for record in sft)
    assert not any("process" in record for record in rl + held_out)
    for record in sft + rl + held_out:
        assert record["data_type"] == "video" and record["num_choices"] == 4
        assert (small / record["path"]).is_file()
        if record["task"] == "order":
            assert record["problem_type"] == "multiple choice"
            assert record["options"] == ["A. red", "B. green", "C. blue", "D. yellow"]
        else:
            assert (record["problem_type"], record["options"]) == ("numerical", [])
    assert [record["problem_id"] for record in sft] == list(range(6))


def test_clips_are_h264_at_eight_frames_per_second_with_the_colors_intact(small):
    record = read(small / "rl.jsonl")[0]
    frames, rate, codec = decode(small / record["path"])
    assert (frames.shape, rate, codec) == ((16, 56, 56, 3), 8, "h264")
    # The first RL scene is also the first of its random stream.
    scene = next(questions(np.random.default_rng([SMALL["seed"], 1]), 1)).scene
    difference = abs(frames.astype(int) - render(scene))
    # Half-resolution color blurs edges only; the bulk of the picture keeps its values to a few units of 255.
    assert np.median(difference) <= 3 and difference.mean() < 6


def test_splits_share_no_scene():
    seen = Counter()
    for stream in range(5):
        seen.update(question.scene for question in questions(np.random.default_rng([0, stream]), 100))
    assert len(seen) == 500


def test_same_arguments_keep_the_folder_and_other_arguments_replace_it(tmp_path):
    root = tmp_path / "data"
    write_dataset(root, **SMALL)
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in sorted(root.rglob("*.*"))}
    write_dataset(root, **SMALL)
    assert before == {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in sorted(root.rglob("*.*"))}

    write_dataset(root, **SMALL | {"seed": 4, "sft_clips": 2})
    assert len(read(root / "sft.jsonl")) == 2
    assert len(list((root / "clips").iterdir())) == 2 + 4 + 4
    assert list(tmp_path.iterdir()) == [root]


def test_same_seed_gives_the_same_files(small, tmp_path):
    again = tmp_path / "again"
    write_dataset(again, **SMALL)
    for path in small.rglob("*.*"):
        assert (again / path.relative_to(small)).read_bytes() == path.read_bytes()


def test_an_incomplete_folder_is_rebuilt(tmp_path):
    write_dataset(tmp_path / "data", **SMALL)
    (tmp_path / "data" / "rl.jsonl").unlink()
    write_dataset(tmp_path / "data", **SMALL)
    assert len(read(tmp_path / "data" / "rl.jsonl")) == 4


def test_an_interrupted_run_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(path, frames):
        raise KeyboardInterrupt

    monkeypatch.setattr("datamodules.synthetic.dataset.write_clip", fail)
    with pytest.raises(KeyboardInterrupt):
        write_dataset(tmp_path / "data", **SMALL)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["notes.txt", STAMP])
def test_a_folder_with_other_files_is_refused_and_left_alone(tmp_path, name):
    foreign = tmp_path / "data" / name
    foreign.parent.mkdir()
    foreign.write_text('{"mine": true}')
    with pytest.raises(ValueError, match=f"not generated here \\({name}\\)"):
        write_dataset(tmp_path / "data", **SMALL)
    assert foreign.read_text() == '{"mine": true}'


def test_mixed_records_cover_every_kind_of_media_and_problem(tmp_path):
    from PIL import Image

    records = read(write_mixed_dataset(tmp_path / "mixed", seed=0, count=12))
    assert {record["problem_type"] for record in records} == {kind.value for kind in ProblemType}
    assert Counter(record["data_type"] for record in records) == {"video": 4, "image": 6, "text": 2}
    for record in records:
        assert record["process"].startswith("<think>") and record["solution"].startswith("<answer>")
        if record["data_type"] == "text":
            assert "path" not in record
        elif record["data_type"] == "image":
            assert Image.open(tmp_path / "mixed" / record["path"]).size == (84, 56)
        else:
            assert decode(tmp_path / "mixed" / record["path"])[0].shape == (16, 56, 56, 3)


def test_corpus_holds_prompts_and_targets_but_no_answer_beside_its_tag():
    texts = list(corpus())
    assert " Which color appears last? A. red B. green C. blue D. yellow" in texts
    assert any(text.startswith("<think> I check") and text.endswith("</think><answer>") for text in texts)
    assert not any(re.search("<answer>.", text) for text in texts)
    assert texts == list(corpus(0)) != list(corpus(1))
