"""`python cli.py export`: a Hugging Face folder of a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from lightning_modules.commands.run_config import ParseRun, RunConfig


def export(
    parse: ParseRun,
    config: list[str] | None,
    ckpt_path: str,
    output: str,
    adapters: Literal["merge", "keep"] = "merge",
) -> None:
    """Make a Hugging Face folder of a checkpoint: weights, processor, generation settings, model card.

    Args:
        parse: reads the options of a run.
        config: YAML files of the run; None takes the config.yaml that the run left beside its checkpoints.
        ckpt_path: checkpoint file, or folder of a distributed checkpoint.
        output: folder to write; an earlier export in it is replaced.
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
    run = RunConfig(parse, config)
    module = run.build("model")
    module.quantisation = None  # adapters of a 4-bit base are merged into the weights it was made from
    policy = module.load_policy()
    exporting.load_trained(policy, trained)
    settings = run.settings["data"].init_args
    facts = RunFacts(
        base_model=module.model_name_or_path,
        module=type(module).__name__,
        checkpoint=str(checkpoint),
        step=trained.step,
        data_files={name: settings.get(f"{name}_files") or [] for name in ("train", "val")},
        metrics=last_metrics(run_folder, trained.step) if run_folder else {},
        config=run.dump(),
        adapters_only=module.lora is not None and adapters == "keep",
    )

    def write(path: Path) -> None:
        exporting.write_pretrained(policy, path, adapters=adapters)
        (path / "README.md").write_text(model_card(facts), encoding="utf-8")

    exporting.publish(folder, write)
    print(f"{policy.model.num_parameters():,} parameters of step {trained.step} written to {folder}")


def export_command(arguments: Sequence[str], *, parse: ParseRun) -> None:
    """Make a Hugging Face folder of a checkpoint.

    Args:
        arguments: the command line, the command's own name first.
        parse: reads the options of a run.
    """
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(prog="cli.py export", description=export.__doc__.splitlines()[0])
    parser.add_argument(
        "-c",
        "--config",
        action="append",
        metavar="YAML",
        help="YAML file of the run; repeatable; default: the config.yaml that the run left beside its checkpoints",
    )
    parser.add_function_arguments(export, skip={"parse", "config"}, as_group=False, as_positional=False)
    export(parse, **parser.parse_args(list(arguments[1:])))
