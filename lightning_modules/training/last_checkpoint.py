"""What `--ckpt_path last` means: the newest sound checkpoint of all earlier starts of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from datamodules.whole_files import restore_former
from lightning_modules.training.checkpoint_files import DamagedCheckpointError, read_state, written_at
from rewards.errors import UserError

_PLACES = ("checkpoints", "*/checkpoints", "*/*/checkpoints")
"""Below the trainer's default_root_dir: without a logger, and with Lightning's loggers (name, then version)."""


@dataclass(frozen=True, kw_only=True)
class LastCheckpoint:
    path: Path
    """A file, or a folder of shards."""
    state: Mapping[str, Any]
    """What it holds beside weights and optimizer states, as `Trainer.save_checkpoint` names it."""


def last_checkpoint(trainer: Mapping[str, Any]) -> LastCheckpoint | None:
    """The newest sound checkpoint, whatever its name; None where there is none at all.

    It looks below `default_root_dir` into the folders of all starts, into the `dirpath` of every ModelCheckpoint, and
    for Lightning's `hpc_ckpt_*.ckpt`. What is newer and cannot be resumed is passed over with a warning.

    Args:
        trainer: the parsed configuration of the trainer.

    Raises:
        UserError: there are checkpoints, and none of them can be resumed.
    """
    found = sorted(_checkpoints(trainer), key=written_at, reverse=True)
    reasons = []
    for path in found:
        try:
            state = read_state(path)
        except DamagedCheckpointError as error:
            rank_zero_warn(f"ckpt_path last passes over {path}: {error}.")
            reasons.append(f"{path}: {error}")
            continue
        rank_zero_info(f"ckpt_path last resumes from {path}, written after step {state['global_step']}.")
        return LastCheckpoint(path=path, state=state)
    if reasons:
        raise UserError(
            "ckpt_path is 'last', and none of the checkpoints can be resumed:\n  " + "\n  ".join(reasons) + "\n"
            "Move them away to begin anew, or give another trainer.default_root_dir."
        )
    return None


def _checkpoints(trainer: Mapping[str, Any]) -> set[Path]:
    root = Path(trainer.get("default_root_dir") or ".")
    callbacks = trainer.get("callbacks") or []
    callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
    given = [(entry.get("init_args") or {}).get("dirpath") for entry in callbacks]
    folders = [*(folder for place in _PLACES for folder in root.glob(place)), *map(Path, filter(None, given))]
    found = set(root.glob("hpc_ckpt_*.ckpt"))
    for folder in folders:
        restore_former(folder)
        found |= {path for path in folder.glob("*.ckpt") if not path.name.startswith(".")}
    # A link to another checkpoint (`save_last: link`) is found as what it points to.
    return {path.resolve() for path in found if path.exists()}
