"""Rewards: text, counts and frames in, numbers out. These are the names that a YAML gives as `class_path`."""

from rewards.accuracy import AccuracyReward as AccuracyReward
from rewards.base import Reward as Reward
from rewards.format import FormatReward as FormatReward
from rewards.function_reward import FunctionReward as FunctionReward
from rewards.length import LengthReward as LengthReward
from rewards.registry import register as register
from rewards.registry import registered as registered
from rewards.semantic import SemanticReward as SemanticReward
from rewards.temporal import TemporalReward as TemporalReward
