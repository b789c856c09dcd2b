"""What every run of the command line has beside its configuration: it stops, writes and continues safely."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_modules.training.last_checkpoint import LastCheckpoint


def run_options(options: Mapping[str, Any], last: LastCheckpoint | None) -> dict[str, Any]:
    """Arguments of a Trainer with `WholeCheckpoints`, `StopOnSignal` and `ContinuedRun`, where they are not given.

    Args:
        options: what the configuration gives, instantiated.
        last: the checkpoint from which `--ckpt_path last` continues; the logs then go to the folder of its run.
    """
    from lightning.pytorch.plugins.io import CheckpointIO

    from lightning_modules.callbacks import ContinuedRun, StopOnSignal
    from lightning_modules.training.checkpoint_files import WholeCheckpoints

    callbacks, plugins = _as_list(options.get("callbacks")), _as_list(options.get("plugins"))
    for added in (StopOnSignal(), ContinuedRun(None if last is None else last.path)):
        if not any(isinstance(callback, type(added)) for callback in callbacks):
            callbacks.append(added)
    if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
        plugins.append(WholeCheckpoints())
    logger = options.get("logger")
    if last is not None:
        log_dir = last.state.get("callbacks", {}).get("ContinuedRun", {}).get("log_dir")
        logger = _continued(logger, Path(options.get("default_root_dir") or "."), log_dir)
    return {**options, "callbacks": callbacks, "plugins": plugins, "logger": logger}


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
