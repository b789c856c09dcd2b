"""`python cli.py demo`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path


def demo_command(arguments: Sequence[str], *, run: Callable[[Sequence[str]], None]) -> None:
    """Train the tiny model on generated clips: SFT, GRPO, validation, table, curves.

    Args:
        arguments: the command line, the command's own name first.
        run: executes the command line of fit or validate.
    """
    from jsonargparse import auto_cli

    def demo(output: str = "runs/demo", seed: int = 0) -> None:
        """A video language model learns to reason, on a CPU, without a download.

        Args:
            output: folder for model, clips, logs and results.
            seed: of weights, data and sampling.
        """
        from lightning_modules.commands.demo import Demo

        Demo(output=Path(output), seed=seed, run=run).run_all()

    auto_cli(demo, args=list(arguments[1:]), as_positional=False, prog="cli.py demo")
