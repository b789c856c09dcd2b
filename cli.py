"""Commands of VideoRFT on Lightning: `python cli.py COMMAND --help`.

fit, validate, test and predict are LightningCLI's, with stacked YAML files: `python cli.py fit -c model.yaml -c
trainer.yaml`. demo, check and export are functions. This is the only place where concrete parts meet.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, NoReturn

from lightning_modules import error_messages

if TYPE_CHECKING:
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
    r"Found \d+ module\(s\) in eval mode at the start of training",  # GRPO's frozen reference
    r"\s*``instantiate_classes`` was deprecated",  # its successor is not in the oldest jsonargparse supported
    r"`gradient_checkpointing_enable` is deprecated",  # its successor is not in the oldest transformers supported
)


def lightning_cli(arguments: Sequence[str], *, run: bool = True) -> LightningCLI:
    """Parse, and with `run` execute, a LightningCLI command line.

    Without `run` there is no subcommand and nothing is built: the parsed configuration is in `.config`.
    """
    from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

    from datamodules.video_datamodule import VideoDataModule
    from lightning_modules.policy.loading import supported_model_type
    from lightning_modules.policy_module import PolicyModule

    class Parser(LightningArgumentParser):
        def error(self, message: str, ex: Exception | None = None) -> NoReturn:
            if not self.exit_on_error:
                super().error(message, ex)
            parser = getattr(ex, "subcommand_parser", None) or self
            self.exit(
                2, f"error: {error_messages.plain(message)}\n{error_messages.option_hint(message, parser.prog)}\n"
            )

    class VideoRFTCLI(LightningCLI):
        def add_arguments_to_parser(self, parser) -> None:
            parser.link_arguments("model.init_args.model_name_or_path", "data.init_args.model_name_or_path")
            for part in ("model", "data"):
                parser.link_arguments("seed_everything", f"{part}.init_args.seed", compute_fn=int)
            # Our sampler deals records out to ranks itself, and resumes where it stopped.
            parser.set_defaults({"trainer.use_distributed_sampler": False})

        def before_instantiate_classes(self) -> None:
            if run:
                _check_checkpoint(self.config[self.subcommand].get("ckpt_path"))

        def instantiate_classes(self) -> None:
            if run:
                super().instantiate_classes()
                supported_model_type(self.model.model_name_or_path)  # said before any data file is read

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
        parser_class=Parser,
        args=list(arguments),
        run=run,
    )


def _check_checkpoint(path: str | None) -> None:
    if path and path not in CHECKPOINT_KEYWORDS and "://" not in path and not Path(path).exists():
        raise ValueError(
            f"ckpt_path is {path!r}, which does not exist (looked from {Path.cwd()}). Give a checkpoint of an earlier "
            f"run, or one of {', '.join(CHECKPOINT_KEYWORDS)}."
        )


def lightning_command(arguments: Sequence[str]) -> None:
    """Run fit, validate, test or predict; `arguments` begin with that name."""
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

    auto_cli(demo, args=list(arguments[1:]), as_positional=False, prog="cli.py demo")


def check_data(
    config: list[str] | None = None,
    stage: str = "fit",
    limit: int | None = None,
    decode: bool = True,
    num_threads: int = 2,
) -> None:
    """Look at every record and its media as a run would, without a model.

    Args:
        config: YAML file of the run; give the option once per file.
        stage: whose files: fit, validate, test or predict.
        limit: decode and count only the first so many records; null for all.
        decode: read the sampled frames; false reads headers only.
        num_threads: records looked at at the same time.
    """
    from datamodules import doctor
    from datamodules.records import scan

    if config is None:
        raise ValueError("`check data` needs the YAML files of a run; give each with -c (--config).")
    data = _configured(config, "data")
    files = data.stage_files(stage)
    profile = data.train_profile if stage == "fit" else data.eval_profile
    data.load_tokenizer()
    data.check_patch_sizes(profile)
    report = doctor.check_data(
        chain.from_iterable(scan(file, require_process=data.needs_process(stage)) for file in files),
        data.data_root,
        profile,
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
    rollouts: str | None = None,
) -> None:
    """Score the gold answers of a run's data with its rewards, or a file of completions; or sum up stored rollouts.

    Args:
        config: YAML file of the run; give the option once per file.
        stage: whose files: fit, validate, test or predict.
        completions: JSONL with problem_type, completion and solution in every row, instead of a run.
        output: the same rows with their scores.
        rollouts: folder that RolloutStore wrote, instead of a run; its summary is printed and drawn into summary.png.
    """
    from datamodules import doctor
    from datamodules.records import scan
    from rewards import AccuracyReward, FormatReward
    from rewards.completions_file import score_completions_file
    from rewards.suite import RewardSuite

    if [config, completions, rollouts].count(None) != 2:
        raise ValueError(
            "`check rewards` takes either --config with the YAML files of a run, or --completions, or --rollouts."
        )
    if rollouts is not None:
        _sum_up_rollouts(Path(rollouts))
        return
    if completions is not None:
        if output is None:
            raise ValueError("`check rewards --completions` also needs --output, the file to write.")
        if not Path(completions).is_file():
            raise ValueError(f"--completions is {completions!r}, which is not a file (looked from {Path.cwd()}).")
        print(score_completions_file(Path(completions), Path(output)).render())
        return
    data, model = _configured(config, "data"), _configured(config, "model")
    suite = getattr(model, "suite", None) or RewardSuite([AccuracyReward(), FormatReward()])
    records = chain.from_iterable(scan(file) for file in data.stage_files(stage))
    _finish(doctor.check_rewards(records, suite))


def _sum_up_rollouts(folder: Path) -> None:
    from lightning_modules.rollout_plot import plot_rollouts
    from lightning_modules.rollout_summary import summarise_rollouts

    summary = summarise_rollouts(folder)
    print(summary.render())
    plot_rollouts(summary, folder / "summary.png")
    print(f"\npicture: {folder / 'summary.png'}")


def check_model(
    config: list[str] | None = None,
    ranks: int | None = None,
    gpu_gib: float = 80.0,
    text_tokens: int = 256,
    completion_tokens: int | None = None,
) -> None:
    """Estimate the memory of a training step per rank, and the most frames that a GPU holds, without weights.

    Args:
        config: YAML file of the run; give the option once per file.
        ranks: processes of the run; null takes trainer.devices x trainer.num_nodes (1 where devices is auto).
        gpu_gib: memory of the GPU in GiB.
        text_tokens: tokens of a prompt beside its video.
        completion_tokens: tokens of every completion, or of a fine-tuning target; null takes the limit of sampling.
    """
    from lightning_modules.memory_report import check_memory

    if config is None:
        raise ValueError("`check model` needs the YAML files of a run; give each with -c (--config).")
    data, model = _configured(config, "data"), _configured(config, "model")
    trainer = lightning_cli([f"--config={file}" for file in config], run=False).config["trainer"].as_dict()
    report = check_memory(
        model,
        data,
        trainer,
        ranks=ranks,
        gpu_gib=gpu_gib,
        text_tokens=text_tokens,
        completion_tokens=completion_tokens,
    )
    _finish(report)


CHECKS: dict[str, Callable[..., None]] = {"data": check_data, "rewards": check_rewards, "model": check_model}
"""What `check` can look at."""


def check_command(arguments: Sequence[str]) -> None:
    """Look at data, rewards or memory before training."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(prog="cli.py check", description="Look at data, rewards or memory before training.")
    subcommands = parser.add_subcommands(dest="check", metavar="CHECK")
    for name, function in CHECKS.items():
        summary = function.__doc__.splitlines()[0]
        subparser = ArgumentParser(description=summary)
        # Repeatable as in fit; in an option of type list[str] the second file would replace the first.
        subparser.add_argument(
            "-c", "--config", action="append", metavar="YAML", help="YAML file of the run; repeatable"
        )
        subparser.add_function_arguments(function, skip={"config"}, as_group=False)
        subcommands.add_subcommand(name, subparser, help=summary)
    given = parser.parse_args(list(arguments[1:]))
    CHECKS[given.check](**given[given.check])


