from __future__ import annotations

import itertools
import json
import logging
import re
import shutil
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from datamodules.prompts import PromptTemplate
from datamodules.types import PromptBatch, SFTBatch
from datamodules.video.frame_sampling import EVAL, TRAIN, FrameConfig
from datamodules.video_datamodule import VideoDataModule
from rewards.errors import UserError

FRAMES = FrameConfig(num_frames=4, min_pixels=784, max_pixels=3136, image_max_pixels=3136)
TEMPLATE = PromptTemplate(question=" {problem}{options}", instruction="", type_sentences={}, target_separator="")


@pytest.fixture
def build(tiny_folder, mixed_data):
    """A data module over the mixed data, set up as one rank of a trainer would."""

    def build(stage=None, rank=0, world_size=1, **options):
        arguments = {
            "data_root": str(mixed_data.parent),
            "train_files": [str(mixed_data)],
            "prompt": TEMPLATE,
            "train_frames": FRAMES,
            "eval_frames": FRAMES,
            "num_workers": 0,
            **options,
        }
        data = VideoDataModule(str(tiny_folder), **arguments)
        data.trainer = SimpleNamespace(global_rank=rank, world_size=world_size)
        if stage is not None:
            data.setup(stage)
        return data

    return build


def ids(batches):
    return [prompt.record.problem_id for batch in batches for prompt in batch.prompts]


def test_training_and_evaluation_frames_are_the_published_ones(build, mixed_data):
    files = {f"{stage}_files": [str(mixed_data)] for stage in ("val", "test", "predict")}
    data = build(train_frames=TRAIN, eval_frames=EVAL, **files)
    default = VideoDataModule("any")
    assert (default.train_frames, default.eval_frames) == (TRAIN, EVAL)
    for stage in ("fit", "test", "predict"):
        data.setup(stage)
    loaders = [data.train_dataloader(), data.val_dataloader(), data.test_dataloader(), data.predict_dataloader()]
    assert [loader.dataset.config for loader in loaders] == [TRAIN, EVAL, EVAL, EVAL]
    # A square clip is enlarged: sqrt(128) = 11.3, so to 12 tokens of 28 pixels; sqrt(256) = 16 exactly.
    clips = [loader.dataset[0].frames for loader in loaders[:2]]
    assert [tuple(clip.shape[2:]) for clip in clips] == [(12 * 28, 12 * 28), (16 * 28, 16 * 28)]


def test_a_batch_mixes_videos_images_and_text(build):
    (batch, *_) = build("fit", batch_size=6, shuffle=False).train_dataloader()
    assert isinstance(batch, PromptBatch)
    assert [prompt.record.data_type for prompt in batch.prompts] == [
        "video",
        "image",
        "text",
        "video",
        "image",
        "image",
    ]
    assert batch.vision.is_video.tolist() == [True, False, True, False, False]
    # 4 / 2 temporal patches of 56 / 14 x 56 / 14.
    assert batch.vision.grid_thw[0].tolist() == [2, 4, 4]
    assert len(batch.vision.patches) == int(batch.vision.grid_thw.prod(dim=1).sum())
    assert batch.attention_mask.sum(dim=1).tolist() == [len(prompt.input_ids) for prompt in batch.prompts]


def test_fine_tuning_gets_targets_and_the_same_prompts(build):
    prompts = next(iter(build("fit", batch_size=4).train_dataloader()))
    targets = next(iter(build("fit", batch_size=4, train_format="sft").train_dataloader()))
    assert isinstance(targets, SFTBatch)
    assert [record.problem_id for record in targets.records] == ids([prompts])
    for row, prompt in enumerate(prompts.prompts):
        length = len(prompt.input_ids)
        assert torch.equal(targets.input_ids[row, :length], prompt.input_ids)
        assert (targets.labels[row, :length] == -100).all()
        assert (targets.labels[row] != -100).any()


def test_validation_gets_prompts_in_fine_tuning_too(build, mixed_data):
    data = build("fit", train_format="sft", val_files=[str(mixed_data)], eval_batch_size=5)
    batches = list(data.val_dataloader())
    assert [len(batch) for batch in batches] == [5, 5, 2]
    assert ids(batches) == [str(number) for number in range(12)]


