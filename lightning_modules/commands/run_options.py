"""What every run of the command line has beside its configuration: it stops, writes and continues safely."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning import LightningModule

    from lightning_modules.training.last_checkpoint import LastCheckpoint


def run_options(
    options: Mapping[str, Any], command: str, model: LightningModule, last: LastCheckpoint | None
) -> dict[str, Any]:
    """Arguments of a Trainer with what every run needs, where it is not given.

    That is `WholeCheckpoints`, `StopOnSignal` and `ContinuedRun`; a `PredictionWriter` in all but fit and benchmarks,
    which write their own predictions. A fast_dev_run keeps no checkpoints.

    Args:
        options: what the configuration gives, instantiated.
        command: fit, validate, test or predict.
        model: the module.
        last: the checkpoint from which a fit with `--ckpt_path last` continues; the logs then go to the folder of its
            run.
    """
    from lightning.pytorch.callbacks import Checkpoint
    from lightning.pytorch.plugins.io import CheckpointIO

    from lightning_modules.benchmark_module import BenchmarkModule
    from lightning_modules.callbacks import ContinuedRun, PredictionWriter, StopOnSignal
    from lightning_modules.training.checkpoint_files import WholeCheckpoints

    options, callbacks, plugins = dict(options), _as_list(options.get("callbacks")), _as_list(options.get("plugins"))
    if options.get("fast_dev_run"):
        # Lightning skips the intervals of a ModelCheckpoint then, but not its last checkpoint.
        callbacks = [callback for callback in callbacks if not isinstance(callback, Checkpoint)]
        options["enable_checkpointing"] = False
    needed = [StopOnSignal(), ContinuedRun(None if last is None else last.path)]
    if command != "fit" and not isinstance(model, BenchmarkModule):
        needed.append(PredictionWriter())
    for added in needed:
        if not any(isinstance(callback, type(added)) for callback in callbacks):
            callbacks.append(added)
    if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
        plugins.append(WholeCheckpoints())
    if last is not None:
        log_dir = last.state.get("callbacks", {}).get("ContinuedRun", {}).get("log_dir")
        root = Path(options.get("default_root_dir") or ".")
        options["logger"] = _continued(options.get("logger"), root, log_dir)
    return {**options, "callbacks": callbacks, "plugins": plugins}


def _continued(logger: Any, root: Path, log_dir: str | None) -> Any:
    """The loggers, with the version of the run that is continued where the configuration leaves it open."""
    from lightning.pytorch.loggers import TensorBoardLogger

    if log_dir is None or logger is False:
        return logger
    if logger is None or logger is True:
        logger = TensorBoardLogger(root)  # as the Trainer makes it
    for each in _as_list(logger):
        open_version = isinstance(each, TensorBoardLogger) and each._version is None
        if open_version and Path(each.root_dir).resolve() == Path(log_dir).parent:
            each._version = Path(log_dir).name
    return logger


def _as_list(given: Any) -> list[Any]:
    return list(given) if isinstance(given, list | tuple) else [given] if given is not None else []