def _configured(config: Sequence[str], part: str):
    """The run's data module or model, from its YAML files; the trainer is not built."""
    from jsonargparse import Namespace

    cli = lightning_cli([f"--config={file}" for file in config], run=False)
    return cli.parser.instantiate_classes(Namespace({part: cli.config[part]}))[part]


def _finish(report) -> None:
    print(report.render())
    if not report.ok:
        sys.exit(1)


def export(
    ckpt_path: str, output: str, config: list[str] | None = None, adapters: Literal["merge", "keep"] = "merge"
) -> None:
    """Make a Hugging Face folder of a checkpoint: weights, processor, generation settings, model card.

    Args:
        ckpt_path: checkpoint file, or folder of a distributed checkpoint.
        output: folder to write; an earlier export in it is replaced.
        config: YAML file of the run, once per file; default: the config.yaml that the run left beside its checkpoints.
        adapters: of a LoRA run: "merge" adds them to the weights, "keep" writes them alone, for peft and vLLM.
    """
    from lightning_modules import export as exporting
    from lightning_modules.model_card import RunFacts, last_metrics, model_card

    checkpoint, folder = Path(ckpt_path), Path(output).resolve()
    run_folder = exporting.run_folder(checkpoint)
    if config is None:
        if run_folder is None:
            raise ValueError(
                f"There is no config.yaml beside {ckpt_path!r} or in the folders above it; give the YAML files of the "
                "run, each with -c (--config)."
            )
        config = [exporting.saved_config(run_folder)]
    exporting.check_output(folder)
    trained = exporting.read_checkpoint(checkpoint)
    run = lightning_cli([f"--config={given}" for given in config], run=False)
    module = _configured(config, "model")
    module.quantisation = None  # adapters of a 4-bit base are merged into the weights it was made from
    policy = module.load_policy()
    exporting.load_trained(policy, trained)
    settings = run.config["data"].init_args
    facts = RunFacts(
        base_model=module.model_name_or_path,
        module=type(module).__name__,
        checkpoint=str(checkpoint),
        step=trained.step,
        data_files={name: settings.get(f"{name}_files") or [] for name in ("train", "val")},
        metrics=last_metrics(run_folder, trained.step) if run_folder else {},
        config=run.parser.dump(run.config),
        adapters_only=module.lora is not None and adapters == "keep",
    )

    def write(path: Path) -> None:
        exporting.write_pretrained(policy, path, adapters=adapters)
        (path / "README.md").write_text(model_card(facts), encoding="utf-8")

    exporting.publish(folder, write)
    print(f"{policy.model.num_parameters():,} parameters of step {trained.step} written to {folder}")


