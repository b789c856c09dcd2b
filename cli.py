"""Commands of VideoRFT on Lightning: `python cli.py COMMAND --help`.

fit, validate, test and predict are LightningCLI's, with stacked YAML files: `python cli.py fit -c model.yaml -c
trainer.yaml`. The others are in lightning_modules/commands/. This is the only place where concrete parts meet.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from lightning_modules.commands import error_messages
from lightning_modules.commands.check_command import check_command
from lightning_modules.commands.convert_command import convert_command
from lightning_modules.commands.demo_command import demo_command
from lightning_modules.commands.export_command import export_command
from lightning_modules.commands.kept_results import check_unused, folder_lock
from lightning_modules.commands.report_command import report_command
from lightning_modules.commands.run_options import run_options

if TYPE_CHECKING:
    from lightning import Trainer
    from lightning.pytorch.cli import LightningCLI

TRACEBACK_VARIABLE = "VIDEORFT_TRACEBACK"
"""Set to anything, it makes a user's mistake end in its traceback too."""

CHECKPOINT_KEYWORDS = ("last", "best", "hpc")
"""What Lightning resolves itself where a checkpoint's path could stand."""

KNOWN_WARNINGS = (
    r"LightningCLI's args parameter is intended to run from within Python",
    r"You have overridden `on_before_batch_transfer` in `LightningModule`",  # on purpose: positions are the policy's
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # Lightning's own
    r"Total length of `list` across ranks is zero",  # fit without validation files
    r"The '\w+_dataloader' does not have many workers",  # the number of workers is configured
    r"You're resuming from a checkpoint that ended before the epoch ended and your dataloader is not",  # ours resumes
    r"Using ModelCheckpoint with manual optimization",  # weights after the update are what a resume needs
    r"\s*``instantiate_classes`` was deprecated",  # its successor is not in the oldest jsonargparse supported
    r"`gradient_checkpointing_enable` is deprecated",  # its successor is not in the oldest transformers supported
)


def lightning_cli(arguments: Sequence[str], *, run: bool = True) -> LightningCLI:
    """Parse, and with `run` execute, a LightningCLI command line.

    Without `run` there is no subcommand and nothing is built: the parsed configuration is in `.config`.
    """
    from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

    from datamodules.video_datamodule import VideoDataModule
    from lightning_modules.benchmark_module import BenchmarkModule
    from lightning_modules.evaluation import replay
    from lightning_modules.memory.slices import settle_slices
    from lightning_modules.policy.loading import supported_model_type
    from lightning_modules.policy_module import PolicyModule
    from lightning_modules.training.last_checkpoint import LastCheckpoint, last_checkpoint
    from lightning_modules.training.precision import trainer_options

    class Parser(LightningArgumentParser):
        def error(self, message: str, ex: Exception | None = None) -> NoReturn:
            if not self.exit_on_error:
                super().error(message, ex)
            parser = getattr(ex, "subcommand_parser", None) or self
            self.exit(
                2, f"error: {error_messages.plain(message)}\n{error_messages.option_hint(message, parser.prog)}\n"
            )

    class VideoRFTCLI(LightningCLI):
        last: LastCheckpoint | None = None
        held = ExitStack()

        def add_arguments_to_parser(self, parser) -> None:
            parser.link_arguments("model.init_args.model_name_or_path", "data.init_args.model_name_or_path")
            for part in ("model", "data"):
                parser.link_arguments("seed_everything", f"{part}.init_args.seed", compute_fn=int)
            # Our sampler deals records out to ranks itself, and resumes where it stopped.
            parser.set_defaults({"trainer.use_distributed_sampler": False})

        def before_instantiate_classes(self) -> None:
            if self.subcommand is not None:
                given = self.config[self.subcommand]
                _check_checkpoint(given.get("ckpt_path"))
                self.held.enter_context(folder_lock(self.subcommand, given["trainer"].as_dict()))
                if given.get("ckpt_path") == "last" and (found := last_checkpoint(given["trainer"].as_dict())):
                    self.last, given["ckpt_path"] = found, str(found.path)

        def instantiate_trainer(self, **kwargs: Any) -> Trainer:
            options = trainer_options({**self._get(self.config_init, "trainer", default={}), **kwargs})
            if self.subcommand is not None:
                continued = self.last if self.subcommand == "fit" else None
                options = run_options(options, self.subcommand, self.model, continued)
            return super().instantiate_trainer(**options)

        def instantiate_classes(self) -> None:
            if self.subcommand is not None:
                with error_messages.user_mistakes_unwrapped():
                    super().instantiate_classes()
                check_unused(self.trainer, self.subcommand, self.config[self.subcommand].get("ckpt_path"))
                supported_model_type(self.model.model_name_or_path)  # fails before any data file is read
                if self.subcommand == "fit":
                    trainer = self.config[self.subcommand]["trainer"].as_dict()
                    settle_slices(self.model, self.datamodule, trainer, self.trainer.world_size)
                if isinstance(self.model, BenchmarkModule):
                    settings = self._parser(self.subcommand).dump(self.config[self.subcommand], format="json")
                    self.model.run_config = replay.run_config(json.loads(settings))

    for message in KNOWN_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_is_no_advertisement)
    with VideoRFTCLI.held:
        return VideoRFTCLI(
            PolicyModule,
            VideoDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            seed_everything_default=0,
            save_config_kwargs={"overwrite": True},
            parser_class=Parser,
            args=list(arguments),
            run=run,
        )


