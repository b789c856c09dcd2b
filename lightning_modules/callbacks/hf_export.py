"""Leaves a Hugging Face folder behind when training ends, ready for `from_pretrained`."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, runtime_checkable

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info

from lightning_modules.policy.export import check_replaceable, stamp_export
from lightning_modules.training.shared_folder import shared_folder
from lightning_modules.training.typed_lightning import is_fast_dev_run
from rewards.errors import UserError


@runtime_checkable
class Exportable(Protocol):
    """A module that writes itself as a Hugging Face folder; all ranks call, rank 0 writes."""

    def export_pretrained(self, path: Path) -> None: ...


class HFExport(Callback):
    """Calls the module's `export_pretrained(path)` when training has ended, on all ranks with the same empty folder.

    The folder is always a complete export: the new one, or the former one when something fails. An interrupted fit and
    a fast_dev_run export nothing. A resumed run replaces the export of its earlier starts; a new run does not replace
    that of another one, and files of any other origin are never removed.
    """

    def __init__(self, output: str | None = None) -> None:
        """
        Args:
            output: folder to write, relative to the working directory. Default: `model` in the trainer's
                `default_root_dir`.
        """
        super().__init__()
        self.output = output
        self._exported = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Check before training what would fail after it.

        Raises:
            UserError: the module cannot export, or the folder holds something other than an export.
        """
        if stage != TrainerFn.FITTING:
            return
        if not isinstance(pl_module, Exportable):
            raise UserError(
                f"HFExport needs a module with export_pretrained(path); {type(pl_module).__name__} has none. "
                "Remove the callback or add the method."
            )
        if not is_fast_dev_run(trainer):
            check_replaceable(self._folder(trainer), option="HFExport.output")

    def check_unused(self, trainer: pl.Trainer) -> None:
        """
        Raises:
            UserError: the folder holds an export already, and this run does not continue the one that made it.
        """
        folder = self._folder(trainer)
        if not is_fast_dev_run(trainer) and folder.is_dir() and any(folder.iterdir()):
            raise UserError(
                f"{folder} holds the model of an earlier run, which this one would replace. Continue that run with "
                "--ckpt_path last, or give this one a folder of its own with trainer.default_root_dir (or "
                "HFExport.output), or remove the folder."
            )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.ckpt_path is None and not self._exported:  # the path was not known before
            self.check_unused(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if is_fast_dev_run(trainer):
            rank_zero_info("HFExport exports nothing in a fast_dev_run.")
            return
        assert isinstance(pl_module, Exportable), "checked in setup"
        folder = self._folder(trainer)
        with shared_folder(trainer.strategy, folder) as partial:
            pl_module.export_pretrained(partial)
            trainer.strategy.barrier("model exported")
            if trainer.is_global_zero:
                stamp_export(partial)
        self._exported = True
        rank_zero_info(f"Model exported to {folder}")

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A fit that was over before it began has no end of training: make the export that a kill left out."""
        if self._exported or is_fast_dev_run(trainer) or not trainer.fit_loop.done or trainer.global_step == 0:
            return
        folder = self._folder(trainer)
        if folder.exists():
            rank_zero_info(f"This run was finished before; {folder} stays as it is.")
        else:
            self.on_train_end(trainer, pl_module)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if trainer.state.fn == TrainerFn.FITTING and not self._exported:
            rank_zero_info("HFExport: the fit did not finish, so no model was exported.")

    def _folder(self, trainer: pl.Trainer) -> Path:
        return Path(self.output if self.output is not None else Path(trainer.default_root_dir) / "model").resolve()
