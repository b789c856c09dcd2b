"""Policies as Hugging Face folders: weights (safetensors), processor, generation settings and a model card."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from lightning_modules.policy.adapters import ADAPTER_NAME, adapter_config, is_adapter, merged
from lightning_modules.policy.loading import load_weights
from lightning_modules.policy.policy import Policy
from rewards.errors import UserError

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedModel

Adapters = Literal["merge", "keep"]

EXPORT_STAMP = ".videorft_export"
"""In every exported folder: the names of its entries. Only what it lists may be replaced."""

WEIGHTS_PREFIX = "policy.model."
"""Prefix of the model's weights in a Lightning checkpoint."""


def write_pretrained(
    policy: Policy,
    path: Path,
    state_dict: Mapping[str, Tensor] | None = None,
    adapters: Adapters = "merge",
    dtype: torch.dtype | None = None,
) -> None:
    """Write a folder that `AutoModelForImageTextToText.from_pretrained` and `AutoProcessor.from_pretrained` read.

    Args:
        policy: whose model, processor and adapters.
        path: folder; existing files of the same names are replaced.
        state_dict: whole weights by the names of `policy.model.state_dict()`, where the model's own are shards.
        adapters: "merge" adds them to the weights, those of a 4-bit base to the weights it was made from; "keep"
            writes them alone, with the name of their base.
        dtype: of the written weights; None leaves that of the policy's.
    """
    model, config = policy.model, adapter_config(policy.model)
    weights = dict(model.state_dict() if state_dict is None else state_dict)
    for name in model.all_tied_weights_keys:  # gathered shards no longer show that they are one tensor
        weights.pop(name, None)
    if config is not None and adapters == "keep":
        _write_adapters(model, config, path, weights, dtype)
    else:
        if getattr(model, "hf_quantizer", None) is not None:
            base = load_weights(_base_of(model), dtype=model.dtype).state_dict()
            weights = base | {name: value for name, value in weights.items() if is_adapter(name)}
        if config is not None:
            weights = merged(weights, config.lora_alpha / config.r, dtype)
        if dtype is not None:
            weights = {name: value.to(dtype) for name, value in weights.items()}
        _plain(model, dtype or model.dtype).save_pretrained(path, state_dict=weights)
    policy.processor.save_pretrained(path)
    for file in path.glob("*.safetensors"):  # safetensors lets nobody but the owner read what it writes
        file.chmod((path / "generation_config.json").stat().st_mode)


def _plain(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """The model without adapters, quantization and memory: it names the weights that are saved with it."""
    from transformers import AutoModelForImageTextToText

    config = copy.deepcopy(model.config)
    vars(config).pop("quantization_config", None)
    with torch.device("meta"):
        plain = AutoModelForImageTextToText.from_config(config, dtype=dtype)
    plain.generation_config = model.generation_config
    return plain


def _write_adapters(
    model: PreTrainedModel, config: LoraConfig, path: Path, weights: Mapping[str, Tensor], dtype: torch.dtype | None
) -> None:
    """peft's own format."""
    from safetensors.torch import save_file

    path.mkdir(parents=True, exist_ok=True)
    named = {
        f"base_model.model.{name.replace(f'.{ADAPTER_NAME}.', '.')}": value.detach().to("cpu", dtype).contiguous()
        for name, value in weights.items()
        if is_adapter(name)
    }
    save_file(named, path / "adapter_model.safetensors", metadata={"format": "pt"})
    config = copy.copy(config)
    config.inference_mode = True
    base = Path(_base_of(model))
    config.base_model_name_or_path = str(base.resolve()) if base.is_dir() else _base_of(model)
    config.save_pretrained(str(path))
    model.generation_config.save_pretrained(path)


def _base_of(model: PreTrainedModel) -> str:
    """Folder or name that the model was loaded from."""
    name = model.config.name_or_path
    assert name is not None
    return name


@dataclass(frozen=True, kw_only=True)
class TrainedWeights:
    """What an export needs of a Lightning checkpoint."""

    weights: dict[str, Tensor]
    """By the names of `policy.model.state_dict()`; adapters alone where the run trained those."""
    step: int
    """Optimizer steps done."""


def read_checkpoint(path: Path) -> TrainedWeights:
    """Weights of a checkpoint file, or of a folder of shards written by any number of ranks.

    Raises:
        UserError: it is no checkpoint, or it holds no policy.
    """
    checkpoint = _read_shards(path) if path.is_dir() else _read_file(path)
    weights = {
        name.removeprefix(WEIGHTS_PREFIX): value
        for name, value in checkpoint.get("state_dict", {}).items()
        if name.startswith(WEIGHTS_PREFIX)
    }
    if not weights:
        raise UserError(
            f"--ckpt_path {str(path)!r} holds no weights of a policy (names that begin with {WEIGHTS_PREFIX}). "
            "Give a checkpoint that `fit` of this project wrote."
        )
    return TrainedWeights(weights=weights, step=checkpoint["global_step"])


def _read_file(path: Path) -> dict[str, Any]:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, UnpicklingError) as error:
        raise UserError(
            f"--ckpt_path is {str(path)!r}, which cannot be read as a checkpoint: it is damaged or something else. "
            f"Give a file that `fit` wrote (its name ends in .ckpt). torch.load says: {str(error).splitlines()[0]}"
        ) from error


