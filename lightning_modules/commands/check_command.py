"""`python cli.py check data|rewards|model|batch`: find what is wrong, before training or in one batch of it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path

from lightning_modules.commands.run_config import ParseRun, RunConfig, summary_of


def check_data(
    run: RunConfig | None,
    stage: str = "fit",
    limit: int | None = None,
    decode: bool = True,
    num_threads: int = 2,
) -> None:
    """Check every record and read its media as a run would, without a model.

    Args:
        run: the run, from its YAML files.
        stage: whose files: fit, validate, test or predict.
        limit: check the media of this many records at most; null for all.
        decode: read the sampled frames; false reads headers only.
        num_threads: records checked at the same time.
    """
    from datamodules.checks import data_check
    from datamodules.records import scan

    data = _needed(run, "data").build("data")
    files = data.stage_files(stage)
    config = data.train_frames if stage == "fit" else data.eval_frames
    data.load_tokenizer()
    data.check_patch_sizes(config)
    check_media = data_check.MediaCheck(
        data_root=data.data_root,
        config=config,
        count_tokens=data_check.text_token_counter(data.tokenizer, data.prompt),
        max_prompt_tokens=data.max_prompt_tokens,
        decode=decode,
        reader=data.reader,
        media=data.media,
        find_fault=data.find_fault,
    )
    records = chain.from_iterable(scan(file, require_process=data.needs_process(stage)) for file in files)
    _finish(data_check.check_data(records, check_media, limit=limit, num_threads=num_threads))


def check_rewards(
    run: RunConfig | None,
    stage: str = "fit",
    completions: str | None = None,
    output: str | None = None,
    rollouts: str | None = None,
) -> None:
    """Score the gold answers of a run's data, or a file of completions; or summarize stored rollouts.

    Args:
        run: the run, from its YAML files.
        stage: whose files: fit, validate, test or predict.
        completions: JSONL with problem_type, completion and solution in every row, instead of a run.
        output: JSONL to write: the rows of --completions with their scores.
        rollouts: folder that RolloutStore wrote, instead of a run; its summary is printed and drawn into summary.png.
    """
    from datamodules.checks import data_check
    from datamodules.checks.completions_file import score_completions_file
    from datamodules.records import scan
    from rewards import AccuracyReward, FormatReward
    from rewards.errors import UserError
    from rewards.suite import RewardSuite

    if [run, completions, rollouts].count(None) != 2:
        raise UserError(
            "`check rewards` takes either --config with the YAML files of a run, or --completions, or --rollouts."
        )
    if rollouts is not None:
        _summarize_stored(Path(rollouts))
        return
    if completions is not None:
        if output is None:
            raise UserError("`check rewards --completions` also needs --output, the file to write.")
        if not Path(completions).is_file():
            raise UserError(f"--completions is {completions!r}, which is not a file (looked from {Path.cwd()}).")
        print(score_completions_file(Path(completions), Path(output)).render())
        return
    run = _needed(run, "rewards")
    data, model = run.build("data"), run.build("model")
    suite = getattr(model, "suite", None) or RewardSuite([AccuracyReward(), FormatReward()])
    records = chain.from_iterable(scan(file) for file in data.stage_files(stage))
    _finish(data_check.check_rewards(records, suite))


def _summarize_stored(folder: Path) -> None:
    from lightning_modules.rollout_log.plot import plot_rollouts
    from lightning_modules.rollout_log.summary import summarize_rollouts

    summary = summarize_rollouts(folder)
    print(summary.render())
    plot_rollouts(summary, folder / "summary.png")
    print(f"\npicture: {folder / 'summary.png'}")


def check_model(
    run: RunConfig | None,
    ranks: int | None = None,
    gpu_gib: float = 80.0,
    text_tokens: int = 256,
    completion_tokens: int | None = None,
) -> None:
    """Estimate the memory of a training step per rank, and the most frames that a GPU holds, without weights.

    Args:
        run: the run, from its YAML files.
        ranks: processes of the run; null takes trainer.devices x trainer.num_nodes (1 where devices is auto).
        gpu_gib: memory of the GPU in GiB.
        text_tokens: tokens of a prompt beside its video.
        completion_tokens: tokens of every completion, or of a fine-tuning target; null takes the limit of sampling.
    """
    from lightning_modules.memory.report import check_memory

    run = _needed(run, "model")
    report = check_memory(
        run.build("model"),
        run.build("data"),
        run.settings["trainer"].as_dict(),
        ranks=ranks,
        gpu_gib=gpu_gib,
        text_tokens=text_tokens,
        completion_tokens=completion_tokens,
    )
    _finish(report)


def check_batch(run: RunConfig, file: str, ckpt_path: str | None = None) -> None:
    """Compute a batch again that a run stored because its loss, gradients, logits or rewards were not finite.

    Args:
        run: the run, from its YAML files; without them, from the settings that are stored with the batch.
        file: stepSTEP-rankRANK.pt in the folder `nonfinite` of the run.
        ckpt_path: checkpoint whose weights are used; null takes the newest last.ckpt of the run, or the model that it
            began with where there is none.
    """
    from lightning_modules.commands.batch_check import replay_batch

    _finish(replay_batch(run, Path(file), None if ckpt_path is None else Path(ckpt_path)))


CHECKS: dict[str, Callable[..., None]] = {
    "data": check_data,
    "rewards": check_rewards,
    "model": check_model,
    "batch": check_batch,
}
"""What `check` can look at."""


def check_command(arguments: Sequence[str], *, parse: ParseRun) -> None:
    """Look at data, rewards or memory before training, or at a batch that a run stored."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(prog="cli.py check", description=summary_of(check_command))
    subcommands = parser.add_subcommands(dest="check", metavar="CHECK")
    for name, function in CHECKS.items():
        summary = summary_of(function)
        subparser = ArgumentParser(description=summary)
        # Repeatable as in fit; in an option of type list[str] the second file would replace the first.
        subparser.add_argument(
            "-c", "--config", action="append", metavar="YAML", help="YAML file of the run; repeatable"
        )
        subparser.add_function_arguments(function, skip={"run"}, as_group=False, as_positional=True)
        subcommands.add_subcommand(name, subparser, help=summary)
    given = parser.parse_args(list(arguments[1:]))
    options = given[given.check].as_dict()
    config = options.pop("config")
    if given.check == "batch" and config is None:
        from lightning_modules.commands.batch_check import stored_config

        config = [stored_config(Path(options["file"]))]
    CHECKS[given.check](None if config is None else RunConfig(parse, config), **options)


def _needed(run: RunConfig | None, check: str) -> RunConfig:
    if run is None:
        from rewards.errors import UserError

        raise UserError(f"`check {check}` needs the YAML files of a run; give each with -c (--config).")
    return run


def _finish(report) -> None:
    print(report.render())
    if not report.ok:
        sys.exit(1)
