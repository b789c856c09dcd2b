"""Batches of encoded records for Lightning: decoding, resizing and encoding happen in the loader's workers."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

import lightning as L
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch.utils.data import DataLoader, Dataset

from datamodules.bad_media import (
    FILE_NAME,
    MAX_SUBSTITUTES,
    NO_FAULT_OF_THE_RECORD,
    BadMediaLog,
    BadRecordError,
    OnBadMedia,
    bad_record,
    substitutes,
)
from datamodules.collate import PromptCollator, SFTCollator, SFTSample
from datamodules.encoding import PromptEncoder, media_token_id
from datamodules.media import find_missing, read_media
from datamodules.prompts import PromptTemplate
from datamodules.records import RecordSet, open_records
from datamodules.sampler import ResumableSampler
from datamodules.text_table import listed
from datamodules.types import BadRecord, EncodedPrompt, PromptBatch, SFTBatch, VideoRecord
from datamodules.video.clip_cache import ClipCache, ClipCacheConfig
from datamodules.video.decoding import READERS
from datamodules.video.frame_sampling import EVAL, TRAIN, FrameConfig
from datamodules.video.types import MediaConfig, ReaderName
from datamodules.worker_signals import prepare_worker
from rewards.errors import UserError, check_choice

TrainFormat = Literal["sft", "prompts"]


@dataclass(kw_only=True, eq=False)
class EncodedRecords(Dataset):
    """Records as prompts, or as prompts with targets."""

    records: RecordSet
    encoder: PromptEncoder
    config: FrameConfig
    """Frames and pixels."""
    reader: ReaderName
    media: MediaConfig
    with_targets: bool
    """Give `SFTSample`s."""
    on_bad_media: OnBadMedia
    clip_cache: ClipCache | None = None
    known_bad: dict[int, BadRecord] = field(default_factory=dict)
    """What this process found bad before: it is not read again, since that may take minutes."""

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> EncodedPrompt | SFTSample:
        """Record `index`, or with "quarantine" the first of its substitutes that can be used.

        Raises:
            BadRecordError: the record cannot be used, or its substitutes cannot.
            ImportError, ReaderStartError: the reader is not installed or does not start.
        """
        if self.on_bad_media == "raise":
            try:
                return self.encoded(index)
            except ValueError as error:
                record = self.records[index]
                raise BadRecordError(f"{record.where}: {bad_record(record, error).reason}") from error
            except Exception as error:
                error.add_note(f"The record: {self.records[index].where}")
                raise
        bad: list[BadRecord] = []
        for place in islice(chain([index], substitutes(self.records, index)), MAX_SUBSTITUTES):
            if place not in self.known_bad:
                try:
                    return self.encoded(place, replaces=tuple(bad))
                except NO_FAULT_OF_THE_RECORD:
                    raise
                except Exception as error:  # noqa: BLE001 - whatever it is, it is this record's
                    self.known_bad[place] = bad_record(self.records[place], error)
            bad.append(self.known_bad[place])
        record = self.records[index]
        raise BadRecordError(
            f"{record.where}: {bad[0].reason} No other {record.data_type} record can take its place: "
            f"{len(bad) - 1} were tried and cannot be used either."
        )

    def encoded(self, index: int, replaces: tuple[BadRecord, ...] = ()) -> EncodedPrompt | SFTSample:
        """Record `index` itself; any exception of reading or encoding it comes out."""
        prompt = self.prompt(index, replaces)
        if not self.with_targets:
            return prompt
        return SFTSample(prompt=prompt, target_ids=self.encoder.encode_target(prompt.record))

    def prompt(self, index: int, replaces: tuple[BadRecord, ...] = ()) -> EncodedPrompt:
        """As `encoded`, never with a target."""
        record = self.records[index]
        clip = read_media(
            record, self.records.data_root, self.config, reader=self.reader, media=self.media, cache=self.clip_cache
        )
        return replace(self.encoder.encode_prompt(record, clip), replaces=replaces)


class VideoDataModule(L.LightningDataModule):
    """Video, image and text records, mixed in one batch.

    Args:
        model_name_or_path: checkpoint whose tokenizer and chat template are used; the command line takes the model's.
        data_root: folder that media paths are relative to.
        train_files: data files (JSON list or JSONL) for fit.
        val_files: data files for validation.
        test_files: data files for test.
        predict_files: data files for predict.
        train_format: "sft" gives prompts with targets, "prompts" gives prompts to sample from.
        prompt: the prompt texts; null takes the default ones.
        train_frames: frames and pixels in fit.
        eval_frames: frames and pixels in validate, test and predict.
        reader: video back end: pyav, decord or torchcodec.
        media: time limit, strictness and bounds of reading a file.
        on_bad_media: "raise" ends the run at a record that cannot be used, "quarantine" takes another one of the same
            data type in its place and lists it in bad_media.jsonl in the trainer's default_root_dir.
        max_bad_fraction: with "quarantine", more bad records than this fraction of those drawn end the run.
        clip_cache: folder and size limit of decoded clips that later epochs and runs read in place of the media; null
            decodes them each time.
        seconds_per_patch: seconds of video per temporal patch for the rotary positions; null takes the real value.
        max_prompt_tokens: a longer prompt is an error; prompts are never cut.
        batch_size: records per rank and step in fit.
        eval_batch_size: records per rank and step elsewhere.
        num_workers: loader processes per rank.
        shuffle: draw the training records in a new order every epoch.
        seed: of that order.
    """

    trainer: L.Trainer  # pyright: ignore[reportIncompatibleVariableOverride] - there when a loader is made

    def __init__(
        self,
        model_name_or_path: str,
        data_root: str = ".",
        train_files: list[str] | None = None,
        val_files: list[str] | None = None,
        test_files: list[str] | None = None,
        predict_files: list[str] | None = None,
        train_format: TrainFormat = "prompts",
        prompt: PromptTemplate | None = None,
        train_frames: FrameConfig = TRAIN,
        eval_frames: FrameConfig = EVAL,
        reader: ReaderName = "pyav",
        media: MediaConfig = MediaConfig(),  # noqa: B008 - frozen, and its fields show in --help
        on_bad_media: OnBadMedia = "raise",
        max_bad_fraction: float = 0.05,
        clip_cache: ClipCacheConfig | None = None,
        seconds_per_patch: float | None = None,
        max_prompt_tokens: int = 16384,
        batch_size: int = 1,
        eval_batch_size: int = 1,
        num_workers: int = 2,
        shuffle: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, value in (("batch_size", batch_size), ("eval_batch_size", eval_batch_size)):
            if value < 1:
                raise UserError(f"data.{name} is {value}; it must be >= 1.")
        check_choice("data.reader", reader, READERS)
        if not 0 <= max_bad_fraction < 1:
            raise UserError(f"data.max_bad_fraction is {max_bad_fraction}; it must be at least 0 and less than 1.")
        self.model_name_or_path = model_name_or_path
        self.data_root = data_root
        files = {"fit": train_files, "validate": val_files, "test": test_files, "predict": predict_files}
        self.files = {stage: paths or [] for stage, paths in files.items()}
        self.train_format: TrainFormat = train_format
        self.prompt = prompt or PromptTemplate()
        self.train_frames = train_frames
        self.eval_frames = eval_frames
        self.reader: ReaderName = reader
        self.media = media
        self.on_bad_media: OnBadMedia = on_bad_media
        self.max_bad_fraction = max_bad_fraction
        self.clip_cache = None if clip_cache is None else ClipCache(clip_cache)
        self.seconds_per_patch = seconds_per_patch
        self.max_prompt_tokens = max_prompt_tokens
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers
        self.shuffle = shuffle
        self.seed = seed
        self.records: dict[str, RecordSet] = {}
        self.tokenizer: Any = None
        self._train_sampler: ResumableSampler | None = None
        self._resume_from: dict[str, Any] | None = None
        self._bad_media: BadMediaLog | None = None

    def load_tokenizer(self) -> None:
        """Load the checkpoint's tokenizer, once.

        Raises:
            UserError: there is none in that place, or it is not one of a Qwen2-VL model.
        """
        if self.tokenizer is None:
            from transformers import AutoTokenizer

            try:
                self.tokenizer = AutoTokenizer.from_pretrained(self.model_name_or_path)
            except (OSError, ValueError) as error:
                raise self._no_checkpoint("tokenizer", error) from error
            media_token_id(self.tokenizer, "<|video_pad|>")  # a folder without tokenizer files gives an empty one

    def check_patch_sizes(self, config: FrameConfig) -> None:
        """Compare patch sizes with those of the checkpoint's vision tower.

        Raises:
            UserError: they differ, or the checkpoint has no vision tower.
        """
        from transformers import AutoConfig

        try:
            vision = AutoConfig.from_pretrained(self.model_name_or_path).vision_config
        except (OSError, ValueError, AttributeError) as error:
            raise self._no_checkpoint("config of a vision tower", error) from error
        wanted = {
            "patch_size": vision.patch_size,
            "merge_size": vision.spatial_merge_size,
            "temporal_patch_size": vision.temporal_patch_size,
        }
        for name, size in wanted.items():
            if getattr(config, name) != size:
                raise UserError(
                    f"train_frames or eval_frames has {name} {getattr(config, name)}, but the vision tower of "
                    f"{self.model_name_or_path} has {size}; set {name}: {size} in data.init_args.train_frames and "
                    "data.init_args.eval_frames."
                )

    def stage_files(self, stage: str) -> list[str]:
        """Data files of fit, validate, test or predict.

        Raises:
            UserError: an unknown stage, or one without files.
        """
        check_choice("stage", stage, self.files)
        if not self.files[stage]:
            argument = {"fit": "train_files", "validate": "val_files"}.get(stage, f"{stage}_files")
            raise UserError(f"`{stage}` needs data: give at least one file in data.init_args.{argument}.")
        return self.files[stage]

    def find_fault(self, record: VideoRecord, seconds: float | None) -> str | None:
        """What is wrong with a record whose media are sound, for `check data`; subclasses know their data.

        Args:
            record: of one of the data files.
            seconds: of its video that are read; None for other media.
        """
        return None

    def needs_process(self, stage: str) -> bool:
        """Whether records of this stage must have a chain of thought."""
        return stage == "fit" and self.train_format == "sft"

    def setup(self, stage: str) -> None:
        stage = TrainerFn(stage).value
        self.load_tokenizer()
        self.check_patch_sizes(self.eval_frames)
        if stage == "fit":
            self.check_patch_sizes(self.train_frames)
            self._open("fit", required=True)
            self._open("validate", required=False)
            self._look_for_media()
        else:
            self._open(stage, required=True)

    def train_dataloader(self) -> DataLoader:
        sft = self.train_format == "sft"
        dataset = self._dataset("fit", self.train_frames, with_targets=sft)
        sampler = self._sampler(dataset, self.batch_size, shuffle=self.shuffle, drop_last=True)
        if self._resume_from is not None:
            may_lack = self.max_bad_fraction * len(dataset) if self.on_bad_media == "quarantine" else 0
            sampler.load_state_dict(self._resume_from, may_lack=int(may_lack))
            self._resume_from = None
        self._train_sampler = sampler
        return self._loader(dataset, sampler, SFTCollator if sft else PromptCollator)

    def val_dataloader(self) -> DataLoader | list:
        return self._eval_loader("validate") if "validate" in self.records else []

    def test_dataloader(self) -> DataLoader:
        return self._eval_loader("test")

    def predict_dataloader(self) -> DataLoader:
        return self._eval_loader("predict")

    def state_dict(self) -> dict[str, Any]:
        """How far training is in the order of records; empty before training."""
        if self._train_sampler is None:
            return {}
        loop = self.trainer.fit_loop
        return self._train_sampler.state_dict(
            epoch=loop.epoch_progress.current.ready - 1, batches=loop.epoch_loop.batch_progress.current.ready
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Let the training loader continue where `state_dict` was taken.

        A strategy that restores checkpoints after its set-up comes here late: the length of the learning-rate schedule
        has then asked for the loader, whose workers already read the start of the epoch. The trainer drops that loader
        and asks for another one.
        """
        self._resume_from = state_dict
        if self._train_sampler is not None:
            fit_loop = self.trainer.fit_loop
            fit_loop.teardown()
            fit_loop._combined_loader = None  # Lightning asks for a loader where it has none, and has no public way
            self._train_sampler = None

    def note_bad_records(self, batch: PromptBatch | SFTBatch) -> None:
        """List the records in whose place others stand in `batch`, for `on_bad_media: quarantine`.

        Raises:
            UserError: there are too many of them.
        """
        if self.on_bad_media == "raise":
            return
        if self._bad_media is None:
            file = Path(self.trainer.default_root_dir) / FILE_NAME
            is_trial = self.trainer.fast_dev_run  # pyright: ignore[reportAttributeAccessIssue] - set, not declared
            self._bad_media = BadMediaLog(
                file=None if is_trial else file,
                num_records=max(map(len, self.records.values())),
                max_fraction=self.max_bad_fraction,
            )
        self._bad_media.note(len(batch), batch.bad_records)

    def log_bad_records(self) -> None:
        """Log how many records the list of all ranks holds, where it has grown."""
        if self._bad_media is None or not self.trainer.is_global_zero:
            return
        if (total := self._bad_media.grown()) is not None:
            for logger in self.trainer.loggers:
                logger.log_metrics({"data/bad_records": total}, step=self.trainer.global_step)

    def teardown(self, stage: str) -> None:
        self.log_bad_records()  # those of the last batch, and of the other ranks' last batches

    def _no_checkpoint(self, part: str, error: Exception) -> UserError:
        return UserError(
            f"model_name_or_path is {self.model_name_or_path!r}, where no {part} was found. Give the folder or the "
            f"Hugging Face name of a Qwen2-VL or Qwen2.5-VL checkpoint. ({error})"
        )

    def _open(self, stage: str, *, required: bool) -> None:
        if stage in self.records or not (required or self.files[stage]):
            return
        require_process = self.needs_process(stage)
        records = open_records(self.stage_files(stage), self.data_root, require_process=require_process)
        for file in records.files:
            for message, (count, line) in file.doubts.items():
                rank_zero_warn(f"{file.path}: {count:,} of {len(file):,} records, the first in line {line}: {message}.")
        self.records[stage] = records

    def _look_for_media(self) -> None:
        """Say before the first step, and not when its record comes, which media are missing.

        Raises:
            UserError: files are missing, and `on_bad_media` is "raise" or they are too many for "quarantine".
        """
        started = time.perf_counter()
        files = [file for records in self.records.values() for file in records.files]
        missing, number = find_missing(files, progress=self.trainer is None or self.trainer.global_rank == 0)
        if not missing:
            if number:
                rank_zero_info(f"All {number:,} media files are there ({time.perf_counter() - started:.1f} s).")
            return
        message = f"{len(missing):,} of {number:,} media files do not exist:{listed(missing)}\n"
        if self.on_bad_media == "quarantine" and len(missing) <= self.max_bad_fraction * number:
            rank_zero_warn(f"{message}Other records will take the place of theirs, as data.on_bad_media says.")
            return
        limit = f" (at most max_bad_fraction {self.max_bad_fraction:g} of them may be missing)"
        raise UserError(
            f"{message}Set data.init_args.data_root to the folder that the paths are relative to, fetch the files, or "
            "leave their records out; data.init_args.on_bad_media quarantine trains without them"
            f"{limit if self.on_bad_media == 'quarantine' else ''}."
        )

    def _dataset(self, stage: str, config: FrameConfig, *, with_targets: bool = False) -> EncodedRecords:
        encoder = PromptEncoder(
            self.tokenizer,
            self.prompt,
            geometry=config,
            seconds_per_patch=self.seconds_per_patch,
            max_prompt_tokens=self.max_prompt_tokens,
        )
        return EncodedRecords(
            records=self.records[stage],
            encoder=encoder,
            config=config,
            reader=self.reader,
            media=self.media,
            with_targets=with_targets,
            on_bad_media=self.on_bad_media,
            clip_cache=self.clip_cache,
        )

    def _eval_loader(self, stage: str) -> DataLoader:
        dataset = self._dataset(stage, self.eval_frames)
        sampler = self._sampler(dataset, self.eval_batch_size, shuffle=False, drop_last=False)
        return self._loader(dataset, sampler, PromptCollator)

    def _sampler(self, dataset: EncodedRecords, batch_size: int, *, shuffle: bool, drop_last: bool) -> ResumableSampler:
        return ResumableSampler(
            len(dataset),
            batch_size=batch_size,
            seed=self.seed,
            rank=self.trainer.global_rank,
            world_size=self.trainer.world_size,
            shuffle=shuffle,
            drop_last=drop_last,
        )

    def _loader(
        self, dataset: Dataset, sampler: ResumableSampler, collator: type[PromptCollator | SFTCollator]
    ) -> DataLoader:
        return DataLoader(
            dataset,
            batch_size=sampler.batch_size,
            sampler=sampler,
            collate_fn=collator(pad_token_id=self.tokenizer.pad_token_id),
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            worker_init_fn=prepare_worker,
        )
