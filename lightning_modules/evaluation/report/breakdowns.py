"""One section per benchmark: what is to be known about its data, and its scores by task, duration, aspect and so on."""

from __future__ import annotations

from collections.abc import Iterable

from datamodules.evaluation.benchmarks import BENCHMARKS
from lightning_modules.evaluation.report.blocks import ABSENT, Block, Cell, Paragraph, Section, Table
from lightning_modules.evaluation.report.overview import score_of
from lightning_modules.evaluation.report.run_folder import EvaluationRun

_DURATIONS = ("short", "medium", "long")


def benchmark_section(run: EvaluationRun, benchmark: str) -> Section:
    """Notes on the data and a table for each field that divides the benchmark."""
    facts = BENCHMARKS[benchmark]
    results = run.results.benchmarks[benchmark]
    blocks: list[Block] = [Paragraph(text=facts.notes)]
    blocks += [Paragraph(kind="warning", text=note) for note in results.notes]
    names = list(dict.fromkeys(name for protocol in run.scoring_rules for name in run.means(benchmark, protocol)))
    headline = {name for rule in results.scoring_rules.values() for name in rule.headline}
    of_score = [name for name in names if "/" not in name and name not in headline]
    if of_score:
        blocks.append(_table(run, benchmark, "Tasks of the official score", of_score))
    fields = dict.fromkeys(name.split("/", 1)[0] for name in names if "/" in name)
    for field in fields:
        members = [name for name in names if name.startswith(f"{field}/")]
        blocks.append(_table(run, benchmark, field_title(benchmark, field), in_reading_order(members)))
    return Section(anchor=benchmark, title=facts.title, blocks=blocks)


def field_title(benchmark: str, field: str) -> str:
    """`By task`; the record's field stands behind it where it has another name."""
    groups = BENCHMARKS[benchmark].breakdowns
    group = next((group for group, fields in groups.items() if field in fields), field.replace("_", " "))
    return f"By {group}" + ("" if group == field else f" ({field})")


def in_reading_order(names: Iterable[str]) -> list[str]:
    """Alphabetic, but short, medium, long."""

    def key(name: str) -> tuple[int, str]:
        value = name.split("/", 1)[-1]
        return (_DURATIONS.index(value) if value in _DURATIONS else len(_DURATIONS), name)

    return sorted(names, key=key)


def _table(run: EvaluationRun, benchmark: str, caption: str, names: list[str]) -> Table:
    protocols = [
        protocol for protocol in run.scoring_rules if any(name in run.means(benchmark, protocol) for name in names)
    ]
    header = ["Group"]
    for protocol in protocols:
        header += [f"Score, {protocol}", "Items scored", "Failed"]
    rows = []
    for name in names:
        row: list[Cell] = [name.split("/", 1)[-1]]
        for protocol in protocols:
            mean = run.means(benchmark, protocol).get(name)
            if mean is None:
                row += [ABSENT, "0", "0"]  # none of its items is of a kind that this protocol grades
            else:
                counts = (f"{mean.scored:,}", f"{mean.failed:,}")
                row += [score_of(run, benchmark, protocol, name), *counts]
        rows.append(row)
    return Table(caption=f"{caption}, in percent", header=header, rows=rows)
