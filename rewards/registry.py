"""All rewards of the project: short name -> class."""

from __future__ import annotations

from rewards.accuracy import AccuracyReward
from rewards.base import Reward
from rewards.format import FormatReward
from rewards.length import LengthReward

REWARDS: dict[str, type[Reward]] = {
    "accuracy": AccuracyReward,
    "format": FormatReward,
    "length": LengthReward,
}
