"""Rewards: text, counts and frames in, numbers out. The classes here are those that a YAML names by `class_path`."""

from rewards.accuracy import AccuracyReward
from rewards.base import Reward
from rewards.format import FormatReward
from rewards.length import LengthReward

__all__ = ["AccuracyReward", "FormatReward", "LengthReward", "Reward"]
