"""What a resumed run takes over from its earlier starts: the line in TensorBoard, and the checkpoints it kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn

from datamodules.whole_files import remove_leftovers
from lightning_modules.training.typed_lightning import is_fast_dev_run


class ContinuedRun(Callback):
    """Lets a resumed run continue one line in TensorBoard and count earlier checkpoints against `save_top_k`.

    Steps that an earlier start logged after the checkpoint, or before there was one, are purged: TensorBoard hides
    them. What is logged is on the disk before a checkpoint of its step is.

    A resumed ModelCheckpoint knows the checkpoints of the earlier starts in its folder. Those that it let go in the
    moment of a kill, and the one that was resumed, are removed when they no longer count.
    """

    def __init__(self, resumed: Path | None = None) -> None:
        """
        Args:
            resumed: the checkpoint of an earlier start of this run from which it continues, and which may be removed
                when newer ones have taken its place.
        """
        super().__init__()
        self.resumed = resumed
        self._kept: dict[str, set[str]] = {}
        self._trainer: pl.Trainer | None = None
        self._saved = False
        self._log_dir: str | None = None
        self._purged = False

    def state_dict(self) -> dict[str, Any]:
        kept = self._kept if self._trainer is None else _together(self._kept, _counted(self._trainer))
        return {"log_dir": self._log_dir, "kept": {folder: sorted(names) for folder, names in kept.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._kept = {folder: set(names) for folder, names in state_dict["kept"].items()}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != TrainerFn.FITTING:
            return
        self._trainer, logger = trainer, _tensorboard(trainer)
        self._log_dir = None if logger is None else str(Path(logger.log_dir).resolve())

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero and not is_fast_dev_run(trainer):
            for callback in _model_checkpoints(trainer):
                remove_leftovers(_folder(callback))
        self._saved = False
        self._purged = False

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any, **__: Any) -> None:
        if not self._purged and trainer.is_global_zero:
            _purge(trainer)
        self._purged = True
        self._tidy(trainer)

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any, **__: Any) -> None:
        logger = _tensorboard(trainer)
        if logger is not None and trainer.is_global_zero:
            logger.experiment.flush()
        self._saved = True

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == TrainerFn.FITTING:
            self._tidy(trainer)

    def _tidy(self, trainer: pl.Trainer) -> None:
        """Remove what no longer counts, once a newer checkpoint is whole."""
        if not self._saved:
            return
        self._saved = False
        counted = _counted(trainer)
        for folder, names in self._kept.items():
            for path in (Path(folder) / name for name in sorted(names - counted.get(folder, names))):
                named_by_user = self.resumed is None and trainer.ckpt_path and path == Path(trainer.ckpt_path).resolve()
                if path.exists() and not named_by_user:
                    trainer.strategy.remove_checkpoint(path)
        self._kept = counted


def _together(*kept: dict[str, set[str]]) -> dict[str, set[str]]:
    return {folder: set().union(*(each.get(folder, ()) for each in kept)) for folder in set().union(*kept)}


def _model_checkpoints(trainer: pl.Trainer) -> list[ModelCheckpoint]:
    return [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]


def _folder(callback: ModelCheckpoint) -> Path:
    assert callback.dirpath is not None, "ModelCheckpoint sets it before training starts"
    return Path(callback.dirpath)


def _counted(trainer: pl.Trainer) -> dict[str, set[str]]:
    """Folder -> names of the checkpoints in it that a ModelCheckpoint keeps and will remove."""
    counted: dict[str, set[str]] = {}
    for callback in _model_checkpoints(trainer):
        paths = [callback.last_model_path]
        if callback.save_top_k > 0:  # -1 keeps all, and does not know which
            paths += [callback.best_model_path, *callback.best_k_models]
        folder = str(_folder(callback).resolve())
        names = {Path(path).name for path in paths if path and str(Path(path).resolve().parent) == folder}
        counted[folder] = counted.get(folder, set()) | names
    return counted


def _tensorboard(trainer: pl.Trainer) -> TensorBoardLogger | None:
    return next((logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)), None)


def _purge(trainer: pl.Trainer) -> None:
    """Hide what was logged from the step on that comes next."""
    # Generated from protocol buffers when it is imported, which a type checker cannot see.
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]

    logger = _tensorboard(trainer)
    if logger is None:
        return
    step = trainer.fit_loop.epoch_loop._batches_that_stepped  # what Lightning logs as the step
    if len(list(Path(logger.log_dir).glob("events.out.tfevents.*"))) > 1:  # each start has one of its own
        started = Event(step=step, session_log=SessionLog(status=SessionLog.START))
        logger.experiment.file_writer.add_event(started)