def test_a_chain_of_thought_is_needed_in_fine_tuning_alone(build, mixed_data, tmp_path):
    rows = [json.loads(line) for line in mixed_data.read_text().splitlines()]
    for row in rows:
        del row["process"]
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = [str(tmp_path / "answers.jsonl")]
    build("fit", train_files=files)
    build("fit", train_format="sft", val_files=files)
    with pytest.raises(ValueError, match=r"answers.jsonl:1 \(problem_id 0\): process is missing"):
        build("fit", train_format="sft", train_files=files)


@pytest.mark.parametrize(("world_size", "batch_size"), [(1, 4), (2, 3), (2, 5), (5, 1)])
def test_evaluation_visits_every_record_once_over_the_ranks(build, mixed_data, world_size, batch_size):
    ranks = [
        build("validate", rank, world_size, val_files=[str(mixed_data)], eval_batch_size=batch_size).val_dataloader()
        for rank in range(world_size)
    ]
    visited = [ids(loader) for loader in ranks]
    assert sorted(itertools.chain.from_iterable(visited), key=int) == [str(number) for number in range(12)]
    assert [len(loader) for loader in ranks] == [-(-len(part) // batch_size) for part in visited]


def test_training_shares_the_records_out_to_the_ranks(build):
    ranks = [ids(build("fit", rank, 2, batch_size=3).train_dataloader()) for rank in range(2)]
    assert sorted(ranks[0] + ranks[1], key=int) == [str(number) for number in range(12)]
    assert ids(build("fit", batch_size=6).train_dataloader())[:6] == [
        number for pair in zip(ranks[0][:3], ranks[1][:3], strict=True) for number in pair
    ]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_loader_keeps_the_samplers_order(build, num_workers):
    loader = build("fit", batch_size=2, seed=3, num_workers=num_workers).train_dataloader()
    order = list(loader.sampler)
    assert order != sorted(order)
    assert ids(loader) == [str(index) for index in order]
    loader.sampler.set_epoch(1)
    assert ids(loader) == [str(index) for index in loader.sampler] != [str(index) for index in order]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (
            {"patch_size": 16, "max_pixels": 4096},
            "patch_size 16, but the vision tower of .* has 14; set patch_size: 14",
        ),
        ({"merge_size": 1}, "merge_size 1, but .* has 2"),
        ({"temporal_patch_size": 4}, "temporal_patch_size 4, but .* has 2"),
    ],
)
@pytest.mark.parametrize("name", ["train_frames", "eval_frames"])
def test_patch_sizes_must_be_those_of_the_model(build, sizes, message, name):
    with pytest.raises(ValueError, match=message):
        build("fit", **{name: FrameConfig(num_frames=4, min_pixels=784, **{"max_pixels": 3136, **sizes})})


def test_an_unknown_reader_is_refused_at_construction(build):
    with pytest.raises(ValueError, match=r"data\.reader is 'cv2'; allowed are 'pyav', 'decord', 'torchcodec'\."):
        build(reader="cv2")


