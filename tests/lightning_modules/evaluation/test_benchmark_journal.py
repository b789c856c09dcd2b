"""A journal loses and repeats nothing, wherever it is cut off."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import pytest

from datamodules.evaluation.benchmark_datamodule import ItemKey
from lightning_modules.evaluation.journal import Journal, PredictionJournal
from rewards.evaluation.predictions import Prediction, read_predictions

BATCHES = [[ItemKey("mmvu", 0), ItemKey("mmvu", 1)], [ItemKey("mmvu", 2)], [ItemKey("mvbench", 0)]]
KEYS = [key for batch in BATCHES for key in batch]


def prediction(key: ItemKey, answer: str = "日本", failure: str | None = None) -> Prediction:
    return Prediction(
        benchmark=key.benchmark,
        index=key.index,
        problem_id=f"q{key.index}",
        problem_type="multiple choice",
        data_type="text",
        question="?",
        gold="A",
        path=None,
        answer=None if failure else answer,
        failure=failure,
    )


def answer(folder: Path, batches: list[int], *, rank: int = 0) -> None:
    journal = PredictionJournal(folder, BATCHES)
    journal.open(rank)
    for number in batches:
        journal.append(prediction(key).to_line() for key in BATCHES[number])
    journal.close()


def gathered(folder: Path, **options: bool) -> list[ItemKey]:
    journal = PredictionJournal(folder, BATCHES)
    journal.gather(**options)
    return list(journal.answered())


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_ranks_are_merged_into_the_order_of_the_run(tmp_path):
    answer(tmp_path, [2, 0], rank=0)
    answer(tmp_path, [1], rank=1)
    finished, complete = PredictionJournal(tmp_path, BATCHES).finish()
    assert complete
    assert finished == read_predictions(tmp_path / "predictions.jsonl") == [prediction(key) for key in KEYS]
    assert names(tmp_path) == ["predictions.jsonl"]


def test_every_cut_of_a_part_loses_the_batch_that_it_hits_and_no_other(tmp_path):
    answer(tmp_path, [2, 0, 1])
    part = tmp_path / "predictions.rank0.partial.jsonl"
    whole = part.read_bytes()
    ends = [0, *itertools.accumulate(len(line) for line in whole.splitlines(keepends=True))]
    # Batch 2 is the first line, batch 0 the next two, batch 1 the last one.
    expected = {0: [], 1: [KEYS[3]], 2: [KEYS[3]], 3: [KEYS[0], KEYS[1], KEYS[3]], 4: KEYS}
    for cut in range(len(whole) + 1):
        part.write_bytes(whole[:cut])
        lines = sum(end <= cut for end in ends[1:])
        assert list(PredictionJournal(tmp_path, BATCHES).answered()) == expected[lines]


def test_gathering_keeps_whole_batches_and_removes_the_rest(tmp_path):
    answer(tmp_path, [0], rank=0)
    part = tmp_path / "predictions.rank0.partial.jsonl"
    part.write_bytes(part.read_bytes()[:-5])
    answer(tmp_path, [2], rank=1)
    assert gathered(tmp_path) == [KEYS[3]]
    assert names(tmp_path) == ["predictions.partial.jsonl"]
    answer(tmp_path, [0, 1], rank=0)
    assert PredictionJournal(tmp_path, BATCHES).finish() == ([prediction(key) for key in KEYS], True)


def test_unfinished_runs_have_no_final_file(tmp_path):
    answer(tmp_path, [0, 1])
    assert PredictionJournal(tmp_path, BATCHES).finish() == ([prediction(key) for key in KEYS[:3]], False)
    assert names(tmp_path) == ["predictions.rank0.partial.jsonl"]


def test_copies_left_over_by_an_interruption_count_once(tmp_path):
    answer(tmp_path, [0, 1, 2])
    PredictionJournal(tmp_path, BATCHES).finish()
    before = (tmp_path / "predictions.jsonl").read_bytes()
    answer(tmp_path, [1], rank=0)  # as if the parts had not been removed any more
    assert gathered(tmp_path) == KEYS
    assert names(tmp_path) == ["predictions.jsonl"]
    assert (tmp_path / "predictions.jsonl").read_bytes() == before


def test_failed_batches_are_taken_out_for_a_retry(tmp_path):
    journal = PredictionJournal(tmp_path, BATCHES)
    journal.open(0)
    journal.append([prediction(KEYS[0], failure="no file").to_line(), prediction(KEYS[1]).to_line()])
    journal.append([prediction(KEYS[2]).to_line()])
    journal.append([prediction(KEYS[3]).to_line()])
    journal.close()
    journal.finish()
    assert gathered(tmp_path) == KEYS
    # The whole batch is answered anew: its other item was answered without the failed one beside it.
    assert gathered(tmp_path, retry_failed=True) == KEYS[2:]
    assert names(tmp_path) == ["predictions.partial.jsonl"]


def test_two_answers_to_one_question_are_an_error(tmp_path):
    answer(tmp_path, [1], rank=0)
    journal = PredictionJournal(tmp_path, BATCHES)
    journal.open(1)
    journal.append([prediction(KEYS[2], answer="B").to_line()])
    with pytest.raises(ValueError, match=r"item 2 of mmvu has another answer.*at a time"):
        journal.gather()


def test_a_broken_line_in_the_middle_is_named(tmp_path):
    answer(tmp_path, [1, 2])
    part = tmp_path / "predictions.rank0.partial.jsonl"
    part.write_text("{}\n" + part.read_text())
    with pytest.raises(ValueError, match=r"predictions\.rank0\.partial\.jsonl:1: .*lacks"):
        PredictionJournal(tmp_path, BATCHES).gather()


class Killed(BaseException):
    pass


@pytest.mark.parametrize("seed", range(20))
def test_interruptions_at_any_call_of_the_file_system(tmp_path, monkeypatch, seed):
    """Random kills before or after each rename, removal and sync; then the journal is finished."""
    draw = random.Random(seed)
    with monkeypatch.context() as patched:
        for owner, name in ((Path, "replace"), (Path, "unlink"), ("os", "fsync")):
            target = f"{owner}.{name}" if isinstance(owner, str) else f"{owner.__module__}.{owner.__qualname__}.{name}"
            patched.setattr(target, _deadly(owner, name, draw))
        for _ in range(30):
            try:
                _session(tmp_path, draw)
            except Killed:
                part = tmp_path / "predictions.rank0.partial.jsonl"
                if part.exists() and draw.random() < 0.5:
                    part.write_bytes(part.read_bytes()[: draw.randrange(part.stat().st_size + 1)])
    _session(tmp_path, draw)
    assert read_predictions(tmp_path / "predictions.jsonl") == [prediction(key) for key in KEYS]
    assert names(tmp_path) == ["predictions.jsonl"]


def _session(folder: Path, draw: random.Random) -> None:
    journal = PredictionJournal(folder, BATCHES)
    journal.gather()
    answered = journal.answered()
    journal.open(0)
    for batch in BATCHES:
        if not answered.keys() >= set(batch):
            journal.append(prediction(key).to_line() for key in batch)
    journal.close()
    assert journal.finish()[1]


def _deadly(owner, name, draw):
    import os

    real = getattr(os if owner == "os" else owner, name)

    def call(*arguments, **options):
        if draw.random() < 0.15:
            raise Killed
        result = real(*arguments, **options)
        if draw.random() < 0.15:
            raise Killed
        return result

    return call


def test_journals_of_one_folder_leave_each_other_alone(tmp_path):
    one, other = Journal(tmp_path / "rows.jsonl"), Journal(tmp_path / "rows2.jsonl")
    for journal in (one, other):
        journal.open(0)
        journal.append(["{}\n"])
        journal.close()
    one.publish(["{}\n"])
    assert names(tmp_path) == ["rows.jsonl", "rows2.rank0.partial.jsonl"]
