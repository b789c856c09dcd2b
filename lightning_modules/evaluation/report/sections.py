"""The sections on one run: scores with what is behind them, the paper's numbers, breakdowns, failures, settings."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace

from datamodules.evaluation.benchmarks import BENCHMARKS
from lightning_modules.evaluation.manifest import leaves_of
from lightning_modules.evaluation.report.run_folder import PERCENT, EvaluationRun
from lightning_modules.evaluation.report.tables import ABSENT, Block, Cell, Note, Score, Section, Table
from rewards.evaluation.metrics import aggregate
from rewards.evaluation.predictions import scored_items
from rewards.evaluation.scoring import ScoringRule

SOURCE = "VideoRFT, arXiv 2505.12434 (NeurIPS 2025), main results"

REFERENCE_MODEL = "VideoRFT-7B"
"""Whose published numbers are marked in the plots."""

RULES: Mapping[ScoringRule, str] = {
    "videorft": "what the paper's released script computes: the exact letter, numbers at two decimals, mean relative "
    "accuracy with a strict comparison",
    "official": "the rule of each benchmark's authors, as far as it needs no language model as a judge",
}

HEADLINES: Mapping[str, str] = {
    "overall": "overall",
    "exact_letter_accuracy": "exact letter",
    "mean_acc": "accuracy",
    "mean_mra": "mean relative accuracy",
}
"""The means of a benchmark as a whole -> how a reader knows them."""

MAX_FAILURES = 100
"""So many failed items are listed; the others are counted."""


def score_sections(run: EvaluationRun) -> list[Section]:
    """The headline table and what the model wrote; then the headline scores beside the published ones."""
    ours: list[Sequence[Cell]] = []
    beside: list[Sequence[Cell]] = []
    models = list(dict.fromkeys(model for benchmark in run.predictions for model in BENCHMARKS[benchmark].published))
    for benchmark, results in run.results.benchmarks.items():
        published = BENCHMARKS[benchmark].published
        items, full = results.items, results.full_items
        part = "" if items == full else f" ({items:,} of {full:,} items)"
        for rule, numbers in results.scoring_rules.items():
            for name in numbers.headline:
                mean, label = numbers.means[name], f"{rule}, {HEADLINES.get(name, name)}"
                score = replace(run.score(benchmark, rule, name), mark=published.get(REFERENCE_MODEL))
                counts = (f"{count:,}" for count in (mean.scored, mean.failed, numbers.ungraded))
                as_wrong = _failed_as_wrong(run, benchmark, rule, name) if mean.failed else ABSENT
                ours.append((results.title, label, score, *counts, as_wrong))
                others = (Score(value=published.get(model)) for model in models)
                beside.append((results.title + part, label, score, *others))
    mark = f"{REFERENCE_MODEL}, as published"
    scores = Table(
        caption="Scores in percent with 95 % bootstrap intervals over items",
        header=("Benchmark", "Mean", "Score", "Items scored", "Failed", "Ungraded", "Failed as wrong"),
        rows=ours,
        text_columns=2,
        mark=mark,
    )
    rules = [f"Scoring rule {name}: {RULES[name]}." for name in run.rules]
    header = ("Benchmark", "Mean", run.label, *models)
    paper = Table(
        caption="This run beside the paper, in percent", header=header, rows=beside, text_columns=2, mark=mark
    )
    return [
        Section(anchor="scores", title="Scores", blocks=[scores, *rules, _FAILED_ITEMS, _items_table(run)]),
        Section(anchor="paper", title="Beside the paper", blocks=[paper, _MEASURED_BY_OTHERS, _ONE_NUMBER]),
    ]


_FAILED_ITEMS = (
    "Failed items (media that cannot be read, prompts that do not fit) have no answer and take no part in a score; the "
    "last column counts them as wrong. Ungraded items are of a kind that the scoring rule does not cover."
)
_MEASURED_BY_OTHERS = Note(
    "The published columns are for models of 7 billion parameters (VideoRFT-3B: of 3 billion), trained and "
    f"measured by others; they are copied from {SOURCE}. They were not measured here. A difference to them says "
    "something only for a model of that size, on the full benchmark, with the same frames, prompt and decoding (32 "
    "frames of up to 256 x 28 x 28 pixels, top_p 0.001, temperature 0.01)."
)
_ONE_NUMBER = (
    "The paper prints one number per benchmark. For VSI-Bench its script computes two, the accuracy of the choice "
    "questions and the mean relative accuracy of the numbers; the table repeats the printed one beside both. MMVU is "
    "its multiple-choice questions, Video-MME is without subtitles."
)


def _failed_as_wrong(run: EvaluationRun, benchmark: str, rule: ScoringRule, name: str) -> Score:
    items = [replace(item, score=item.score or 0.0) for item in scored_items(run.predictions[benchmark], rule)]
    mean = aggregate(BENCHMARKS[benchmark], rule, items)[name].value
    assert mean is not None, "each of its items has a score now"
    return Score(value=mean * PERCENT[rule])


def _items_table(run: EvaluationRun) -> Table:
    rows = []
    for benchmark, results in run.results.benchmarks.items():
        items, full = results.items, results.full_items
        written = [item for item in run.predictions[benchmark] if item.completion is not None]
        rows.append(
            (
                *(results.title, f"{items:,}"),
                f"{full:,}" + ("" if items == full else f" ({items / full:.1%} here)"),
                f"{results.failed:,}",
                *(_part(count, len(written)) for count in (results.truncated, results.well_formed)),
                _average(item.completion_tokens for item in written),
                _average(item.num_frames for item in run.predictions[benchmark]),
            )
        )
    header = ("Benchmark", "Items", "Full benchmark", "Failed", "Truncated", "Well-formed", "Tokens written", "Frames")
    return Table(caption="Items of each benchmark and what the model wrote", header=header, rows=rows)


def _part(count: int, whole: int) -> str:
    return f"{count:,} ({count / whole:.1%})" if whole else ABSENT


def _average(values: Iterable[int | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{sum(known) / len(known):.1f}" if known else ABSENT


def benchmark_section(run: EvaluationRun, benchmark: str) -> Section:
    """Tables of every breakdown, and notes on the data."""
    facts, results = BENCHMARKS[benchmark], run.results.benchmarks[benchmark]
    headline = {name for numbers in results.scoring_rules.values() for name in numbers.headline}
    names = list(dict.fromkeys(name for rule in run.rules for name in run.means(benchmark, rule)))
    tables = {"Tasks of the official score": [name for name in names if "/" not in name and name not in headline]}
    order = [f"duration/{duration}" for duration in facts.durations]
    for name in sorted(names, key=lambda name: order.index(name) if name in order else -1):
        if "/" in name:
            tables.setdefault(_breakdown_title(benchmark, name.split("/", 1)[0]), []).append(name)
    breakdowns = [_breakdown(run, benchmark, title, members) for title, members in tables.items() if members]
    notes = [Note(note) for note in results.notes]
    return Section(anchor=benchmark, title=facts.title, blocks=[*breakdowns, facts.notes, *notes])


def _breakdown_title(benchmark: str, field: str) -> str:
    """`By task`, followed by the record's field where that has another name."""
    breakdown = next(name for name, fields in BENCHMARKS[benchmark].breakdowns.items() if field in fields)
    return f"By {breakdown}" + ("" if breakdown == field else f" ({field})")