def test_a_checkpoint_without_a_vision_tower_is_refused(build, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert", "hidden_size": 8}')
    data = build()
    data.model_name_or_path = str(tmp_path)
    with pytest.raises(ValueError, match=r"where no config of a vision tower was found\. Give the folder"):
        data.check_patch_sizes(FRAMES)


class Witness(L.LightningModule):
    """Trains nothing and remembers which records it saw."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append((self.current_epoch, batch_idx, ids([batch])))
        return self.weight.sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trained(data, callbacks=(), checkpoint=None):
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=2,
        logger=False,
        callbacks=list(callbacks),
        enable_checkpointing=bool(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    module = Witness()
    trainer.fit(module, datamodule=data, ckpt_path=checkpoint)
    return module.seen


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_resumed_fit_sees_the_records_that_were_left(build, tmp_path, caplog, num_workers):
    caplog.set_level(logging.ERROR, logger="lightning.pytorch")
    checkpoints = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    # 12 records: 4 batches of 3 per epoch; the checkpoint of step 4 ends the first.
    whole = trained(build(batch_size=3, seed=7), [checkpoints])
    assert [sorted(itertools.chain(*(part for _, _, part in whole[a : a + 4])), key=int) for a in (0, 4)] == [
        [str(number) for number in range(12)]
    ] * 2
    assert [part for _, _, part in whole[:4]] != [part for _, _, part in whole[4:]]
    for step in (1, 3, 4, 6):
        resumed = build(batch_size=3, seed=7, num_workers=num_workers)
        assert trained(resumed, checkpoint=tmp_path / f"step={step}.ckpt") == whole[step:]


@pytest.mark.filterwarnings("ignore")
def test_a_checkpoint_of_other_records_is_refused(build, mixed_data, tmp_path, caplog):
    caplog.set_level(logging.ERROR, logger="lightning.pytorch")
    trained(build(), [ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=5, save_top_k=-1)])
    lines = mixed_data.read_text().splitlines(keepends=True)
    (tmp_path / "fewer.jsonl").write_text("".join(lines[:9]))
    with pytest.raises(ValueError, match="was trained with num_records 12, this run has 9"):
        trained(build(train_files=[str(tmp_path / "fewer.jsonl")]), checkpoint=tmp_path / "step=5.ckpt")


def test_before_training_there_is_no_state(build):
    assert build("fit").state_dict() == {}


def without(mixed_data, tmp_path, count):
    """The mixed data in a folder that lacks the files of so many records, and their lines."""
    rows = [json.loads(line) for line in mixed_data.read_text().splitlines()]
    shutil.copytree(mixed_data.parent, tmp_path / "data")
    lines = [line for line, row in enumerate(rows, start=1) if row.get("path")][:count]
    for line in lines:
        (tmp_path / "data" / rows[line - 1]["path"]).unlink()
    data = tmp_path / "data" / mixed_data.name
    return {"data_root": str(data.parent), "train_files": [str(data)]}, lines


def test_missing_media_are_named_before_the_first_step(build, mixed_data, tmp_path):
    options, lines = without(mixed_data, tmp_path, count=2)
    with pytest.raises(UserError) as caught:
        build("fit", **options)
    first, *shown, advice = str(caught.value).splitlines()
    files = len({row["path"] for row in map(json.loads, mixed_data.read_text().splitlines()) if row.get("path")})
    assert first == f"2 of {files} media files do not exist:"
    assert [int(re.search(r"\.jsonl:(\d+): ", line)[1]) for line in shown] == lines
    assert "on_bad_media quarantine" in advice


def test_missing_media_are_a_warning_where_others_take_their_place(build, mixed_data, tmp_path):
    options, _ = without(mixed_data, tmp_path, count=1)
    with pytest.warns(UserWarning, match=r"1 of \d+ media files do not exist(.|\n)*Other records will take the place"):
        build("fit", **options, on_bad_media="quarantine", max_bad_fraction=0.5)
    with pytest.raises(UserError, match=r"at most max_bad_fraction 0\.01 of them may be missing"):
        build("fit", **options, on_bad_media="quarantine", max_bad_fraction=0.01)


def test_the_validation_files_media_are_looked_for_too(build, mixed_data, tmp_path, caplog):
    options, _ = without(mixed_data, tmp_path, count=0)
    with caplog.at_level("INFO"):
        build("fit", **options)
    assert re.search(r"All \d+ media files are there", caplog.text)
    validation, (line,) = without(mixed_data, tmp_path / "validation", count=1)
    lines = mixed_data.read_text().splitlines(keepends=True)
    train = tmp_path / "validation" / "train.jsonl"
    train.write_text("".join(each for each in lines if not json.loads(each).get("path")))
    files = {"train_files": [str(train)], "val_files": validation["train_files"]}
    with pytest.raises(UserError, match=rf"^1 of \d+ media files do not exist:\n  \S+{mixed_data.name}:{line}: "):
        build("fit", **{**validation, **files})


def test_doubtful_fields_are_warned_of(build, mixed_data, tmp_path):
    rows = [json.loads(line) for line in mixed_data.read_text().splitlines()]
    rows[0]["proces"] = rows[0].pop("process")
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = r"data\.jsonl: 1 of 12 records, the first in line 1: field 'proces' is not read"
    with pytest.warns(UserWarning, match=said):
        build("fit", train_files=[str(tmp_path / "data.jsonl")])