def _is_no_advertisement(record: logging.LogRecord) -> bool:
    """Whether a log record says something about the run: Lightning's tips name packages of its platform."""
    return not record.getMessage().startswith("💡 Tip")


def _check_checkpoint(path: str | None) -> None:
    if path and path not in CHECKPOINT_KEYWORDS and "://" not in path and not Path(path).exists():
        from rewards.errors import UserError

        raise UserError(
            f"ckpt_path is {path!r}, which does not exist (looked from {Path.cwd()}). Give a checkpoint of an earlier "
            f"run, or one of {', '.join(CHECKPOINT_KEYWORDS)}."
        )


def lightning_command(arguments: Sequence[str]) -> None:
    """Run fit, validate, test or predict; `arguments` begin with that name."""
    from lightning_modules.evaluation.replay import with_manifest

    lightning_cli(with_manifest(arguments))


def parse_run(arguments: Sequence[str]) -> LightningCLI:
    """Parse the options of a run; nothing is built."""
    return lightning_cli(arguments, run=False)


class Command(NamedTuple):
    run: Callable[[Sequence[str]], None]
    """Takes the command line, the command's own name first."""
    summary: str


COMMANDS: dict[str, Command] = {
    "fit": Command(lightning_command, "train the model of the given YAML files"),
    "validate": Command(lightning_command, "answer the validation questions and measure"),
    "test": Command(lightning_command, "answer the test questions and measure"),
    "predict": Command(lightning_command, "answer questions"),
    "demo": Command(partial(demo_command, run=lightning_command), "teach a tiny model on the CPU, without a download"),
    "check": Command(partial(check_command, parse=parse_run), "look at data, rewards, memory or a stored batch"),
    "convert": Command(convert_command, "make a benchmark's data file from its authors' annotation"),
    "report": Command(report_command, "tables, plots and examples of a benchmark run"),
    "export": Command(partial(export_command, parse=parse_run), "make a Hugging Face folder of a checkpoint"),
}
"""All commands, as `python cli.py --help` lists them."""


def overview() -> str:
    """What `python cli.py --help` prints."""
    lines = ["usage: python cli.py COMMAND ...", ""]
    lines += [f"  {name:<10}{command.summary}" for name, command in COMMANDS.items()]
    lines += [
        "",
        "`python cli.py COMMAND --help` lists a command's options. Runs are stacked YAML files:",
        "`python cli.py fit -c configs/grpo/qwen2_5_vl_7b.yaml -c configs/trainer/1gpu.yaml`.",
    ]
    return "\n".join(lines)


def _rank() -> str:
    """Which of several processes speaks, where torchrun or srun started it."""
    for rank, size in (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS")):
        if int(os.environ.get(size, "1")) > 1 and rank in os.environ:
            return f" on rank {os.environ[rank]} of {os.environ[size]}"
    return ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; a user's mistake ends in one message, everything else in its traceback.

    Returns:
        The exit status: 0, or 2 after a user's mistake. Checks that find something, `--help` and faults of the
        command line leave by SystemExit.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if str(Path.cwd()) not in sys.path:  # a user's own rewards are where the command is run, not beside this file
        sys.path.append(str(Path.cwd()))
    if given[:1] in (["-h"], ["--help"]):
        print(overview())
        return 0
    if not given or given[0] not in COMMANDS:
        problem = f"there is no command {given[0]!r}" if given else "a command is missing"
        print(f"error: {problem}\n\n{overview()}", file=sys.stderr)
        return 2
    try:
        COMMANDS[given[0]].run(given)
    except error_messages.mistakes() as error:
        if os.environ.get(TRACEBACK_VARIABLE):
            raise
        print(
            f"error{_rank()}: {error_messages.reason(error)}\n({TRACEBACK_VARIABLE}=1 shows where this was raised)",
            file=sys.stderr,
        )
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