def _breakdown(run: EvaluationRun, benchmark: str, title: str, names: Sequence[str]) -> Table:
    rules: list[ScoringRule] = [rule for rule in run.rules if any(name in run.means(benchmark, rule) for name in names)]
    rows = []
    for name in names:
        row: list[Cell] = [name.split("/", 1)[-1]]
        for rule in rules:
            mean = run.means(benchmark, rule).get(name)
            if mean is None:
                row += [ABSENT, "0", "0"]  # none of its items is of a kind that this rule grades
            else:
                row += [run.score(benchmark, rule, name), f"{mean.scored:,}", f"{mean.failed:,}"]
        rows.append(row)
    columns = [column for rule in rules for column in (f"Score, {rule}", "Items scored", "Failed")]
    return Table(caption=f"{title}, in percent", header=("Category", *columns), rows=rows)


def failures_section(run: EvaluationRun) -> Section:
    """All failed items with their reasons, or the sentence that there are none."""
    total = sum(map(len, run.predictions.values()))
    rows = [
        (results.title, failure.problem_id, run.without_folders(failure.reason))
        for results in run.results.benchmarks.values()
        for failure in results.failures
    ]
    header, more = ("Benchmark", "problem_id", "Reason"), len(rows) - MAX_FAILURES
    blocks: list[Block] = [
        Note(f"Without an answer: {len(rows):,} of {total:,} items."),
        Table(caption="Why items failed", header=header, rows=rows[:MAX_FAILURES], text_columns=3),
        *([f"{more:,} more are in predictions.jsonl."] if more > 0 else []),
    ]
    blocks = blocks if rows else [f"None of the {total:,} items failed."]
    return Section(anchor="failures", title="Failed items", blocks=blocks)


EXAMPLES_SECTION = Section(
    anchor="examples",
    title="Examples",
    blocks=[
        "A selection that is even over outcomes and categories, so it does not show how frequent they are in the run. "
        "Right and wrong are judged by the first scoring rule that grades the item."
    ],
)


def settings_section(run: EvaluationRun) -> Section:
    """What decides the numbers: model, data, frames, prompt, decoding. Not who ran it when and where."""
    caption, header = "Model, data, settings and versions, from manifest.json", ("Setting", "Value")
    table = Table(caption=caption, header=header, rows=list(settings_of(run).items()), text_columns=2)
    return Section(anchor="settings", title="How it was measured", blocks=[table])


def settings_of(run: EvaluationRun) -> dict[str, str]:
    """`a.b.c` -> value, written as JSON where it is no text or where its ends could not be seen."""
    settings = {}
    for place, value in leaves_of(asdict(run.manifest.identity) | {"versions": run.manifest.versions}):
        visible = isinstance(value, str) and value == value.strip() != "" and "\n" not in value
        settings[".".join(place)] = value if visible else json.dumps(value, ensure_ascii=False)
    return settings
