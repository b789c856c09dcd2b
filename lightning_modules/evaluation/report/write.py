"""Makes the report of a run folder: `report.md` and `report.html`, a function of the folder's files and its media."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from datamodules.whole_files import write_whole
from lightning_modules.evaluation.report.comparison import comparison_section
from lightning_modules.evaluation.report.examples import make_examples
from lightning_modules.evaluation.report.render import render_html, render_markdown
from lightning_modules.evaluation.report.run_folder import EvaluationRun, load_run
from lightning_modules.evaluation.report.sections import (
    EXAMPLES_SECTION,
    benchmark_section,
    failures_section,
    score_sections,
    settings_section,
)
from rewards.errors import UserError

EXAMPLES = 12
"""Of each benchmark."""


@dataclass(frozen=True, kw_only=True)
class ReportFiles:
    """What `write_report` wrote."""

    markdown: Path
    html: Path
    without_frames: int
    """Examples whose media could not be read."""


def write_report(
    run: str,
    compare: str | None = None,
    output: str | None = None,
    examples: int = EXAMPLES,
    data_root: str | None = None,
) -> ReportFiles:
    """Write report.md and report.html of a benchmark run, without a model.

    Equal predictions, manifests and media give equal bytes.

    Args:
        run: folder of a finished validate or test run on benchmarks.
        compare: folder of another run on the same items; the report then tells how sure their difference is.
        output: folder of the two files; default: the run's.
        examples: how many examples of each benchmark the page shows.
        data_root: where the videos lie; default: the folder that the run's manifest names.

    Raises:
        UserError: a folder is not that of a finished run or its files do not belong together, the runs hold different
            items, `examples` is negative, or the data root does not exist.
    """
    if examples < 0:
        raise UserError(f"examples is {examples}; give 0 for none, or how many of each benchmark are shown.")
    this = load_run(run)
    other = None if compare is None else load_run(compare)
    shown = make_examples(this, other, limit=examples, data_root=_data_root(this, data_root)) if examples else []
    sections = [
        *score_sections(this),
        *([comparison_section(this, other)] if other else []),
        *(benchmark_section(this, benchmark) for benchmark in this.predictions),
        failures_section(this),
        settings_section(this),
    ]
    page_sections = [*sections[:-1], EXAMPLES_SECTION, sections[-1]] if shown else sections
    title, lead = f"Benchmark report: {this.label}", _lead(this)
    target = Path(run if output is None else output)
    target.mkdir(parents=True, exist_ok=True)
    files = ReportFiles(
        markdown=target / "report.md",
        html=target / "report.html",
        without_frames=sum(example.strip is None and example.prediction.path is not None for example in shown),
    )
    write_whole(files.markdown, render_markdown(title, lead, sections))
    write_whole(files.html, render_html(title, lead, page_sections, shown))
    return files


def _lead(run: EvaluationRun) -> str:
    """One sentence on what was measured."""
    items, settings = sum(map(len, run.predictions.values())), run.manifest.identity.settings
    answers = {"generate": "answers are generated", "likelihood": "multiple choice by the likeliest option letter"}
    return (
        f"{items:,} items of {len(run.predictions)} benchmark{'' if len(run.predictions) == 1 else 's'}; "
        f"{settings.frames.num_frames} frames of at most {settings.frames.max_pixels:,} pixels; "
        f"{answers[settings.choice_scoring]}; scoring rules {' and '.join(run.rules)}. "
        f"Manifest {run.results.manifest_sha256[:12]}."
    )


def _data_root(run: EvaluationRun, given: str | None) -> Path:
    root = Path(run.manifest.paths.data_root if given is None else given)
    if not root.is_dir():
        raise UserError(
            f"The film strips need the media of the run, but its data root {str(root)!r} does not exist here (looked "
            f"from {Path.cwd()}). Give --data_root the folder that the items' paths are relative to, or --examples 0."
        )
    return root
