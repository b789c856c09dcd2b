"""Two runs on the same items: are they really different, on which tasks, and what was set differently?

A difference is this run minus the other one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from datamodules.evaluation.benchmarks import BENCHMARKS
from datamodules.evaluation.benchmarks.videommmu import delta_knowledge
from lightning_modules.evaluation.report.blocks import (
    ABSENT,
    Block,
    Cell,
    ChartRow,
    IntervalChart,
    Paragraph,
    Score,
    Section,
    Table,
)
from lightning_modules.evaluation.report.breakdowns import in_reading_order
from lightning_modules.evaluation.report.overview import MAIN_MEANS, flattened, run_label, series_name
from lightning_modules.evaluation.report.run_folder import EvaluationRun
from rewards.evaluation.metrics import headline_names
from rewards.evaluation.predictions import Prediction, scored_items
from rewards.evaluation.scoring import ScoringRule
from rewards.evaluation.statistics import Difference, bootstrap_differences, compare_runs

QUESTION_ONLY = "question_only"
"""In the paths of VideoMMMU's clips without the lecture."""

ITEM_HEADER = (
    "Benchmark",
    "Protocol",
    "Items",
    "Failed in one",
    "This run",
    "Other",
    "Difference",
    "Only this right",
    "Only other right",
    "p (McNemar)",
)

COMPARED_FIELDS = ("question", "options", "gold", "problem_type")
"""What items of one problem_id must share."""


def comparison_section(run: EvaluationRun, other: EvaluationRun) -> Section:
    """Paired comparison on every benchmark and protocol that both runs have.

    Raises:
        ValueError: the runs share no benchmark or no protocol, or a shared benchmark has other items.
    """
    shared = [benchmark for benchmark in run.predictions if benchmark in other.predictions]
    protocols = [protocol for protocol in run.scoring_rules if protocol in other.scoring_rules]
    if not shared or not protocols:
        raise ValueError(
            f"{run.folder} and {other.folder} cannot be compared: they hold {_named(run)} and {_named(other)}. Compare "
            "runs with a benchmark and a protocol in common."
        )
    for benchmark in shared:
        check_same_items(run, other, benchmark)
    compared = [_compared(run, other, benchmark, protocol) for benchmark in shared for protocol in protocols]
    names = f"This run: {run_label(run.model)}. The other: {run_label(other.model)}."
    blocks: list[Block] = [
        Paragraph(text=f"{names} A difference is this run minus the other."),
        *_left_out(run, other),
        Table(
            caption="Items that both runs answered, by mean of item scores in percent; McNemar's exact test on items "
            "that only one of them got right",
            header=ITEM_HEADER,
            rows=[each.items for each in compared],
            text_columns=2,
        ),
        IntervalChart(
            title="Difference in percentage points, this run minus the other",
            rows=[row for each in compared for row in each.chart],
        ),
        Paragraph(
            text="Intervals are 95 % bootstrap intervals of paired differences: each resample draws the same items in "
            "both runs. No p value is corrected for the number of tests. Items about one video are taken as "
            "independent, which makes intervals too narrow where many questions share few videos."
        ),
        *knowledge_gain(run, other, protocols),
        Table(
            caption="Differences of all means in percentage points",
            header=("Benchmark", "Protocol", "Mean", "Difference"),
            rows=[row for each in compared for row in each.differences],
            text_columns=3,
        ),
        _settings_block(run, other),
    ]
    return Section(anchor="comparison", title="Compared with another run", blocks=blocks)


@dataclass(frozen=True, kw_only=True)
class _Compared:
    """One benchmark under one protocol."""

    items: Sequence[Cell]
    """Row under `ITEM_HEADER`."""
    differences: Sequence[Sequence[Cell]] = ()
    chart: Sequence[ChartRow] = ()


def _compared(run: EvaluationRun, other: EvaluationRun, benchmark: str, protocol: ScoringRule) -> _Compared:
    title, scale = BENCHMARKS[benchmark].title, run.percent(benchmark, protocol)
    first = scored_items(other.predictions[benchmark], protocol)
    second = scored_items(run.predictions[benchmark], protocol)
    answered = [{item.problem_id for item in items if item.score is not None} for items in (first, second)]
    if not set.intersection(*answered):
        return _Compared(items=(title, protocol, "0", f"{len(first):,}", *[ABSENT] * (len(ITEM_HEADER) - 4)))
    paired = compare_runs(first, second)
    counts = [
        ABSENT if count is None else f"{count:,}" for count in (paired.only_second_right, paired.only_first_right)
    ]
    items = (
        *(title, protocol, f"{paired.items:,}", f"{paired.failed:,}"),
        *(Score(value=100 * mean) for mean in (paired.second_mean, paired.first_mean)),
        _signed(Difference(value=paired.difference, interval=paired.interval), 100),
        *counts,
        ABSENT if paired.p_value is None else f"{paired.p_value:.2g}",
    )
    found = bootstrap_differences(BENCHMARKS[benchmark], protocol, first, second)
    differences = {name: _signed(difference, scale) for name, difference in found.items()}
    main = [name for name in headline_names(BENCHMARKS[benchmark], protocol) if name in differences]
    others = in_reading_order(name for name in differences if name not in main)
    return _Compared(
        items=items,
        differences=[
            (title, protocol, MAIN_MEANS.get(name, name.replace("/", ": ", 1)), differences[name])
            for name in (*main, *others)
        ],
        chart=[ChartRow(label=title, series=series_name(protocol, name), score=differences[name]) for name in main],
    )


