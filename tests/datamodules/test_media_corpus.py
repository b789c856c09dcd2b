"""Every kind of file through the reader, `check data`, training and evaluation: right, or named; never a hang."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning import Callback

from datamodules.checks.data_check import MediaCheck, check_data
from datamodules.evaluation.benchmark_datamodule import BenchmarkDataModule
from datamodules.media import read_media
from datamodules.records import RecordFile, scan
from datamodules.types import VideoRecord
from datamodules.video.types import VideoReadError
from datamodules.video.video_reader import resize
from rewards.types import ProblemType
from tests.conftest import DEMO_TEMPLATE
from tests.datamodules.bad_files import OUTSIDE, bad_images, bad_places, bad_videos
from tests.datamodules.media_corpus import FRAMES, MediaKind, h264, sound_videos
from tests.datamodules.sound_images import sound_images
from tests.lightning_modules.module_runs import data_module, scalars, sft_module, trainer
from tests.performance.video_cases import frame_number, full_decode

KINDS = [*sound_videos(), *sound_images(), *bad_videos(), *bad_images(), *bad_places()]
RECORDED = [kind for kind in KINDS if kind.in_records]
BAD = {kind.name for kind in RECORDED if kind.error}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with all files, a folder for each kind, and with `all.jsonl`, which names them."""
    folder = tmp_path_factory.mktemp("corpus") / "data"
    folder.mkdir()
    h264(frames=30)(folder.parent / OUTSIDE)
    rows = []
    for kind in KINDS:
        write(kind, folder)
        if kind.in_records:
            rows.append(row(kind))
    (folder / "all.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def write(kind: MediaKind, folder: Path) -> None:
    kind.write(folder / kind.file)


def row(kind: MediaKind) -> dict:
    return {
        "problem_id": kind.name,
        "problem": "what",
        "data_type": kind.data_type,
        "problem_type": "free-form",
        "process": "<think>it</think>",
        "solution": "<answer>it</answer>",
        "path": kind.file,
    }


def record(kind: MediaKind) -> VideoRecord:
    return VideoRecord(
        problem_id=kind.name,
        problem="what",
        data_type=kind.data_type,
        problem_type=ProblemType.FREE_FORM,
        solution="<answer>it</answer>",
        path=kind.file,
        file=Path("all.jsonl"),
        line=1,
    )


def test_the_corpus_is_large() -> None:
    assert len(KINDS) >= 60
    assert len({kind.name for kind in KINDS}) == len({kind.file for kind in KINDS}) == len(KINDS)
    assert all([kind.numbers, kind.pixels is not None, kind.error].count(None) <= 2 for kind in KINDS)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.numbers], ids=str)
def test_frames_of_good_videos_are_exact(kind: MediaKind, corpus: Path) -> None:
    frames = read_media(record(kind), corpus, FRAMES).frames
    upright = torch.rot90(frames, -kind.turned, (2, 3)) if kind.turned else frames
    assert [frame_number(frame) for frame in upright] == list(kind.numbers)
    truth = [torch.rot90(frame, kind.turned, (1, 2)) for frame in full_decode(corpus / kind.file)]
    first = kind.numbers[0]
    expected = [resize(truth[number - first], *frames.shape[2:]) for number in kind.numbers]
    assert torch.equal(frames, torch.stack(expected))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.pixels is not None], ids=str)
def test_good_images_are_what_a_browser_shows(kind: MediaKind, corpus: Path) -> None:
    (frame,) = read_media(record(kind), corpus, FRAMES).frames
    difference = np.abs(frame.permute(1, 2, 0).numpy().astype(int) - kind.pixels)
    assert difference.max() <= kind.tolerance


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.error], ids=str)
def test_bad_files_are_named(kind: MediaKind, corpus: Path) -> None:
    with pytest.raises(VideoReadError, match=kind.error) as caught:
        read_media(record(kind), corpus, FRAMES)
    assert str(caught.value).startswith(f"all.jsonl:1 (problem_id {kind.name}): ")
    assert kind.file in str(caught.value)
    assert str(caught.value).isprintable()