def export_command(arguments: Sequence[str]) -> None:
    """Make a Hugging Face folder of a checkpoint."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(prog="cli.py export", description=export.__doc__.splitlines()[0])
    parser.add_argument("-c", "--config", action="append", metavar="YAML", help="YAML file of the run; repeatable")
    parser.add_function_arguments(export, skip={"config"}, as_group=False, as_positional=False)
    export(**parser.parse_args(list(arguments[1:])))


class Command(NamedTuple):
    run: Callable[[Sequence[str]], None]
    """Takes the command line, the command's own name first."""
    summary: str


COMMANDS: dict[str, Command] = {
    "fit": Command(lightning_command, "train the model of the given YAML files"),
    "validate": Command(lightning_command, "answer the validation questions and measure"),
    "test": Command(lightning_command, "answer the test questions and measure"),
    "predict": Command(lightning_command, "answer questions"),
    "demo": Command(demo_command, "teach a tiny model on the CPU, without a download"),
    "check": Command(check_command, "look at data, rewards or memory before training"),
    "export": Command(export_command, "make a Hugging Face folder of a checkpoint"),
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; a user's mistake ends in one message, everything else in its traceback.

    Returns:
        The exit status: 0, or 2 after a user's mistake. Checks that find something, `--help` and faults of the
        command line leave by SystemExit.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if str(Path.cwd()) not in sys.path:  # rewards of one's own stand where the command is run, not beside this file
        sys.path.append(str(Path.cwd()))
    if given[:1] in (["-h"], ["--help"]):
        print(overview())
        return 0
    if not given or given[0] not in COMMANDS:
        said = f"there is no command {given[0]!r}" if given else "a command is missing"
        print(f"error: {said}\n\n{overview()}", file=sys.stderr)
        return 2
    try:
        COMMANDS[given[0]].run(given)
    except error_messages.mistakes() as error:
        if os.environ.get(TRACEBACK_VARIABLE):
            raise
        print(
            f"error: {error_messages.reason(error)}\n({TRACEBACK_VARIABLE}=1 shows where this was raised)",
            file=sys.stderr,
        )
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
