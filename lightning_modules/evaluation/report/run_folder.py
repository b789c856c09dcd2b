"""The folder of an evaluation: predictions.jsonl, results.json and manifest.json, checked against each other."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datamodules.evaluation.benchmarks import BENCHMARKS
from lightning_modules.evaluation.manifest import identity_hash, read_manifest
from lightning_modules.evaluation.results import VERSION
from rewards.evaluation.metrics import aggregate
from rewards.evaluation.predictions import Prediction, metric_rows, read_predictions
from rewards.evaluation.scoring import Protocol


@dataclass(frozen=True, kw_only=True)
class EvaluationRun:
    """A finished evaluation."""

    folder: Path
    predictions: Mapping[str, list[Prediction]]
    """Benchmark -> all its items in the order of its data file; the benchmarks in the order of the run."""
    results: Mapping[str, Any]
    """results.json: counts, means and intervals."""
    manifest: Mapping[str, Any]
    """manifest.json: what was measured and how."""

    @property
    def model(self) -> str:
        return str(self.results["model"])

    @property
    def protocols(self) -> list[Protocol]:
        return list(self.results["protocols"])

    def without_folders(self, text: str, *roots: Path) -> str:
        """`text` with paths below the data root, and those of the data files, as they are known in the benchmark.

        A report goes to others, and equal runs on two machines give equal reports.

        Args:
            text: such as the reason of a failure.
            roots: further data roots.
        """
        paths = self.manifest["paths"]
        for file in map(Path, paths["files"].values()):
            text = text.replace(str(file.resolve()), file.name)
        # Longer spellings first; a relative one is no folder of a machine, and may be a word of the text.
        spellings = {
            str(path) for root in (Path(paths["data_root"]), *roots) for path in (root.absolute(), root.resolve())
        }
        for spelling in sorted(spellings, key=lambda root: (-len(root), root)):
            text = text.replace(f"{spelling}/", "").replace(spelling, "as given")
        return text

    def means(self, benchmark: str, protocol: Protocol) -> Mapping[str, Mapping[str, float | None]]:
        """Name -> value, low, high in the protocol's unit, and scored, failed."""
        return self.results["benchmarks"][benchmark]["protocols"][protocol]["means"]

    def percent(self, benchmark: str, protocol: Protocol) -> float:
        """What the protocol's numbers are multiplied by to be percent."""
        unit = self.results["benchmarks"][benchmark]["protocols"][protocol]["unit"]
        return {"fraction": 100.0, "percent": 1.0}[unit]


def load_run(folder: str | Path) -> EvaluationRun:
    """Read a run folder; its scores must follow from its predictions.

    Raises:
        ValueError: the folder or one of its files is missing, unreadable or of another version, the run is not
            finished, or results.json does not belong to predictions.jsonl.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(
            f"{str(folder)!r} is not a folder (looked from {Path.cwd()}). Give the output of a validate run."
        )
    if not (folder / "predictions.jsonl").is_file() and any(folder.glob("predictions.*partial*")):
        raise ValueError(
            f"The run in {folder} is not finished: its predictions are still partial. Start it again with the same "
            "settings; it goes on where it stopped."
        )
    manifest, results = read_manifest(folder / "manifest.json"), _read_results(folder / "results.json")
    if identity_hash(manifest) != results["manifest_sha256"]:
        raise ValueError(f"{folder}: results.json belongs to another manifest.json. Keep the files of a run together.")
    predictions: dict[str, list[Prediction]] = defaultdict(list)
    for prediction in read_predictions(folder / "predictions.jsonl"):
        predictions[prediction.benchmark].append(prediction)
    run = EvaluationRun(folder=folder, predictions=dict(predictions), results=results, manifest=manifest)
    _check(run)
    return run


def _read_results(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(
            f"{path} is missing (looked from {Path.cwd()}). A finished validate run on benchmarks writes it beside its "
            "predictions.jsonl; give the folder of such a run."
        )
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}. Repeat the validate run that writes it.") from error
    if not isinstance(results, dict) or results.get("version") != VERSION:
        raise ValueError(f"{path} is no results.json of version {VERSION}. Repeat the validate run that writes it.")
    return results


def _check(run: EvaluationRun) -> None:
    unknown = sorted(run.predictions.keys() - BENCHMARKS.keys())
    if unknown:
        raise ValueError(
            f"{run.folder / 'predictions.jsonl'} names the benchmarks {', '.join(unknown)}; known are "
            f"{', '.join(BENCHMARKS)}."
        )
    if list(run.predictions) != list(run.results["benchmarks"]):
        raise ValueError(
            f"{run.folder}: predictions.jsonl holds {', '.join(run.predictions) or 'no benchmark'}, results.json "
            f"{', '.join(run.results['benchmarks']) or 'none'}. They are of two runs; repeat the evaluation."
        )
    for benchmark, predictions in run.predictions.items():
        for protocol in run.protocols:
            found = aggregate(benchmark, protocol, metric_rows(predictions, protocol))
            for name, mean in run.means(benchmark, protocol).items():
                stated, follows = mean["value"], found.get(name)
                if stated is None or follows is None:
                    agree = stated is follows
                else:
                    agree = math.isclose(stated, follows, rel_tol=0, abs_tol=1e-6)
                if not agree:
                    raise ValueError(
                        f"{run.folder}: results.json states {name} = {stated} for {benchmark} under {protocol}, but "
                        f"predictions.jsonl gives {follows}. One of the files was changed or is of another run; repeat "
                        "the evaluation."
                    )
