"""Callbacks that a config may name; each prepares nothing before its first hook."""

from lightning_modules.callbacks.continued_run import ContinuedRun
from lightning_modules.callbacks.hf_export import HFExport
from lightning_modules.callbacks.last_step import LastStep
from lightning_modules.callbacks.prediction_writer import PredictionWriter
from lightning_modules.callbacks.rollout_pictures import RolloutPictures
from lightning_modules.callbacks.rollout_store import RolloutStore
from lightning_modules.callbacks.stop_on_signal import StopOnSignal
from lightning_modules.callbacks.watchdog import Watchdog

__all__ = [
    "ContinuedRun",
    "HFExport",
    "LastStep",
    "PredictionWriter",
    "RolloutPictures",
    "RolloutStore",
    "StopOnSignal",
    "Watchdog",
]
