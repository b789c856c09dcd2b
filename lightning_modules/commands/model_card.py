"""The README.md of an exported model: what it was trained from, on and with, and how far it came."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lightning_modules.commands.run_config import RunConfig
from lightning_modules.pictures.curves import read_scalars

if TYPE_CHECKING:
    from lightning_modules.policy_module import PolicyModule


def model_card(
    run: RunConfig, module: PolicyModule, checkpoint: Path, step: int, *, logs: Path | None, adapters_only: bool
) -> str:
    """Markdown with the front matter that the Hugging Face Hub reads.

    Args:
        run: its configuration.
        module: built from it.
        checkpoint: which was exported.
        step: optimizer steps that the checkpoint contains.
        logs: folder of the run's TensorBoard files, if it is known.
        adapters_only: the exported folder holds adapters, not whole weights.
    """
    base, data = module.model_name_or_path, run.settings["data"].init_args
    lines = ["---"]
    if not Path(base).exists():  # the Hub refuses what is not a name of its own
        lines.append(f"base_model: {base}")
    lines += [
        f"library_name: {'peft' if adapters_only else 'transformers'}",
        "pipeline_tag: image-text-to-text",
        "tags: [video, reasoning]",
        "---",
        "",
        f"# {Path(base).name}, trained with {type(module).__name__}",
        "",
        f"{step} optimizer steps from `{base}`; checkpoint `{checkpoint}`. "
        + ("The folder holds adapters of that model." if adapters_only else "The folder holds all weights."),
        "",
        "## Data",
        "",
        *(f"- {split}: `{file}`" for split in ("train", "val") for file in data.get(f"{split}_files") or []),
        "",
        "## Last metrics",
        "",
    ]
    if metrics := {} if logs is None else _last_metrics(logs, step):
        lines += ["| metric | value |", "|---|---|"]
        lines += [f"| {name} | {value:.6g} |" for name, value in metrics.items()]
    else:
        lines.append("The run's logs were not found beside its checkpoint.")
    return "\n".join([*lines, "", "## Configuration", "", "```yaml", run.dump().strip(), "```", ""])


def _last_metrics(folder: Path, step: int) -> dict[str, float]:
    """Last value of every scalar up to an optimizer step, from the TensorBoard files of a run; {} without any."""
    if not any(folder.glob("events.out.tfevents.*")):
        return {}
    reached = {name: [value for at, value in curve if at <= step] for name, curve in read_scalars(folder).items()}
    return {name: values[-1] for name, values in sorted(reached.items()) if values}
