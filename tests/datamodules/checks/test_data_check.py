from __future__ import annotations

import json
import shutil
from collections import Counter

import pytest

from datamodules.checks.data_check import MediaCheck, check_data, check_rewards, text_token_counter
from datamodules.checks.reports import SHOWN_PER_KIND, DataReport, Finding, PromptSize
from datamodules.prompts import PromptTemplate
from datamodules.records import open_records, scan
from datamodules.video.frame_sampling import FrameConfig
from lightning_modules.policy.tiny import CHAT_TEMPLATE, build_tokenizer
from rewards.accuracy import AccuracyReward
from rewards.format import FormatReward
from rewards.suite import RewardSuite
from rewards.types import ProblemType
from tests.datamodules.synthetic.mixed_dataset import write_mixed_dataset

FRAMES = FrameConfig(num_frames=8, min_pixels=56 * 56, max_pixels=56 * 56)
SUITE = RewardSuite([AccuracyReward(), FormatReward(weight=0.5)])


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """Six records: two videos of 56 x 56, three images of 84 x 56, one text."""
    return write_mixed_dataset(tmp_path_factory.mktemp("check") / "mixed", seed=0, count=6)


@pytest.fixture
def copy(sound, tmp_path):
    """The same, to be damaged."""
    shutil.copytree(sound.parent, tmp_path / "mixed")
    return tmp_path / "mixed" / sound.name


def checked(path, limit=None, num_threads=1, **settings):
    check_media = MediaCheck(data_root=path.parent, config=FRAMES, **settings)
    return check_data(scan(path), check_media, limit=limit, num_threads=num_threads)


def test_sound_data_has_counts_and_tokens_and_no_problems(sound):
    report = checked(sound)
    assert report.ok
    assert report.problems == []
    assert report.counts == Counter(
        {
            ("video", "multiple choice"): 1,
            ("image", "OCR"): 1,
            ("text", "numerical"): 1,
            ("video", "numerical"): 1,
            ("image", "free-form"): 1,
            ("image", "regression"): 1,
        }
    )
    # A video: 8 / 2 temporal patches of 56 / 28 x 56 / 28 tokens. An image: one of 56 / 28 x 84 / 28.
    assert [size.vision for size in report.sizes] == [16, 6, 0, 16, 6, 6]
    assert {size.text for size in report.sizes} == {0}
    assert report.sizes[3].where == f"{sound}:4 (problem_id 3)"


@pytest.mark.parametrize("arguments", [{"decode": False}, {"num_threads": 3}])
def test_headers_and_threads_give_the_same_report(sound, arguments):
    assert checked(sound, **arguments) == checked(sound)


def test_a_record_set_can_be_checked(sound):
    report = check_data(open_records([sound], sound.parent), MediaCheck(data_root=sound.parent, config=FRAMES))
    assert report == checked(sound)


def test_text_tokens_come_from_tokenizer_and_template(sound):
    tokenizer = build_tokenizer(["Which color appears first? How many times does a shape appear?"], vocab_size=300)
    tokenizer.chat_template = CHAT_TEMPLATE
    template = PromptTemplate()
    report = checked(sound, count_tokens=text_token_counter(tokenizer, template))
    assert report.ok
    for record, size in zip(open_records([sound], sound.parent), report.sizes, strict=True):
        messages = template.messages(record)
        ids = tokenizer.apply_chat_template(messages, tokenize=True, add_generation_prompt=True)["input_ids"]
        assert size.total == size.vision + len(ids) - (0 if record.data_type == "text" else 1)


