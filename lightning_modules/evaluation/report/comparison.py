"""Two runs on the same items: are they really different, on which tasks, and what was set differently?

A difference is this run minus the other one.
"""

from __future__ import annotations

from collections.abc import Sequence

from datamodules.evaluation.benchmarks import BENCHMARKS
from datamodules.evaluation.benchmarks.videommmu import delta_knowledge
from lightning_modules.evaluation.manifest import short_digest
from lightning_modules.evaluation.report.run_folder import PERCENT, EvaluationRun
from lightning_modules.evaluation.report.sections import HEADLINES, settings_of
from lightning_modules.evaluation.report.tables import ABSENT, Block, Cell, Note, Score, Section, Table
from rewards.errors import UserError
from rewards.evaluation.metrics import headline_names
from rewards.evaluation.predictions import Prediction, scored_items
from rewards.evaluation.scoring import ScoringRule
from rewards.evaluation.statistics import Difference, compare_runs

QUESTION_ONLY = "question_only"
"""In the paths of VideoMMMU's clips without the lecture."""
COMPARED_FIELDS = ("question", "options", "gold", "problem_type")
"""What items of one problem_id must have in common."""
ITEM_HEADER = (
    *("Benchmark", "Scoring rule", "Difference", "This run", "Other", "Items", "Failed in one"),
    *("Only this right", "Only other right", "p (McNemar)"),
)


def comparison_section(run: EvaluationRun, other: EvaluationRun) -> Section:
    """Paired comparison on every benchmark and scoring rule that both runs have.

    Raises:
        UserError: the runs have no benchmark or no scoring rule in common, or such a benchmark has other items.
    """
    shared = [benchmark for benchmark in run.predictions if benchmark in other.predictions]
    rules: list[ScoringRule] = [rule for rule in run.rules if rule in other.rules]
    if not shared or not rules:
        held = (f"{', '.join(each.predictions)} under {', '.join(each.rules)}" for each in (run, other))
        raise UserError(
            f"{run.folder} and {other.folder} cannot be compared: they hold {' and '.join(held)}. Compare runs with a "
            "benchmark and a scoring rule in common."
        )
    items, differences = [], []
    for benchmark in shared:
        _check_same_items(run, other, benchmark)
        for rule in rules:
            row, means = _compared(run, other, benchmark, rule)
            items.append(row)
            differences += means
    blocks = [
        f"This run: {run.label}. The other: {other.label}. A difference is this run minus the other.",
        Table(
            caption="Items that both runs answered, by mean of item scores in percent; McNemar's exact test on items "
            "that only one of them got right",
            header=ITEM_HEADER,
            rows=items,
            text_columns=2,
        ),
        *_left_out(run, other),
        Table(
            caption="Differences of all means in percentage points",
            header=("Benchmark", "Mean", "Difference"),
            rows=differences,
            text_columns=2,
        ),
        "Intervals are 95 % bootstrap intervals of paired differences: each resample draws the same items in both "
        "runs. No p value is corrected for the number of tests. Items about one video are taken as independent, which "
        "makes intervals too narrow where many questions are about few videos.",
        *_knowledge_gain(run, other, rules),
        _settings(run, other),
    ]
    return Section(anchor="comparison", title="Compared with another run", blocks=blocks)


def _compared(
    run: EvaluationRun, other: EvaluationRun, benchmark: str, rule: ScoringRule
) -> tuple[Sequence[Cell], list[Sequence[Cell]]]:
    """Row under `ITEM_HEADER`, and the differences of all means."""
    title = BENCHMARKS[benchmark].title
    first, second = (scored_items(each.predictions[benchmark], rule) for each in (other, run))
    answered = [{item.problem_id for item in items if item.score is not None} for items in (first, second)]
    if not set.intersection(*answered):
        return (title, rule, *[ABSENT] * 3, "0", f"{len(first):,}", *[ABSENT] * 3), []
    paired = compare_runs(BENCHMARKS[benchmark], rule, first, second)
    only = (paired.only_second_right, paired.only_first_right)
    row = (
        *(title, rule, _difference(paired.difference, 100)),
        *(Score(value=100 * mean) for mean in (paired.second_mean, paired.first_mean)),
        *(f"{paired.items:,}", f"{paired.failed:,}"),
        *(ABSENT if count is None else f"{count:,}" for count in only),
        ABSENT if paired.p_value is None else f"{paired.p_value:.2g}",
    )
    names = dict.fromkeys((*headline_names(BENCHMARKS[benchmark], rule), *paired.means))
    return row, [
        (
            *(title, f"{rule}, {HEADLINES.get(name, name.replace('/', ': ', 1))}"),
            _difference(paired.means[name], PERCENT[rule]),
        )
        for name in names
        if name in paired.means
    ]


