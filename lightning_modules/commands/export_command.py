"""`python cli.py export`: a Hugging Face folder of a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from lightning_modules.commands.run_config import ParseRun, RunConfig, summary_of


def export(
    parse: ParseRun,
    config: list[str] | None,
    ckpt_path: str,
    output: str,
    adapters: Literal["merge", "keep"] = "merge",
    dtype: Literal["float32", "bfloat16", "float16"] | None = None,
) -> None:
    """Make a Hugging Face folder of a checkpoint: weights, processor, generation settings, model card.

    Args:
        parse: reads the options of a run.
        config: YAML files of the run; None takes the config.yaml that the run left beside its checkpoints.
        ckpt_path: checkpoint file, or folder of a distributed checkpoint.
        output: folder to write; an earlier export in it is replaced.
        adapters: of a LoRA run: "merge" adds them to the weights, "keep" writes them alone, to be put on their base.
        dtype: of the written weights; null leaves that of the training (float32 in most runs; bfloat16 takes half).
    """
    import torch

    from datamodules.whole_files import whole_folder
    from lightning_modules.commands.model_card import model_card
    from lightning_modules.policy import export as exporting
    from rewards.errors import UserError

    checkpoint, folder = Path(ckpt_path), Path(output).resolve()
    exporting.check_paths(checkpoint, folder)
    trained = exporting.read_checkpoint(checkpoint)
    run = RunConfig(parse, config or [_saved_config(checkpoint)])
    module = run.build("model")
    if module.lora is None and adapters == "keep":
        raise UserError("--adapters is 'keep', but the run trained whole weights (model.lora is null). Leave it out.")
    module.quantization = None  # adapters of a 4-bit base are merged into the weights it was made from
    policy = module.load_policy()
    exporting.load_trained(policy, trained)
    logs = exporting.run_folder(checkpoint)
    card = model_card(run, module, checkpoint, trained.step, logs=logs, adapters_only=adapters == "keep")
    with whole_folder(folder) as partial:
        exporting.write_pretrained(policy, partial, adapters=adapters, dtype=dtype and getattr(torch, dtype))
        (partial / "README.md").write_text(card, encoding="utf-8")
        exporting.stamp_export(partial)
    print(f"Step {trained.step} of {checkpoint} written to {folder}")


def _saved_config(checkpoint: Path) -> str:
    from lightning_modules.policy.export import run_folder, run_settings
    from rewards.errors import UserError

    folder = run_folder(checkpoint)
    if folder is None:
        raise UserError(
            f"There is no config.yaml beside {str(checkpoint)!r} or in the folder above it; give the YAML files of the "
            "run, each with -c (--config)."
        )
    return run_settings((folder / "config.yaml").read_text(encoding="utf-8"))


def export_command(arguments: Sequence[str], *, parse: ParseRun) -> None:
    """Make a Hugging Face folder of a checkpoint."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(prog="cli.py export", description=summary_of(export))
    config = "YAML file of the run; repeatable; default: the config.yaml that the run left beside its checkpoints"
    parser.add_argument("-c", "--config", action="append", metavar="YAML", help=config)
    parser.add_function_arguments(export, skip={"parse", "config"}, as_group=False, as_positional=False)
    export(parse, **parser.parse_args(list(arguments[1:])))