def _read_shards(folder: Path) -> dict[str, Any]:
    from lightning.fabric.utilities.load import _METADATA_FILENAME
    from torch.distributed.checkpoint import FileSystemReader
    from torch.distributed.checkpoint.format_utils import _EmptyStateDictLoadPlanner
    from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

    if not (folder / _METADATA_FILENAME).is_file():
        raise UserError(
            f"--ckpt_path is the folder {str(folder)!r}, but a distributed checkpoint has a file {_METADATA_FILENAME}. "
            "Give that folder itself (its name ends in .ckpt), or a checkpoint file."
        )
    checkpoint: dict[str, Any] = {}
    planner = _EmptyStateDictLoadPlanner(keys={"state_dict"})
    _load_state_dict(checkpoint, storage_reader=FileSystemReader(folder), planner=planner, no_dist=True)
    return checkpoint | torch.load(folder / _METADATA_FILENAME, map_location="cpu", weights_only=True)


def load_trained(policy: Policy, trained: TrainedWeights) -> None:
    """Put a checkpoint's weights into a policy that was just loaded as for the run.

    Raises:
        UserError: the checkpoint is of another model, or of other adapters.
    """
    needed = {name for name in policy.model.state_dict() if not _is_base(policy, name)}
    known = set(policy.model.state_dict())
    lacking, foreign = needed - trained.weights.keys(), trained.weights.keys() - known
    if lacking or foreign:
        raise UserError(
            f"The checkpoint and the run's config do not belong together: {len(lacking)} weights of the model are not "
            f"in the checkpoint, {len(foreign)} are in it that the model lacks, for instance {min(lacking | foreign)}. "
            "Give the YAML files of the run that wrote it with -c."
        )
    policy.model.load_state_dict(trained.weights, strict=False)


def _is_base(policy: Policy, name: str) -> bool:
    """Whether a weight is the frozen one under adapters, which checkpoints leave out."""
    return adapter_config(policy.model) is not None and not is_adapter(name)


def run_folder(checkpoint: Path) -> Path | None:
    """Where the run of a checkpoint left its config.yaml and its logs: among the folders above it."""
    folders = checkpoint.resolve().parents[:2]
    return next((folder for folder in folders if (folder / "config.yaml").is_file()), None)


def run_settings(config: str) -> str:
    """The parts of a run's saved configuration that describe the run and not the command; YAML text in and out."""
    from jsonargparse import get_loader

    saved = get_loader("yaml")(config)
    return json.dumps({part: saved[part] for part in ("seed_everything", "model", "data", "trainer")})


def check_paths(checkpoint: Path, output: Path) -> None:
    """
    Raises:
        UserError: there is no checkpoint, or `output` holds something else than an earlier export.
    """
    if not checkpoint.exists():
        raise UserError(
            f"--ckpt_path is {str(checkpoint)!r}, which does not exist (looked from {Path.cwd()}). Give a checkpoint "
            "that `fit` wrote; they lie in the folder `checkpoints` of a run."
        )
    check_replaceable(output, option="--output")


def stamp_export(folder: Path) -> None:
    """Mark a folder that was just exported, as one that a later export may replace."""
    (folder / EXPORT_STAMP).write_text(json.dumps(sorted(entry.name for entry in folder.iterdir())), encoding="utf-8")


def check_replaceable(folder: Path, *, option: str) -> None:
    """
    Args:
        folder: where an export is to go.
        option: what the user gave it as.

    Raises:
        UserError: there is something else than an earlier export.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"{option} is {str(folder)!r}, which is a file. Choose another.")
    stamp = folder / EXPORT_STAMP
    known = {EXPORT_STAMP, *json.loads(stamp.read_text(encoding="utf-8"))} if stamp.is_file() else set()
    if foreign := sorted({entry.name for entry in folder.iterdir()} - known):
        more = f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
        raise UserError(
            f"{option} is {str(folder)!r}, which would be replaced, but holds what no export of this project wrote: "
            f"{', '.join(foreign[:3])}{more}. Choose another folder, or move that away."
        )