def _difference(found: Difference, scale: float) -> Score:
    interval = (scale * found.interval.low, scale * found.interval.high)
    return Score(value=scale * found.value, interval=interval, signed=True)


def _check_same_items(run: EvaluationRun, other: EvaluationRun, benchmark: str) -> None:
    """A UserError where an item is in one run only, or its question, options, gold answer or type differ."""
    ours, theirs = (
        {item.problem_id: [getattr(item, name) for name in COMPARED_FIELDS] for item in each.predictions[benchmark]}
        for each in (run, other)
    )
    differing = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
    if differing:
        raise UserError(
            f"The runs hold different items of {benchmark}: {len(ours)} in {run.folder}, {len(theirs)} in "
            f"{other.folder}, of which {len(differing)} are in one run only or differ in {', '.join(COMPARED_FIELDS)}, "
            f"such as problem_id {', '.join(differing[:3])}. Evaluate both on the same file with the same limit."
        )


def _left_out(run: EvaluationRun, other: EvaluationRun) -> list[Note]:
    """What only one of the runs has."""
    alone = [name for name in BENCHMARKS if (name in run.predictions) != (name in other.predictions)]
    missing = [BENCHMARKS[name].title for name in alone]
    missing += [f"scoring rule {name}" for name in sorted({*run.rules} ^ {*other.rules})]
    text = f"Not compared, because only one of the runs has them: {', '.join(missing)}."
    return [Note(text)] if missing else []


def _knowledge_gain(run: EvaluationRun, other: EvaluationRun, rules: Sequence[ScoringRule]) -> list[str]:
    """VideoMMMU's gain, where the other run saw question-only clips of the Adaptation track and this one did not."""
    before, after = (list(filter(_adapts, each.predictions.get("videommmu", ()))) for each in (other, run))
    seen = [{QUESTION_ONLY in (item.path or "") for item in items} for items in (before, after)]
    if seen != [{True}, {False}]:
        return []
    field = next(name for name, value in after[0].categories.items() if value == "Adaptation")
    found = []
    for rule in rules:
        alone, taught = (each.score("videommmu", rule, f"{field}/Adaptation").value for each in (other, run))
        if alone is None or taught is None:
            continue
        if alone == 100:
            found.append(f"VideoMMMU, {rule}: all Adaptation questions were right without the lecture.")
        else:
            found.append(
                f"VideoMMMU's knowledge gain, {rule}: {delta_knowledge(alone, taught):+.1f} % (Adaptation "
                f"{alone:.1f} % on question-only clips, {taught:.1f} % with the lecture)."
            )
    return found


def _adapts(item: Prediction) -> bool:
    return "Adaptation" in (item.categories.get("track"), item.categories.get("original_question_type"))


def _settings(run: EvaluationRun, other: EvaluationRun) -> Block:
    ours, theirs = settings_of(run), settings_of(other)
    rows = [
        (name, *(short_digest(settings.get(name, ABSENT)) for settings in (ours, theirs)))
        for name in dict.fromkeys((*ours, *theirs))
        if ours.get(name) != theirs.get(name)
    ]
    if not rows:
        return "Both manifests state the same model, data, settings and versions."
    header = ("Setting", "This run", "Other")
    return Table(caption="What the manifests state differently", header=header, rows=rows, text_columns=3)
