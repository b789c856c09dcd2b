"""All rewards of the project: short name -> class."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from rewards.accuracy import AccuracyReward
from rewards.base import Reward
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
    """Class decorator: `registered(name)` builds the reward, and `name` is what it is called in logs.

    Raises:
        ValueError: the decorated is no reward class, or the name is another class's.
    """

    def add(reward_class: RewardClass) -> RewardClass:
        if not (isinstance(reward_class, type) and issubclass(reward_class, Reward)):
            raise ValueError(
                f"@register({name!r}) decorates {reward_class!r}, which is no subclass of rewards.Reward; "
                "a function needs no registry, rewards.FunctionReward takes its dotted path."
            )
        known = REWARDS.get(name)
        # A module that is loaded anew defines its classes again.
        if known is not None and (known.__module__, known.__qualname__) != (
            reward_class.__module__,
            reward_class.__qualname__,
        ):
            raise ValueError(f"The name {name!r} is {known.__module__}.{known.__qualname__}'s; register another one.")
        reward_class.name = name
        REWARDS[name] = reward_class
        return reward_class

    return add


def registered(reward: str, module: str | None = None, options: Mapping[str, Any] | None = None) -> Reward:
    """The reward of a registered name, as a YAML may ask for it.

    Args:
        reward: short name: one of ours, or one that `register` gave.
        module: dotted path of the module whose `@register` is meant; imported first.
        options: arguments of the reward's class.

    Raises:
        ValueError: there is no such module, name or argument.
    """
    if module is not None:
        imported_module(module)
    if reward not in REWARDS:
        raise ValueError(
            f"No reward is registered as {reward!r}; there are {', '.join(map(repr, REWARDS))}. "
            "Name the module that registers it."
        )
    reward_class, given = REWARDS[reward], dict(options or {})
    try:
        inspect.signature(reward_class).bind(**given)
    except TypeError as error:
        raise ValueError(
            f"The options of the reward {reward!r} do not fit {reward_class.__name__}: {error}."
        ) from error
    return reward_class(**given)
