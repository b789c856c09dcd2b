"""Rewards: text, counts and frames in, numbers out. These are the names that a YAML gives as `class_path`."""

from rewards.accuracy import AccuracyReward
from rewards.base import Reward
from rewards.format import FormatReward
from rewards.function_reward import FunctionReward
from rewards.length import LengthReward
from rewards.registry import register, registered
from rewards.semantic import SemanticReward
from rewards.temporal import TemporalReward

__all__ = [
    "AccuracyReward",
    "FormatReward",
    "FunctionReward",
    "LengthReward",
    "Reward",
    "SemanticReward",
    "TemporalReward",
    "register",
    "registered",
]