def test_every_fault_is_listed_and_the_other_records_are_still_checked(copy):
    lines = [json.loads(line) for line in copy.read_text().splitlines()]
    root = copy.parent
    (root / lines[0]["path"]).unlink()
    (root / lines[1]["path"]).write_bytes(b"not an image")
    (root / lines[3]["path"]).write_bytes((root / lines[3]["path"]).read_bytes()[:300])
    lines[5]["problem_type"] = "quiz"
    copy.write_text("".join(json.dumps(line) + "\n" for line in lines) + "{broken\n")

    report = checked(copy)

    assert not report.ok
    assert {(problem.kind, problem.where) for problem in report.problems} == {
        ("media missing or outside the data root", f"{copy}:1 (problem_id 0)"),
        ("media unreadable", f"{copy}:2 (problem_id 1)"),
        ("media unreadable", f"{copy}:4 (problem_id 3)"),
        ("invalid record", f"{copy}:6 (problem_id 5)"),
        ("invalid record", f"{copy}:7 (problem_id unknown)"),
    }
    assert all(not problem.message.startswith(str(copy)) for problem in report.problems)
    assert report.counts.total() == 5
    assert [size.where for size in report.sizes] == [f"{copy}:3 (problem_id 2)", f"{copy}:5 (problem_id 4)"]
    rendered = report.render()
    assert "5 valid records, media of 2 checked and sound" in rendered
    assert "problems: 5\n" in rendered
    assert "  media unreadable (2)\n" in rendered
    for problem in report.problems:
        assert f"    {problem.where}: {problem.message}" in rendered


def test_a_link_out_of_the_root_is_a_problem(copy, tmp_path):
    media = copy.parent / json.loads(copy.read_text().splitlines()[0])["path"]
    shutil.move(media, tmp_path / "elsewhere.mp4")
    media.symlink_to(tmp_path / "elsewhere.mp4")
    (problem,) = checked(copy).problems
    assert problem.kind == "media missing or outside the data root"
    assert "leads through a symbolic link" in problem.message


def test_long_prompts_and_failing_templates_are_problems(sound):
    report = checked(sound, count_tokens=lambda record: 10, max_prompt_tokens=25)
    assert [(problem.kind, problem.where) for problem in report.problems] == [
        ("prompt too long", f"{sound}:1 (problem_id 0)"),
        ("prompt too long", f"{sound}:4 (problem_id 3)"),
    ]
    # 16 vision tokens and 10 of text.
    assert report.problems[0].message.startswith("26 tokens (16 of vision), more than max_prompt_tokens 25.")
    assert [size.total for size in report.sizes] == [16, 10, 16, 16]

    report = checked(sound, count_tokens=lambda record: len(PromptTemplate(question="{problem}").user_text(record)))
    assert [problem.kind for problem in report.problems] == ["prompt cannot be built"]
    assert "Put {options} into it" in report.problems[0].message


def test_a_limit_holds_for_media_but_not_for_records(copy):
    (copy.parent / json.loads(copy.read_text().splitlines()[3])["path"]).unlink()
    copy.write_text(copy.read_text() + "{broken\n")
    report = checked(copy, limit=3)
    assert report.counts.total() == 6
    assert len(report.sizes) == 3
    assert [problem.where for problem in report.problems] == [f"{copy}:7 (problem_id unknown)"]


def test_nothing_is_not_fine():
    assert not check_data([], MediaCheck(data_root=".", config=FRAMES)).ok


def test_the_rendered_report_has_quantiles_and_the_largest_prompts():
    sizes = [PromptSize(where=f"data:{number}", vision=number, text=1000) for number in range(1, 101)]
    report = DataReport(counts=Counter({("video", "OCR"): 1234}), sizes=sizes)
    lines = report.render().splitlines()
    # Sorted totals are 1001 .. 1100; the quantile q of 100 values stands at place 1 + 99 q, rounded up.
    assert lines[1].split() == ["video", "OCR", "1,234"]
    assert lines[4].split() == ["min", "50%", "90%", "99%", "max"]
    assert lines[5].split() == ["vision", "1", "51", "91", "100", "100"]
    assert lines[6].split() == ["text", "1,000", "1,000", "1,000", "1,000", "1,000"]
    assert lines[7].split() == ["total", "1,001", "1,051", "1,091", "1,100", "1,100"]
    assert [line.split() for line in lines[10:12]] == [["1,100", "data:100"], ["1,099", "data:99"]]
    assert lines[-1] == "problems: none"


