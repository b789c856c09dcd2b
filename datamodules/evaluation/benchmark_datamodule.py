"""Benchmarks for Lightning: their questions in fixed batches, in which an unreadable item does not stop the run.

A batch is a stretch of one benchmark's data file. It is the same whatever other benchmarks the run has, on any number
of ranks and after any interruption, so that an answer cannot depend on them through rounding in a padded batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader, Dataset

from datamodules.bad_media import NO_FAULT_OF_THE_RECORD, bad_record
from datamodules.collate import PromptCollator
from datamodules.evaluation.benchmarks import BENCHMARKS
from datamodules.evaluation.benchmarks.benchmark import Benchmark
from datamodules.media import record_times
from datamodules.records import RecordFile
from datamodules.text_table import listed
from datamodules.types import EncodedPrompt, Movable, PromptBatch, VideoRecord
from datamodules.video_datamodule import EncodedRecords, VideoDataModule
from rewards.errors import UserError
from rewards.evaluation.predictions import gold_answer, grade
from rewards.evaluation.scoring import ScoringRule


@dataclass(frozen=True, order=True)
class ItemKey:
    """Which question of a run."""

    benchmark: str
    index: int
    """Place in the benchmark's data file, from 0."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkItem:
    """One question, encoded, or the reason why it cannot be."""

    key: ItemKey
    record: VideoRecord
    prompt: EncodedPrompt | None
    """None for a failed item."""
    failure: str | None
    """What is wrong with media or prompt; None where there is a prompt."""


@dataclass(kw_only=True)
class BenchmarkBatch(Movable):
    """Questions of one benchmark; empty where a rank has nothing to do."""

    items: list[BenchmarkItem]
    prompts: PromptBatch | None
    """Of the items that have one, in their order; None if none has."""


def collate_questions(items: Sequence[BenchmarkItem], *, pad_token_id: int) -> BenchmarkBatch:
    """Left-pads the prompts of a batch."""
    prompts = [item.prompt for item in items if item.prompt is not None]
    collate = PromptCollator(pad_token_id=pad_token_id)
    return BenchmarkBatch(items=list(items), prompts=collate(prompts) if prompts else None)


@dataclass(frozen=True, kw_only=True, eq=False)
class BenchmarkItems(Dataset):
    """Encoded questions by `ItemKey`; faults of an item's media or prompt become its `failure`."""

    encoded: EncodedRecords
    """The records of all benchmarks, one file after the other."""
    starts: dict[str, int]
    """Benchmark -> place of its first record among them."""

    def __getitem__(self, key: ItemKey) -> BenchmarkItem:
        place = self.starts[key.benchmark] + key.index
        record = self.encoded.records[place]
        try:
            prompt, failure = self.encoded.prompt(place), None
        except NO_FAULT_OF_THE_RECORD:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this item's
            prompt, failure = None, f"{record.where}: {bad_record(record, error).reason}"
        return BenchmarkItem(key=key, record=record, prompt=prompt, failure=failure)