def check_same_items(run: EvaluationRun, other: EvaluationRun, benchmark: str) -> None:
    """Refuse to compare answers to different questions.

    Raises:
        ValueError: an item is in one run only, or its question, options, gold answer or type differ.
    """
    ours = {prediction.problem_id: prediction for prediction in run.predictions[benchmark]}
    theirs = {prediction.problem_id: prediction for prediction in other.predictions[benchmark]}
    if ours.keys() != theirs.keys():
        only_ours, only_theirs = sorted(ours.keys() - theirs.keys()), sorted(theirs.keys() - ours.keys())
        raise ValueError(
            f"The runs hold different items of {benchmark}: {len(only_ours)} only in {run.folder} ({len(ours)} items), "
            f"{len(only_theirs)} only in {other.folder} ({len(theirs)} items), such as problem_id "
            f"{', '.join((only_ours + only_theirs)[:3])}. Evaluate both on the same file with the same limit."
        )
    for problem_id, prediction in ours.items():
        for name in COMPARED_FIELDS:
            here, there = getattr(prediction, name), getattr(theirs[problem_id], name)
            if here != there:
                raise ValueError(
                    f"problem_id {problem_id} of {benchmark} has another {name} in the two runs: {here!r:.200} in "
                    f"{run.folder}, {there!r:.200} in {other.folder}. Evaluate both on the same file."
                )


def _signed(difference: Difference, scale: float) -> Score:
    interval = difference.interval
    return Score(value=scale * difference.value, low=scale * interval.low, high=scale * interval.high, signed=True)


def _left_out(run: EvaluationRun, other: EvaluationRun) -> list[Paragraph]:
    """What only one of the runs has."""
    benchmarks = (BENCHMARKS[name].title for name in dict.fromkeys((*run.predictions, *other.predictions)))
    shared = {BENCHMARKS[name].title for name in run.predictions if name in other.predictions}
    missing = [title for title in benchmarks if title not in shared]
    missing += [f"protocol {name}" for name in sorted({*run.scoring_rules} ^ {*other.scoring_rules})]
    if not missing:
        return []
    names = ", ".join(missing)
    return [Paragraph(kind="warning", text=f"Not compared, because only one of the runs has them: {names}.")]


def knowledge_gain(run: EvaluationRun, other: EvaluationRun, protocols: Sequence[ScoringRule]) -> list[Paragraph]:
    """VideoMMMU's gain, where the other run saw question-only clips of the Adaptation track and this one did not."""
    runs = {"before": other, "after": run}
    if not all("videommmu" in each.predictions for each in runs.values()):
        return []
    tracks = {name: [item for item in each.predictions["videommmu"] if _adapts(item)] for name, each in runs.items()}
    before, after = ({QUESTION_ONLY in (item.path or "") for item in tracks[name]} for name in ("before", "after"))
    if (before, after) != ({True}, {False}):
        return []
    found = []
    for protocol in protocols:
        field = next(field for field in ("track", "original_question_type") if field in tracks["after"][0].categories)
        means = {name: each.means("videommmu", protocol)[f"{field}/Adaptation"].value for name, each in runs.items()}
        if None in means.values():
            continue
        percent = {name: runs[name].percent("videommmu", protocol) * value for name, value in means.items()}
        if percent["before"] == 100:
            found.append(
                Paragraph(text=f"VideoMMMU, {protocol}: all Adaptation questions were right without the lecture.")
            )
            continue
        found.append(
            Paragraph(
                text=f"VideoMMMU's knowledge gain, {protocol}: {delta_knowledge(**percent):+.1f} % (Adaptation "
                f"{percent['before']:.1f} % on question-only clips, {percent['after']:.1f} % with the lecture)."
            )
        )
    return found


def _adapts(prediction: Prediction) -> bool:
    return "Adaptation" in (prediction.categories.get("track"), prediction.categories.get("original_question_type"))


def _settings_block(run: EvaluationRun, other: EvaluationRun) -> Block:
    ours, theirs = (
        flattened({"identity": asdict(each.manifest.identity), "versions": each.manifest.versions})
        for each in (run, other)
    )
    rows = [
        (name, *(_short_digest(settings.get(name, ABSENT)) for settings in (ours, theirs)))
        for name in dict.fromkeys((*ours, *theirs))
        if ours.get(name) != theirs.get(name)
    ]
    if not rows:
        return Paragraph(text="Both manifests state the same model, data, settings and versions.")
    return Table(
        caption="What the manifests state differently",
        header=("Setting", "This run", "Other"),
        rows=rows,
        text_columns=3,
    )


def _short_digest(text: str) -> str:
    return f"{text[:12]}…" if re.fullmatch("[0-9a-f]{64}", text) else text


def _named(run: EvaluationRun) -> str:
    return f"{', '.join(run.predictions)} under {', '.join(run.scoring_rules)}"
