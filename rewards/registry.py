"""All rewards of the project: short name -> class."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from rewards.accuracy import AccuracyReward
from rewards.base import Reward
from rewards.errors import UserError
from rewards.format import FormatReward
from rewards.function_reward import imported_module
from rewards.length import LengthReward
from rewards.semantic import SemanticReward
from rewards.temporal import TemporalReward

REWARDS: dict[str, type[Reward]] = {
    "accuracy": AccuracyReward,
    "format": FormatReward,
    "length": LengthReward,
    "semantic": SemanticReward,
    "temporal": TemporalReward,
}

RewardClass = TypeVar("RewardClass", bound=type[Reward])


def register(name: str) -> Callable[[RewardClass], RewardClass]:
    """Class decorator: `registered(name)` then builds the reward, and `name` becomes its name in logs.

    Raises:
        UserError: the decorated object is not a reward class, or another class has this name.
    """

    def add(reward_class: RewardClass) -> RewardClass:
        if not (isinstance(reward_class, type) and issubclass(reward_class, Reward)):
            raise UserError(
                f"@register({name!r}) decorates {reward_class!r}, which is not a subclass of rewards.Reward. "
                "A function needs no registration; give its dotted path to rewards.FunctionReward."
            )
        known = REWARDS.get(name, reward_class)
        # A module that is imported again defines its classes again.
        if _path(known) != _path(reward_class):
            raise UserError(f"The name {name!r} is taken by {_path(known)}; register another one.")
        reward_class.name = name
        REWARDS[name] = reward_class
        return reward_class

    return add


def registered(reward: str, module: str | None = None, options: Mapping[str, Any] | None = None) -> Reward:
    """Build a reward by its registered name, as a YAML does.

    Args:
        reward: short name, from `REWARDS` or from `register`.
        module: dotted path of the module that registers the name; it is imported first.
        options: arguments of the reward's class.

    Raises:
        UserError: there is no such module or name, or the class does not take these arguments.
    """
    if module is not None:
        imported_module(module)
    if reward not in REWARDS:
        raise UserError(
            f"No reward is registered as {reward!r}; there are {', '.join(map(repr, REWARDS))}. "
            "Name the module that registers it."
        )
    try:
        return REWARDS[reward](**(options or {}))
    except TypeError as error:
        raise UserError(f"The reward {reward!r} cannot be built with the options {options}: {error}") from error


def _path(reward_class: type) -> str:
    return f"{reward_class.__module__}.{reward_class.__qualname__}"
