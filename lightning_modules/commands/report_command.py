"""`python cli.py report RUN_FOLDER`: the report of a benchmark run, from what the run left on the disk."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_modules.commands.run_config import summary_of


def report(
    run: str, compare: str | None = None, output: str | None = None, examples: int = 12, data_root: str | None = None
) -> None:
    """Write report.md and report.html of a benchmark run, without a model.

    Args:
        run: folder of a finished validate or test run on benchmarks.
        compare: folder of another run on the same items; the report then tells how sure their difference is.
        output: folder of the two files; default: the run's.
        examples: how many examples of each benchmark the page shows.
        data_root: where the videos lie; default: the folder that the run's manifest names.
    """
    from lightning_modules.evaluation.report.write import write_report

    files = write_report(run, compare=compare, output=output, examples=examples, data_root=data_root)
    if files.without_frames:
        print(f"Examples without frames, because their media could not be read: {files.without_frames}; each says why")
    print(f"Report: {files.html}\nTables: {files.markdown}")


def report_command(arguments: Sequence[str]) -> None:
    """Make the report of a benchmark run."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(prog="cli.py report", description=summary_of(report))
    parser.add_function_arguments(report, as_group=False, as_positional=True)
    report(**parser.parse_args(list(arguments[1:])))
