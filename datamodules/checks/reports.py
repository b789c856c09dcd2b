"""What the checks of the data found, and how it is printed."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from datamodules.text_table import text_table
from datamodules.video.types import printable
from rewards.types import ProblemType

SHOWN_PER_KIND = 20
"""A rendered report shows this many findings of a kind and counts the others."""
SHOWN_LARGEST = 5
_QUANTILES = (0.0, 0.5, 0.9, 0.99, 1.0)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One fault."""

    kind: str
    """Heading under which the report lists it."""
    where: str
    """`file:line (problem_id ...)`."""
    message: str


@dataclass(frozen=True, kw_only=True)
class PromptSize:
    """Tokens of one record's prompt."""

    where: str
    vision: int
    """Tokens of the video or image after spatial merging; 0 for text."""
    text: int
    """Every other token; 0 where no counter was given."""

    @property
    def total(self) -> int:
        return self.vision + self.text


@dataclass(kw_only=True)
class Report:
    """What a check found."""

    counts: Counter = field(default_factory=Counter)
    """Kind of record -> how many valid ones were checked."""
    problems: list[Finding] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """No problem, and at least one valid record."""
        return not self.problems and self.counts.total() > 0


@dataclass(kw_only=True)
class DataReport(Report):
    """What `check_data` found; its `counts` are by (data type, problem type)."""

    sizes: list[PromptSize] = field(default_factory=list)
    """Of the records whose media were read and are sound."""
    doubts: list[Finding] = field(default_factory=list)
    """What looks like a mistake in valid records, though it may be meant."""

    def render(self) -> str:
        """Plain text: counts, token quantiles, largest prompts, problems."""
        lines = [f"{self.counts.total():,} valid records, media of {len(self.sizes):,} checked and sound"]
        lines += text_table([(*kind, f"{count:,}") for kind, count in sorted(self.counts.items())])
        if self.sizes:
            lines += ["", "tokens per prompt", *text_table(self._quantiles()), "", "largest prompts"]
            largest = heapq.nlargest(SHOWN_LARGEST, self.sizes, key=lambda size: size.total)
            lines += text_table([(f"{size.total:,}", size.where) for size in largest])
        if self.doubts:
            lines += ["", *_rendered_findings("possible mistakes", self.doubts)]
        return "\n".join([*lines, "", *_rendered_findings("problems", self.problems)])

    def _quantiles(self) -> list[tuple[str, ...]]:
        rows: list[tuple[str, ...]] = [("", "min", "50%", "90%", "99%", "max")]
        for name in ("vision", "text", "total"):
            values = [getattr(size, name) for size in self.sizes]
            levels = np.quantile(values, _QUANTILES, method="higher")
            rows.append((name, *(f"{int(level):,}" for level in levels)))
        return rows


@dataclass(kw_only=True)
class ScoreReport(Report):
    """Mean scores by problem type, which its `counts` are by too."""

    sums: dict[ProblemType, Counter[str]] = field(default_factory=dict)
    """Problem type -> name of a score -> sum."""

    def add(self, problem_type: ProblemType, scores: Mapping[str, float]) -> None:
        """Add the scores of one answer."""
        self.counts[problem_type] += 1
        self.sums.setdefault(problem_type, Counter()).update(scores)

    @property
    def means(self) -> dict[ProblemType, dict[str, float]]:
        """Problem type -> name of a score -> mean."""
        return {
            kind: {name: total / self.counts[kind] for name, total in sums.items()} for kind, sums in self.sums.items()
        }

    def table(self, counted: str) -> list[str]:
        """Lines with the means; `counted` is what the counts are of."""
        names = list(dict.fromkeys(name for scores in self.means.values() for name in scores))
        rows = [("problem type", counted, *names)]
        for kind, scores in self.means.items():
            rows.append((kind.value, f"{self.counts[kind]:,}", *(f"{scores[name]:.3f}" for name in names)))
        return text_table(rows)


@dataclass(kw_only=True)
class CompletionsReport(ScoreReport):
    """What `score_completions_file` found: means of "accuracy", "format" and "total" over the rows."""

    def render(self) -> str:
        """Plain text: rows and means by problem type."""
        return "\n".join([f"{self.counts.total():,} completions", *self.table("rows")])


@dataclass(kw_only=True)
class RewardReport(ScoreReport):
    """What `check_rewards` found: means of the gold answers' raw scores.

    Problems are gold answers with accuracy 0, that cannot be scored, or that are none of the options.
    """

    below_one: list[Finding] = field(default_factory=list)
    """Gold answers with an accuracy above 0 and below 1. ROUGE gives an exact one-word answer 2/3."""

    def render(self) -> str:
        """Plain text: mean scores by problem type, then the answers below 1 and the problems."""
        lines = [f"scores of {self.counts.total():,} gold answers", *self.table("records"), ""]
        lines += [*_rendered_findings("gold answers with an accuracy below 1", self.below_one), ""]
        return "\n".join([*lines, *_rendered_findings("problems", self.problems)])


def _rendered_findings(title: str, findings: Sequence[Finding]) -> list[str]:
    if not findings:
        return [f"{title}: none"]
    lines = [f"{title}: {len(findings):,}"]
    for kind, count in Counter(finding.kind for finding in findings).most_common():
        lines.append(f"  {kind} ({count:,})")
        shown = [finding for finding in findings if finding.kind == kind][:SHOWN_PER_KIND]
        lines += [f"    {finding.where}: {printable(finding.message)}" for finding in shown]
        if count > len(shown):
            lines.append(f"    and {count - len(shown):,} more")
    return lines
