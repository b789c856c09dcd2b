"""Commands of VideoRFT on Lightning: `python cli.py COMMAND --help`.

fit, validate, test and predict are LightningCLI's, with stacked YAML files: `python cli.py fit -c model.yaml -c
trainer.yaml`. The others are functions. This is the only place where concrete parts meet.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

TRACEBACK_VARIABLE = "VIDEORFT_TRACEBACK"


def lightning_command(arguments: Sequence[str]) -> None:
    """Run fit, validate, test or predict."""
    from lightning.pytorch.cli import LightningCLI

    from datamodules.video_datamodule import VideoDataModule
    from lightning_modules.policy_module import PolicyModule

    class VideoRFTCLI(LightningCLI):
        def add_arguments_to_parser(self, parser) -> None:
            parser.link_arguments("model.init_args.model_name_or_path", "data.init_args.model_name_or_path")

    VideoRFTCLI(
        PolicyModule,
        VideoDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        seed_everything_default=0,
        save_config_kwargs={"overwrite": True},
        parser_kwargs={"description": __doc__},
        args=list(arguments),
    )


def demo_command(arguments: Sequence[str]) -> None:
    """Train the tiny model on generated clips: SFT, GRPO, validation, table, curves."""
    from jsonargparse import auto_cli

    from lightning_modules.demo import Demo

    def demo(output: str = "runs/demo", seed: int = 0) -> None:
        """A video language model learns to reason, on a CPU, without a download.

        Args:
            output: folder for model, clips, logs and results.
            seed: of weights, data and sampling.
        """
        Demo(output=Path(output), seed=seed, run=lightning_command).run_all()

    auto_cli(demo, args=list(arguments), as_positional=False)


def check_command(arguments: Sequence[str]) -> None:
    """Look at data or rewards before training."""
    from jsonargparse import auto_cli

    from datamodules.doctor import check_data_command, check_rewards_command

    auto_cli({"data": check_data_command, "rewards": check_rewards_command}, args=list(arguments), as_positional=False)


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {"demo": demo_command, "check": check_command}
"""Commands besides those of LightningCLI."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; a user's mistake ends in one message, everything else in its traceback."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    command = COMMANDS.get(given[0]) if given else None
    try:
        if command is not None:
            command(given[1:])
        else:
            lightning_command(given)
    except ValueError as error:
        if os.environ.get(TRACEBACK_VARIABLE):
            raise
        print(f"error: {error}\n({TRACEBACK_VARIABLE}=1 shows where this was raised)", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
