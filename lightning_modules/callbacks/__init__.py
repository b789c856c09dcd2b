"""Callbacks that a config may name; each prepares nothing before its first hook."""

from lightning_modules.callbacks.hf_export import HFExport
from lightning_modules.callbacks.prediction_writer import PredictionWriter
from lightning_modules.callbacks.rollout_pictures import RolloutPictures

__all__ = ["HFExport", "PredictionWriter", "RolloutPictures"]
