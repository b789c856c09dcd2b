"""The README.md of an exported model: what it was trained from, on and with, and how far it came."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lightning_modules.pictures.curves import read_scalars


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What a model card says of the run."""

    base_model: str
    """Folder or name the training began with."""
    module: str
    """Class that trained, such as GRPOModule."""
    checkpoint: str
    step: int
    """Optimizer steps done."""
    data_files: Mapping[str, Sequence[str]]
    """Files of each split."""
    metrics: Mapping[str, float]
    """Last logged value of each, up to the checkpoint's step; empty where the run's logs are not at hand."""
    config: str
    """The run's configuration, YAML."""
    adapters_only: bool
    """The folder holds adapters, not whole weights."""


def last_metrics(run_folder: Path, step: int) -> dict[str, float]:
    """Last value of every scalar up to an optimizer step, from the TensorBoard files of a run; {} without any."""
    if not any(run_folder.glob("events.out.tfevents.*")):
        return {}
    curves = read_scalars(run_folder)
    reached = {name: [value for at, value in curve if at <= step] for name, curve in curves.items()}
    return {name: values[-1] for name, values in sorted(reached.items()) if values}


def model_card(facts: RunFacts) -> str:
    """Markdown with the front matter that the Hugging Face Hub reads."""
    lines = ["---"]
    if not Path(facts.base_model).exists():  # the Hub refuses what is not a name of its own
        lines.append(f"base_model: {facts.base_model}")
    lines += [
        f"library_name: {'peft' if facts.adapters_only else 'transformers'}",
        "pipeline_tag: image-text-to-text",
        "tags: [video, reasoning]",
        "---",
        "",
        f"# {Path(facts.base_model).name}, trained with {facts.module}",
        "",
        f"{facts.step} optimizer steps from `{facts.base_model}`; checkpoint `{facts.checkpoint}`. "
        + ("The folder holds adapters of that model." if facts.adapters_only else "The folder holds all weights."),
        "",
        "## Data",
        "",
        *(f"- {split}: `{file}`" for split, files in facts.data_files.items() for file in files),
        "",
        "## Last metrics",
        "",
    ]
    if facts.metrics:
        lines += ["| metric | value |", "|---|---|"]
        lines += [f"| {name} | {value:.6g} |" for name, value in facts.metrics.items()]
    else:
        lines.append("The run's logs were not beside its checkpoint.")
    return "\n".join([*lines, "", "## Configuration", "", "```yaml", facts.config.strip(), "```", ""])