def test_check_data_names_the_bad_ones_alone(corpus: Path) -> None:
    report = check_data(scan(corpus / "all.jsonl"), MediaCheck(data_root=corpus, config=FRAMES), num_threads=2)
    found = {problem.where.partition("(problem_id ")[2].removesuffix(")") for problem in report.problems}
    assert found == BAD
    assert len(report.sizes) == len(RECORDED) - len(BAD)
    assert all(line.isprintable() for line in report.render().splitlines())


@pytest.fixture(scope="module")
def in_batches_of_eight(corpus: Path) -> Path:
    """The corpus' records, and text records that fill the last batch."""
    rows = (corpus / "all.jsonl").read_text().splitlines()
    text = {"data_type": "text", "path": None}
    rows += [json.dumps({**row(KINDS[0]), **text, "problem_id": f"text {number}"}) for number in range(-len(rows) % 8)]
    file = corpus / "filled.jsonl"
    file.write_text("".join(f"{line}\n" for line in rows))
    return file


class Seen(Callback):
    """What was trained on and validated."""

    def __init__(self) -> None:
        self.trained: Counter[str] = Counter()
        self.validated: Counter[str] = Counter()

    def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
        self.trained.update(record.problem_id for record in batch.records)

    def on_validation_batch_start(self, trainer, module, batch, batch_idx, dataloader_idx=0) -> None:
        self.validated.update(prompt.record.problem_id for prompt in batch.prompts)


def test_training_goes_on_with_every_good_record(in_batches_of_eight: Path, tiny_folder: Path, tmp_path: Path) -> None:
    """Fine-tuning over the corpus, and validation: good records as often as they come, bad ones listed."""
    options = {"batch_size": 8, "on_bad_media": "quarantine", "max_bad_fraction": 0.9, "num_workers": 2}
    data = data_module(tiny_folder, in_batches_of_eight, train_format="sft", **options)
    seen = Seen()
    trainer(tmp_path, max_epochs=1, callbacks=[seen]).fit(sft_module(tiny_folder), data)
    records = list(RecordFile(in_batches_of_eight, in_batches_of_eight.parent))
    good = {record.problem_id for record in records} - BAD
    for counts in (seen.trained, seen.validated):
        assert set(counts) == good
        assert sum(counts.values()) == len(records)  # a substitute for every bad one
    listed = [json.loads(line) for line in (tmp_path / "bad_media.jsonl").read_text().splitlines()]
    assert sorted(row["problem_id"] for row in listed) == sorted(BAD)
    reasons = {row["problem_id"]: row["reason"] for row in listed}
    assert all(re.search(kind.error, reasons[kind.name]) for kind in RECORDED if kind.error)
    logged = scalars(tmp_path)
    assert logged["data/bad_records"][-1] == len(BAD)
    assert all(math.isfinite(loss) for loss in logged["train/loss"])


def test_evaluation_fails_the_bad_ones_alone(corpus: Path, tiny_folder: Path) -> None:
    data = BenchmarkDataModule(
        model_name_or_path=str(tiny_folder),
        data_root=str(corpus),
        benchmarks=["mmvu"],
        files={"mmvu": str(corpus / "all.jsonl")},
        eval_frames=FRAMES,
        eval_batch_size=8,
        prompt=DEMO_TEMPLATE,
        num_workers=2,
    )
    data.setup("validate")
    data.trainer = SimpleNamespace(global_rank=0, world_size=1)
    items = {item.record.problem_id: item for batch in data.val_dataloader() for item in batch.items}
    assert {name for name, item in items.items() if item.failure is not None} == BAD
    for kind in RECORDED:
        item = items[kind.name]
        if kind.error:
            assert re.search(kind.error, item.failure)
        else:
            assert torch.equal(item.prompt.frames, read_media(record(kind), corpus, FRAMES).frames)