class BenchmarkDataModule(VideoDataModule):
    """The questions of one or more benchmarks, for validate and test.

    Args:
        benchmarks: names of `BENCHMARKS`, in the order in which they are answered.
        files: benchmark -> data file; of one that is not named, the published file's name in `data_root`.
        limit: only the first so many questions of each benchmark; null for all.
        kwargs: the arguments of `VideoDataModule`, but for its files.
    """

    def __init__(
        self,
        benchmarks: list[str],
        files: dict[str, str] | None = None,
        limit: int | None = None,
        **kwargs: Any,
    ) -> None:
        _check_names(benchmarks, files or {}, limit)
        if kwargs.get("on_bad_media", "raise") != "raise":
            raise UserError(
                "data.init_args.on_bad_media is 'quarantine'; a benchmark counts a question that cannot be read as "
                "failed and takes no other in its place. Remove the option."
            )
        self.benchmarks = {name: BENCHMARKS[name] for name in benchmarks}
        self.limit = limit
        root = Path(kwargs.get("data_root", "."))
        self.paths = {name: (files or {}).get(name, str(root / BENCHMARKS[name].file)) for name in benchmarks}
        paths = list(self.paths.values())
        super().__init__(train_files=None, val_files=paths, test_files=paths, predict_files=None, **kwargs)
        self._finished: frozenset[ItemKey] = frozenset()

    def stage_files(self, stage: str) -> list[str]:
        if stage not in ("validate", "test"):
            raise UserError(f"A BenchmarkDataModule is for validate and test, not for {stage}.")
        return super().stage_files(stage)

    def find_fault(self, record: VideoRecord, seconds: float | None) -> str | None:
        """A mistaken copy of a video, missing times, a video of another length than its category's."""
        (name,) = (name for name, path in self.paths.items() if Path(path) == record.file)
        return self.benchmarks[name].defect(record, seconds)

    def files_of(self) -> Iterator[tuple[Benchmark, RecordFile]]:
        """Each benchmark with its opened data file."""
        (records,) = self.records.values()
        return zip(self.benchmarks.values(), records.files, strict=True)

    def keys(self) -> list[ItemKey]:
        """All questions of the run, in order."""
        return [key for batch in self.batches() for key in batch]

    def items(self) -> Iterator[tuple[ItemKey, VideoRecord]]:
        """All questions of the run with their records, in order; reads the files."""
        for benchmark, file in self.files_of():
            for index in self._range(file):
                yield ItemKey(benchmark.name, index), file[index]

    def batches(self) -> list[list[ItemKey]]:
        """All batches of the run, in order."""
        size = self.eval_batch_size
        return [
            [ItemKey(benchmark.name, index) for index in self._range(file)[start : start + size]]
            for benchmark, file in self.files_of()
            for start in range(0, len(self._range(file)), size)
        ]

    def skip(self, finished: frozenset[ItemKey]) -> None:
        """Leave out the batches whose items all are in `finished`; call it before the loader is made."""
        self._finished = finished

    def check_records(self, rules: Sequence[ScoringRule]) -> dict[str, list[str]]:
        """Look at all records before a model is loaded.

        Returns:
            Benchmark -> what a reader of its scores must know about this data.

        Raises:
            UserError: records that cannot be asked, or scored under the rules; the first are listed.
        """
        problems: list[str] = []
        notes = {}
        for benchmark, file in self.files_of():
            records = [file[index] for index in self._range(file)]
            for record in records:
                try:
                    self.prompt.messages(record)
                    record_times(record)
                    categories, gold = benchmark.categories(record.extra), gold_answer(record.solution)
                    kind = record.problem_type
                    grade(benchmark, rules, problem_type=kind, categories=categories, answer=None, gold=gold)
                except ValueError as error:
                    problems.append(f"{record.where}: {str(error).removeprefix(f'{record.where}: ')}")
            notes[benchmark.name] = _notes(benchmark, records)
        if problems:
            raise UserError(f"{len(problems):,} questions cannot be evaluated:{listed(problems)}")
        return notes

    def _range(self, file: RecordFile) -> range:
        return range(len(file) if self.limit is None else min(self.limit, len(file)))

    def _eval_loader(self, stage: str) -> DataLoader:
        lengths = [len(file) for _, file in self.files_of()]
        starts = dict(zip(self.benchmarks, accumulate(lengths, initial=0), strict=False))
        items = BenchmarkItems(encoded=self._dataset(stage, self.eval_frames), starts=starts)
        todo = [batch for batch in self.batches() if not self._finished.issuperset(batch)]
        mine = todo[self.trainer.global_rank :: self.trainer.world_size]
        return DataLoader(
            items,
            # Lightning runs no hooks around an empty loader, and refuses one on some of the ranks.
            batch_sampler=mine or [[]],
            collate_fn=partial(collate_questions, pad_token_id=self.tokenizer.pad_token_id),
            num_workers=self.num_workers,
        )


def _notes(benchmark: Benchmark, records: Sequence[VideoRecord]) -> list[str]:
    """Where the records are not those of the full benchmark, one sentence each."""
    notes = []
    if len(records) != benchmark.items:
        notes.append(
            f"{len(records):,} questions where {benchmark.title} has {benchmark.items:,}: the score is that of a part."
        )
    found = [defect for defect in map(benchmark.defect, records) if defect is not None]
    if found:
        notes.append(f"{len(found):,} of {len(records):,} questions are not the benchmark's; first: {found[0]}")
    return notes


def _check_names(benchmarks: Sequence[str], files: dict[str, str], limit: int | None) -> None:
    known = ", ".join(BENCHMARKS)
    unknown = [name for name in (*benchmarks, *files) if name not in BENCHMARKS]
    if unknown:
        raise UserError(f"data.init_args names the benchmark {unknown[0]!r}; there are {known}.")
    if not benchmarks or len(set(benchmarks)) < len(benchmarks):
        raise UserError(f"data.init_args.benchmarks is {list(benchmarks)}; name at least one of {known}, each once.")
    unused = [name for name in files if name not in benchmarks]
    if unused:
        raise UserError(
            f"data.init_args.files names {unused[0]!r}, which is not among the benchmarks {', '.join(benchmarks)}."
        )
    if limit is not None and limit < 1:
        raise UserError(f"data.init_args.limit is {limit}; it must be >= 1, or null for all questions.")
