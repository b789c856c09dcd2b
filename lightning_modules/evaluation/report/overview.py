"""The first pages of a report: scores with what is behind them, the paper's numbers beside them, failures, settings."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from datamodules.evaluation.benchmarks import BENCHMARKS
from lightning_modules.evaluation.report.blocks import (
    ABSENT,
    Block,
    ChartRow,
    IntervalChart,
    Paragraph,
    Score,
    Section,
    Table,
)
from lightning_modules.evaluation.report.run_folder import EvaluationRun
from rewards.evaluation.metrics import aggregate
from rewards.evaluation.predictions import Prediction, scored_items
from rewards.evaluation.scoring import ScoringRule

SOURCE = "VideoRFT, arXiv 2505.12434 (NeurIPS 2025), main results"

REFERENCE_MODEL = "VideoRFT-7B"
"""Whose published numbers are marked in the chart."""

PROTOCOLS: Mapping[ScoringRule, str] = {
    "videorft": "what the paper's released script computes: the exact letter, numbers at two decimals, mean relative "
    "accuracy with a strict comparison",
    "official": "the rule of each benchmark's authors, as far as it needs no language model as a judge",
}

MAIN_MEANS: Mapping[str, str] = {
    "overall": "overall",
    "exact_letter_accuracy": "exact letter",
    "mean_acc": "accuracy",
    "mean_mra": "mean relative accuracy",
}
"""The means of a benchmark as a whole -> how a reader knows them."""

MOST_FAILURES = 100
"""So many failed items are listed; the others are counted."""


def score_of(run: EvaluationRun, benchmark: str, protocol: ScoringRule, name: str) -> Score:
    """One mean in percent, with its interval."""
    mean, scale = run.means(benchmark, protocol)[name], run.percent(benchmark, protocol)
    value, low, high = (None if value is None else value * scale for value in (mean.value, mean.low, mean.high))
    return Score(value=value, low=low, high=high)


def main_scores(run: EvaluationRun, benchmark: str, protocol: ScoringRule) -> dict[str, Score]:
    """The means that stand for the benchmark as a whole under this protocol."""
    headline = run.results.benchmarks[benchmark].scoring_rules[protocol].headline
    return {name: score_of(run, benchmark, protocol, name) for name in headline}


def scores_section(run: EvaluationRun) -> Section:
    rows, bars = [], []
    for benchmark in run.predictions:
        title = BENCHMARKS[benchmark].title
        for protocol in run.scoring_rules:
            strict = _failed_as_wrong(run.predictions[benchmark], benchmark, protocol)
            ungraded = run.results.benchmarks[benchmark].scoring_rules[protocol].ungraded
            for name, score in main_scores(run, benchmark, protocol).items():
                mean = run.means(benchmark, protocol)[name]
                counts = (f"{mean.scored:,}", f"{mean.failed:,}", f"{ungraded:,}")
                as_wrong = Score(value=strict[name] * run.percent(benchmark, protocol)) if mean.failed else ABSENT
                rows.append((title, protocol, MAIN_MEANS.get(name, name), score, *counts, as_wrong))
                bars.append(
                    ChartRow(
                        label=title,
                        series=series_name(protocol, name),
                        score=score,
                        mark=BENCHMARKS[benchmark].published.get(REFERENCE_MODEL),
                    )
                )
    blocks: list[Block] = [
        *(Paragraph(text=f"Protocol {name}: {PROTOCOLS[name]}.") for name in run.scoring_rules),
        Paragraph(
            text="Failed items (media that cannot be read, prompts that do not fit) have no answer. They are in "
            "neither numerator nor denominator of a score; its last column counts them as wrong. Ungraded items are of "
            "a kind that the protocol has no rule for."
        ),
        Table(
            caption="Scores in percent with 95 % bootstrap intervals over items",
            header=("Benchmark", "Protocol", "Mean", "Score", "Items scored", "Failed", "Ungraded", "Failed as wrong"),
            rows=rows,
            text_columns=3,
        ),
        IntervalChart(
            title="Scores in percent",
            rows=bars,
            mark=f"{REFERENCE_MODEL}, as published",
        ),
        _items_table(run),
    ]
    return Section(anchor="scores", title="Scores", blocks=blocks)


def series_name(protocol: str, mean: str) -> str:
    """Of a main mean in a chart."""
    return f"{MAIN_MEANS[mean]}, {protocol}" if mean == "mean_mra" else protocol


def _failed_as_wrong(predictions: Sequence[Prediction], benchmark: str, protocol: ScoringRule) -> dict[str, float]:
    items = [replace(item, score=item.score or 0.0) for item in scored_items(predictions, protocol)]
    return {name: mean.value for name, mean in aggregate(BENCHMARKS[benchmark], protocol, items).items()}


def _items_table(run: EvaluationRun) -> Table:
    rows = []
    for benchmark, predictions in run.predictions.items():
        facts, full = BENCHMARKS[benchmark], BENCHMARKS[benchmark].items
        written = [prediction for prediction in predictions if prediction.completion is not None]
        rows.append(
            (
                facts.title,
                f"{len(predictions):,}",
                f"{full:,}" + ("" if len(predictions) == full else f" ({len(predictions) / full:.1%} here)"),
                f"{sum(prediction.failure is not None for prediction in predictions):,}",
                _share(sum(bool(prediction.truncated) for prediction in written), len(written)),
                _share(sum(bool(prediction.well_formed) for prediction in written), len(written)),
                _mean([prediction.completion_tokens for prediction in written]),
                _mean([prediction.num_frames for prediction in predictions if prediction.num_frames]),
            )
        )
    return Table(
        caption="Items of each benchmark and what the model wrote",
        header=(
            "Benchmark",
            "Items",
            "Full benchmark",
            "Failed",
            "Truncated",
            "Well-formed",
            "Tokens written",
            "Frames seen",
        ),
        rows=rows,
    )


def paper_section(run: EvaluationRun) -> Section:
    """Our main numbers and the published ones, benchmark by benchmark."""
    rows = []
    models = list(dict.fromkeys(model for benchmark in run.predictions for model in BENCHMARKS[benchmark].published))
    for benchmark, predictions in run.predictions.items():
        facts = BENCHMARKS[benchmark]
        whole = "" if len(predictions) == facts.items else f" ({len(predictions):,} of {facts.items:,} items)"
        published = [Score(value=facts.published.get(model)) for model in models]
        for protocol in run.scoring_rules:
            for name, score in main_scores(run, benchmark, protocol).items():
                rows.append((facts.title + whole, f"{protocol}, {MAIN_MEANS.get(name, name)}", score, *published))
    blocks: list[Block] = [
        Paragraph(
            kind="warning",
            text="The published columns are for models of 7 billion parameters (VideoRFT-3B: of 3 billion), trained "
            f"and measured by others; they are copied from {SOURCE}. They were not measured here. A difference to them "
            "says something only for a model of that size, on the full benchmark, with the same frames, prompt and "
            "decoding (32 frames of up to 256 x 28 x 28 pixels, top_p 0.001, temperature 0.01).",
        ),
        Paragraph(
            text="The paper prints one number per benchmark. For VSI-Bench its script computes two, the accuracy of "
            "the choice questions and the mean relative accuracy of the numbers; the table repeats the printed one "
            "beside both. MMVU is its multiple-choice questions, Video-MME is without subtitles."
        ),
        Table(
            caption="This run beside the paper, in percent",
            header=("Benchmark", "This run", run_label(run.model), *models),
            rows=rows,
            text_columns=2,
        ),
    ]
    return Section(anchor="paper", title="Beside the paper", blocks=blocks)


def failures_section(run: EvaluationRun) -> Section:
    """All failed items with their reasons, or the sentence that there are none."""
    failed = [
        prediction
        for predictions in run.predictions.values()
        for prediction in predictions
        if prediction.failure is not None
    ]
    total = sum(map(len, run.predictions.values()))
    if not failed:
        return Section(
            anchor="failures", title="Failed items", blocks=[Paragraph(text=f"None of the {total:,} items failed.")]
        )
    counts = Counter(BENCHMARKS[prediction.benchmark].title for prediction in failed)
    by_benchmark = ", ".join(f"{name} {count:,}" for name, count in counts.items())
    blocks: list[Block] = [
        Paragraph(kind="warning", text=f"Without an answer: {len(failed):,} of {total:,} items ({by_benchmark})."),
        Table(
            caption="Why items failed",
            header=("Benchmark", "problem_id", "Reason"),
            rows=[
                (
                    BENCHMARKS[prediction.benchmark].title,
                    prediction.problem_id,
                    run.without_folders(str(prediction.failure)),
                )
                for prediction in failed[:MOST_FAILURES]
            ],
            text_columns=3,
        ),
    ]
    if len(failed) > MOST_FAILURES:
        blocks.append(Paragraph(text=f"{len(failed) - MOST_FAILURES:,} more are in predictions.jsonl."))
    return Section(anchor="failures", title="Failed items", blocks=blocks)


def settings_section(run: EvaluationRun) -> Section:
    """What decides the numbers: model, data, frames, prompt, decoding. Not who ran it when and where."""
    blocks: list[Block] = [
        Table(
            caption="Identity of the run, from manifest.json",
            header=("Setting", "Value"),
            rows=list(flattened(asdict(run.manifest.identity)).items()),
            text_columns=2,
        ),
        Table(
            caption="Versions",
            header=("Package", "Version"),
            rows=list(flattened(run.manifest.versions).items()),
            text_columns=2,
        ),
    ]
    return Section(anchor="settings", title="How it was measured", blocks=blocks)


def flattened(value: Any, prefix: str = "") -> dict[str, str]:
    """Nested mappings as `a.b.c` -> text, written as JSON where it is no text or its ends could not be seen."""
    if isinstance(value, Mapping) and value:
        items = [flattened(part, f"{prefix}.{name}" if prefix else str(name)) for name, part in value.items()]
        return {name: text for part in items for name, text in part.items()}
    visible = isinstance(value, str) and value == value.strip() != "" and "\n" not in value
    return {prefix: value if visible else json.dumps(value, ensure_ascii=False)}


def run_label(model: str) -> str:
    """A model's name short enough for a table's header: a hub name, or the last two parts of a path."""
    return "/".join(part for part in model.split("/")[-2:] if part) or model


def _share(part: int, whole: int) -> str:
    return f"{part:,} ({part / whole:.1%})" if whole else ABSENT


def _mean(values: Sequence[int | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{sum(known) / len(known):.1f}" if known else ABSENT
