"""`python cli.py convert BENCHMARK FILE ...`: a benchmark's own annotation as the data file of an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def convert_command(arguments: Sequence[str]) -> None:
    """Make the data file of a benchmark from its authors' annotation."""
    from jsonargparse import ArgumentParser

    from datamodules.evaluation.benchmarks import BENCHMARKS
    from datamodules.evaluation.benchmarks.annotation import convert_files
    from rewards.errors import UserError

    with_parts = ", ".join(name for name, benchmark in BENCHMARKS.items() if benchmark.parts)
    with_clips = ", ".join(name for name, benchmark in BENCHMARKS.items() if benchmark.question_only)
    parser = ArgumentParser(prog="cli.py convert", description=convert_command.__doc__)
    parser.add_argument("benchmark", choices=list(BENCHMARKS))
    files = "annotation files (.json, .jsonl, .parquet); PART=FILE for {}, whose files do not name their track or task"
    parser.add_argument("files", nargs="+", help=files.format(with_parts))
    parser.add_argument("--output", required=True, help="the data file; an earlier one is replaced")
    parser.add_argument("--folder", help="folder of the videos, relative to the data root; default: the authors'")
    clips = f"{with_clips}: the clips without the lecture, for the score before it"
    parser.add_argument("--question_only", action="store_true", help=clips)
    given = parser.parse_args(list(arguments[1:]))
    benchmark = BENCHMARKS[given.benchmark]
    if given.question_only and not benchmark.question_only:
        raise UserError(f"--question_only belongs to {with_clips}; {given.benchmark} has no such clips.")
    options = {"folder": given.folder} if given.folder else {}
    options |= {"question_only": True} if given.question_only else {}
    count = convert_files(benchmark, given.files, Path(given.output), **options)
    print(f"{count:,} questions in {given.output}; {benchmark.title} has {benchmark.items:,} in full")