def test_a_rendered_report_shows_some_findings_of_each_kind_and_counts_the_rest():
    many = [Finding(kind="missing", where=f"data:{number}", message="gone") for number in range(SHOWN_PER_KIND + 3)]
    rendered = DataReport(problems=[*many, Finding(kind="broken", where="data:99", message="bad")]).render()
    assert rendered.count(": gone") == SHOWN_PER_KIND
    assert "    and 3 more\n  broken (1)\n    data:99: bad" in rendered


def test_gold_answers_of_sound_data_score_one(sound):
    report = check_rewards(scan(sound), SUITE)
    assert report.ok
    assert report.below_one == []
    assert report.counts[ProblemType.NUMERICAL] == 2
    assert report.counts.total() == 6
    assert all(scores == {"accuracy": 1.0, "format": 1.0} for scores in report.means.values())
    rows = [line.split() for line in report.render().splitlines()]
    assert ["numerical", "2", "1.000", "1.000"] in rows


def test_gold_answers_that_cannot_earn_the_reward_are_found(tmp_path):
    base = {"problem": "Why?", "data_type": "text"}
    choice = {**base, "problem_type": "multiple choice", "options": ["A. red", "(B) green"]}
    records = [
        {**choice, "solution": "<answer>B</answer>"},
        {**choice, "solution": "<answer>C</answer>"},
        {**choice, "options": ["a cat", "a dog"], "solution": "<answer>a cat</answer>"},
        {**base, "problem_type": "numerical", "solution": "<answer>many</answer>"},
        {**base, "problem_type": "free-form", "solution": "<answer>cup</answer>"},
        {**base, "problem_type": "free-form", "solution": "<answer>猫</answer>"},
        {**base, "problem_type": "regression", "solution": "<answer>2</answer>", "process": "<answer>1</answer>"},
        {**base, "problem_type": "quiz", "solution": "<answer>2</answer>"},
    ]
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps({"problem_id": i, **item}) + "\n" for i, item in enumerate(records, start=1)))

    report = check_rewards(scan(path), SUITE)

    assert not report.ok
    assert [(problem.kind, problem.where) for problem in report.problems] == [
        ("gold answer is no option", f"{path}:2 (problem_id 2)"),
        ("cannot be scored", f"{path}:4 (problem_id 4)"),
        ("gold answer scores 0", f"{path}:6 (problem_id 6)"),
        ("invalid record", f"{path}:8 (problem_id 8)"),
    ]
    assert "is not a number" in report.problems[1].message
    # One word: ROUGE-1 and ROUGE-L 1, ROUGE-2 0. Prediction 1 for 2, from the process: 1 - 1 / 2.
    assert [(finding.where, finding.message) for finding in report.below_one] == [
        (f"{path}:5 (problem_id 5)", "accuracy 0.667: '<answer>cup</answer>'"),
        (f"{path}:7 (problem_id 7)", "accuracy 0.500: '<answer>2</answer>'"),
    ]
    # Free-form: (2 / 3 + 0) / 2.
    assert report.means[ProblemType.FREE_FORM]["accuracy"] == pytest.approx(1 / 3)
    assert report.means[ProblemType.MULTIPLE_CHOICE] == {"accuracy": 1.0, "format": 1.0}


def test_a_suite_without_accuracy_is_refused(sound):
    with pytest.raises(ValueError, match=r"The rewards \(format\) have no AccuracyReward"):
        check_rewards(scan(sound), RewardSuite([FormatReward()]))


@pytest.mark.parametrize("decode", [True, False])
def test_faults_that_the_data_set_knows_are_listed(sound, decode):
    seen = {}

    def find_fault(record, seconds):
        seen[record.problem_id] = seconds
        return "too short" if seconds is not None and record.problem_id == "3" else None

    report = checked(sound, find_fault=find_fault, decode=decode)
    # The clips of videos 0 and 3 last 16 frames at 8 per second.
    assert seen == {"0": 2.0, "1": None, "2": None, "3": 2.0, "4": None, "5": None}
    (problem,) = report.problems
    assert (problem.kind, problem.message) == ("not the data of the benchmark", "too short")
    assert problem.where == f"{sound}:4 (problem_id 3)"
