"""The folder of an evaluation: predictions.jsonl, results.json and manifest.json, which must be of one run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from datamodules.evaluation.benchmarks import BENCHMARKS
from lightning_modules.evaluation.manifest import Manifest, file_hash, identity_hash, read_manifest
from lightning_modules.evaluation.report.tables import Score
from lightning_modules.evaluation.results import RunResults, read_results
from rewards.errors import UserError
from rewards.evaluation.metrics import UNITS, Mean
from rewards.evaluation.predictions import Prediction, read_predictions
from rewards.evaluation.scoring import ScoringRule

PERCENT: Mapping[ScoringRule, float] = {rule: {"fraction": 100.0, "percent": 1.0}[unit] for rule, unit in UNITS.items()}
"""What a rule's numbers are multiplied by to be percent."""


@dataclass(frozen=True, kw_only=True)
class EvaluationRun:
    """A finished evaluation."""

    folder: Path
    predictions: Mapping[str, list[Prediction]]
    """Benchmark -> all its items in the order of its data file; the benchmarks in the order of the run."""
    results: RunResults
    """results.json: counts, means and intervals."""
    manifest: Manifest
    """manifest.json: what was measured and how."""

    @property
    def label(self) -> str:
        """The model's name, short enough for a table's header: a hub name, or the last two parts of a path."""
        model = self.results.model
        return "/".join(part for part in model.split("/")[-2:] if part) or model

    @property
    def rules(self) -> list[ScoringRule]:
        return self.results.scoring_rules

    def means(self, benchmark: str, rule: ScoringRule) -> Mapping[str, Mean]:
        """By name, in the rule's unit."""
        return self.results.benchmarks[benchmark].scoring_rules[rule].means

    def score(self, benchmark: str, rule: ScoringRule, name: str) -> Score:
        """One mean in percent, with its interval."""
        mean, scale = self.means(benchmark, rule)[name], PERCENT[rule]
        if mean.value is None:
            return Score(value=None)
        assert mean.low is not None and mean.high is not None, "results.json gives every value an interval"
        return Score(value=mean.value * scale, interval=(mean.low * scale, mean.high * scale))

    def without_folders(self, text: str, *roots: Path) -> str:
        """`text` with paths below the data root, and those of the data files, as they are known in the benchmark.

        A report goes to others, and equal runs on two machines give equal reports. `roots` are further data roots.
        """
        paths = self.manifest.paths
        for file in map(Path, paths.files.values()):
            text = text.replace(str(file.resolve()), file.name)
        # Longer spellings first; a relative one is no folder of a machine, and may be a word of the text.
        spellings = {
            str(path) for root in (Path(paths.data_root), *roots) for path in (root.absolute(), root.resolve())
        }
        for spelling in sorted(spellings, key=lambda root: (-len(root), root)):
            text = text.replace(f"{spelling}/", "").replace(spelling, "as given")
        return text


def load_run(folder: str | Path) -> EvaluationRun:
    """Read a run folder.

    Raises:
        UserError: the folder or one of its files is missing, unreadable or of another version, the run is not
            finished, or its files are not of one run.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(
            f"{str(folder)!r} is not a folder (looked from {Path.cwd()}). Give the output of a validate run."
        )
    if not (folder / "predictions.jsonl").is_file() and any(folder.glob("predictions.*partial*")):
        raise UserError(
            f"The run in {folder} is not finished: its predictions are still partial. Start it again with the same "
            "settings; it goes on where it stopped."
        )
    manifest, results = read_manifest(folder / "manifest.json"), read_results(folder / "results.json")
    if identity_hash(manifest) != results.manifest_sha256:
        raise UserError(f"{folder}: results.json belongs to another manifest.json. Keep the files of a run together.")
    predictions: dict[str, list[Prediction]] = defaultdict(list)
    for prediction in read_predictions(folder / "predictions.jsonl"):
        predictions[prediction.benchmark].append(prediction)
    if file_hash(folder / "predictions.jsonl") != results.predictions_sha256:
        raise UserError(
            f"{folder}: predictions.jsonl is not the file that results.json holds the scores of. One of them was "
            "changed or is of another run; repeat the evaluation."
        )
    unknown = sorted(predictions.keys() - BENCHMARKS.keys())
    if unknown:
        raise UserError(f"{folder} is a run on {', '.join(unknown)}; known benchmarks are {', '.join(BENCHMARKS)}.")
    return EvaluationRun(folder=folder, predictions=dict(predictions), results=results, manifest=manifest)
