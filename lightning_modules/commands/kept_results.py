"""What a run of the command line leaves behind, and that it does not replace what another one left."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning import Trainer


def folder_lock(command: str, trainer: Mapping[str, Any]) -> AbstractContextManager[None]:
    """Holds the run's folder where the command writes to it.

    Args:
        command: fit, validate, test or predict.
        trainer: the parsed configuration of the trainer.

    Raises:
        UserError: on entering, another process trains there.
    """
    from lightning_modules.training.run_lock import run_lock

    root = str(trainer.get("default_root_dir") or ".")
    if command != "fit" or trainer.get("fast_dev_run") or "://" in root:
        return nullcontext()
    return run_lock(Path(root))


def check_unused(trainer: Trainer, command: str, ckpt_path: str | None) -> None:
    """
    Raises:
        UserError: the run would replace results of another one.
    """
    from lightning_modules.callbacks import HFExport, PredictionWriter, RolloutStore
    from lightning_modules.training.typed_lightning import callbacks_of

    kinds: tuple[type, ...] = (PredictionWriter,)
    if command == "fit":
        # Lightning itself continues from what SLURM made it save.
        continued = ckpt_path is not None or any(Path(trainer.default_root_dir).glob("hpc_ckpt_*.ckpt"))
        kinds = () if continued else (HFExport, PredictionWriter, RolloutStore)
    for callback in callbacks_of(trainer):
        if isinstance(callback, kinds):
            callback.check_unused(trainer)
