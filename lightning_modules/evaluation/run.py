"""The folder of a benchmark run: whose run it is, what is answered, and what comes of it.

`manifest.json` is written first and never changes; a later run into the same folder must have the same identity and
goes on where this one stopped. `predictions.jsonl`, `results.json` and `reference/` appear when all is answered.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from datamodules.evaluation.benchmark_datamodule import BenchmarkDataModule
from datamodules.text_table import listed
from datamodules.whole_files import write_whole
from lightning_modules.evaluation import manifest as manifests
from lightning_modules.evaluation.journal import PredictionJournal
from lightning_modules.evaluation.manifest import Manifest
from lightning_modules.evaluation.results import BenchmarkResults, RunResults, benchmark_results, reference_results
from lightning_modules.evaluation.typed_json import as_text
from rewards.errors import UserError
from rewards.evaluation.predictions import Prediction


@dataclass(frozen=True, kw_only=True)
class BenchmarkRun:
    """One run folder, seen from one rank."""

    folder: Path
    manifest: Manifest
    data: BenchmarkDataModule
    """Set up."""
    notes: Mapping[str, Sequence[str]]
    """Benchmark -> sentences that belong to its scores."""

    @cached_property
    def journal(self) -> PredictionJournal:
        return PredictionJournal(self.folder, self.data.batches())

    def check(self, *, retry_failed: bool) -> None:
        """Compare this run with the one whose folder this is, on every rank and before anything is written.

        With `retry_failed`, media may have been repaired since.

        Raises:
            UserError: the folder holds predictions without a manifest, or a run of another identity or of other
                library versions.
        """
        path = self.folder / "manifest.json"
        if not path.exists():
            if self.folder.exists() and any(self.folder.glob("predictions*.jsonl")):
                raise UserError(
                    f"{self.folder} holds predictions, but no manifest.json that says how they were made. Give "
                    "model.init_args.output another folder."
                )
            return
        earlier, given = manifests.read_manifest(path), self.manifest
        if retry_failed:
            earlier, given = (manifests.without_media(manifest) for manifest in (earlier, given))
        remedy = "Give model.init_args.output another folder, or the earlier settings to go on."
        title = f"{self.folder} holds a run that differs from this one:"
        changed = manifests.compare_manifests(earlier, given, title=title, remedy=remedy)
        if changed:
            raise UserError(f"{self.folder} holds a run with other library versions:{listed(changed)}\n{remedy}")

    def prepare(self, *, retry_failed: bool) -> None:
        """Write the manifest and gather what earlier runs have answered; rank 0 calls it, the others wait."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "manifest.json"
        if retry_failed or not path.exists():
            write_whole(path, as_text(self.manifest))
        self.journal.gather(retry_failed=retry_failed)

    def publish(self) -> tuple[dict[str, BenchmarkResults], bool]:
        """Score what is answered, and write predictions and results once that is all; rank 0 calls it when no rank
        writes any more.

        Returns:
            Benchmark -> results; and whether all questions are answered.
        """
        predictions, complete = self.journal.finish()
        settings = self.manifest.identity.settings
        benchmarks = benchmark_results(predictions, settings.scoring_rules, self.notes)
        if complete:
            if "videorft" in settings.scoring_rules:
                self._export_reference(predictions, benchmarks)
            results = RunResults(
                manifest_sha256=manifests.identity_hash(self.manifest),
                predictions_sha256=manifests.file_hash(self.journal.output),
                model=self.manifest.paths.model,
                choice_scoring=settings.choice_scoring,
                scoring_rules=settings.scoring_rules,
                benchmarks=benchmarks,
            )
            write_whole(self.folder / "results.json", as_text(results))
        return benchmarks, complete

    def _export_reference(self, predictions: Sequence[Prediction], benchmarks: Mapping[str, BenchmarkResults]) -> None:
        folder = self.folder / "reference"
        folder.mkdir(exist_ok=True)
        for benchmark, file in self.data.files_of():
            own = [prediction for prediction in predictions if prediction.benchmark == benchmark.name]
            records = [json.loads(file.raw(prediction.index)) for prediction in own]
            results = benchmarks[benchmark.name].scoring_rules["videorft"]
            text = as_text(reference_results(records, own, results))
            write_whole(folder / f"{file.path.stem}_output.json", text)
