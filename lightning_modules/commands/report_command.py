"""`python cli.py report RUN_FOLDER`: the report of a benchmark run, from what the run left on the disk."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_modules.commands.run_config import summary_of


def report_command(arguments: Sequence[str]) -> None:
    """Make the report of a benchmark run."""
    from jsonargparse import ArgumentParser

    from lightning_modules.evaluation.report.write import write_report

    parser = ArgumentParser(prog="cli.py report", description=summary_of(write_report))
    parser.add_function_arguments(write_report, as_group=False, as_positional=True)
    files = write_report(**parser.parse_args(list(arguments[1:])))
    if files.without_frames:
        print(f"Examples without frames, because their media could not be read: {files.without_frames}; each says why")
    print(f"Report: {files.html}\nTables: {files.markdown}")
