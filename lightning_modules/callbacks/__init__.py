"""Callbacks that a config may name; each prepares nothing before its first hook."""

from lightning_modules.callbacks.continued_run import ContinuedRun as ContinuedRun
from lightning_modules.callbacks.hf_export import HFExport as HFExport
from lightning_modules.callbacks.last_step import LastStep as LastStep
from lightning_modules.callbacks.prediction_writer import PredictionWriter as PredictionWriter
from lightning_modules.callbacks.rollout_pictures import RolloutPictures as RolloutPictures
from lightning_modules.callbacks.rollout_store import RolloutStore as RolloutStore
from lightning_modules.callbacks.stop_on_signal import StopOnSignal as StopOnSignal
from lightning_modules.callbacks.watchdog import Watchdog as Watchdog
