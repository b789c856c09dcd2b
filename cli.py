"""Commands of VideoRFT on Lightning: `python cli.py COMMAND --help`.

fit, validate, test and predict are LightningCLI's, with stacked YAML files: `python cli.py fit -c model.yaml -c
trainer.yaml`. demo and check are functions. This is the only place where concrete parts meet.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning.pytorch.cli import LightningCLI

TRACEBACK_VARIABLE = "VIDEORFT_TRACEBACK"
"""Set to anything, it makes a user's mistake end in its traceback too."""

KNOWN_WARNINGS = (
    r"LightningCLI's args parameter is intended to run from within Python",
    r"You have overridden `on_before_batch_transfer` in `LightningModule`",  # on purpose: positions are the policy's
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # Lightning's own
    r"Total length of `list` across ranks is zero",  # fit without validation files
    r"The '\w+_dataloader' does not have many workers",  # the number of workers is configured
)


def lightning_cli(arguments: Sequence[str], *, run: bool = True) -> LightningCLI:
    """Parse, and with `run` execute, a LightningCLI command line.

    Without `run` there is no subcommand and nothing is built: the parsed configuration is in `.config`.
    """
    from lightning.pytorch.cli import LightningCLI

    from datamodules.video_datamodule import VideoDataModule
    from lightning_modules.policy_module import PolicyModule

    class VideoRFTCLI(LightningCLI):
        def add_arguments_to_parser(self, parser) -> None:
            parser.link_arguments("model.init_args.model_name_or_path", "data.init_args.model_name_or_path")
            for part in ("model", "data"):
                parser.link_arguments("seed_everything", f"{part}.init_args.seed", compute_fn=int)
            # Our sampler deals records out to ranks itself, and resumes where it stopped.
            parser.set_defaults({"trainer.use_distributed_sampler": False})

        def instantiate_classes(self) -> None:
            if run:
                super().instantiate_classes()

    for message in KNOWN_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    return VideoRFTCLI(
        PolicyModule,
        VideoDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        seed_everything_default=0,
        save_config_kwargs={"overwrite": True},
        parser_kwargs={"description": __doc__},
        args=list(arguments),
        run=run,
    )


def lightning_command(arguments: Sequence[str]) -> None:
    """Run fit, validate, test or predict."""
    lightning_cli(arguments)


def demo_command(arguments: Sequence[str]) -> None:
    """Train the tiny model on generated clips: SFT, GRPO, validation, table, curves."""
    from jsonargparse import auto_cli

    def demo(output: str = "runs/demo", seed: int = 0) -> None:
        """A video language model learns to reason, on a CPU, without a download.

        Args:
            output: folder for model, clips, logs and results.
            seed: of weights, data and sampling.
        """
        from lightning_modules.demo import Demo

        Demo(output=Path(output), seed=seed, run=lightning_command).run_all()

    auto_cli(demo, args=list(arguments), as_positional=False)


def check_data(
    config: list[str],
    stage: str = "fit",
    limit: int | None = None,
    decode: bool = True,
    num_threads: int = 2,
) -> None:
    """Look at every record and its media as a run would, without a model.

    Args:
        config: the YAML files of the run.
        stage: whose files: fit, validate, test or predict.
        limit: decode and count only the first so many records; null for all.
        decode: read the sampled frames; false reads headers only.
        num_threads: records looked at at the same time.
    """
    from datamodules import doctor
    from datamodules.records import scan

    data = _configured(config, "data")
    files = data.stage_files(stage)
    data.load_tokenizer()
    report = doctor.check_data(
        chain.from_iterable(scan(file, require_process=data.needs_process(stage)) for file in files),
        data.data_root,
        data.train_profile if stage == "fit" else data.eval_profile,
        count_tokens=doctor.text_token_counter(data.tokenizer, data.prompt),
        max_prompt_tokens=data.max_prompt_tokens,
        limit=limit,
        decode=decode,
        reader=data.reader,
        num_threads=num_threads,
    )
    _finish(report)


def check_rewards(
    config: list[str] | None = None,
    stage: str = "fit",
    completions: str | None = None,
    output: str | None = None,
) -> None:
    """Score the gold answers of a run's data with its rewards, or a file of completions.

    Args:
        config: the YAML files of the run.
        stage: whose files: fit, validate, test or predict.
        completions: JSONL with problem_type, completion and solution in every row, instead of a run.
        output: the same rows with their scores.
    """
    from datamodules import doctor
    from datamodules.records import scan
    from rewards import AccuracyReward, FormatReward
    from rewards.completions_file import score_completions_file
    from rewards.suite import RewardSuite

    if (config is None) == (completions is None):
        raise ValueError("`check rewards` takes either --config with the YAML files of a run, or --completions.")
    if completions is not None:
        if output is None:
            raise ValueError("`check rewards --completions` also needs --output, the file to write.")
        print(score_completions_file(Path(completions), Path(output)).render())
        return
    data, model = _configured(config, "data"), _configured(config, "model")
    suite = getattr(model, "suite", None) or RewardSuite([AccuracyReward(), FormatReward()])
    records = chain.from_iterable(scan(file) for file in data.stage_files(stage))
    _finish(doctor.check_rewards(records, suite))


def check_command(arguments: Sequence[str]) -> None:
    """Look at data or rewards before training."""
    from jsonargparse import auto_cli

    auto_cli({"data": check_data, "rewards": check_rewards}, args=list(arguments), as_positional=False)


def _configured(config: Sequence[str], part: str):
    """The run's data module or model, from its YAML files; the trainer is not built."""
    from jsonargparse import Namespace

    cli = lightning_cli([f"--config={file}" for file in config], run=False)
    return cli.parser.instantiate_classes(Namespace({part: cli.config[part]}))[part]


def _finish(report) -> None:
    print(report.render())
    if not report.ok:
        sys.exit(1)


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {"demo": demo_command, "check": check_command}
"""Commands besides those of LightningCLI."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; a user's mistake ends in one message, everything else in its traceback."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    command = COMMANDS.get(given[0], lightning_command) if given else lightning_command
    try:
        command(given[1:] if command is not lightning_command else given)
    except ValueError as error:
        if os.environ.get(TRACEBACK_VARIABLE):
            raise
        print(f"error: {error}\n({TRACEBACK_VARIABLE}=1 shows where this was raised)", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
