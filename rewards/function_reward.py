"""A plain function as a reward, such as one in a user's own file that a YAML names by its dotted path."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args

from rewards.base import Reward
from rewards.types import RewardInput

FunctionInterface = Literal["group", "completion", "batch"]


class FunctionReward(Reward):
    """What a function returns for a group, for one completion or for the whole batch.

    Args:
        function: dotted path such as my_rewards.brevity, or the function itself. Its module is found like any other:
            installed, on PYTHONPATH or in the working directory.
        interface: how the function is called. group: `function(group)` returns one number per completion. completion:
            `function(group, index)` returns the number of one completion. batch: `function(groups)` returns one such
            sequence per group.
        weight: factor of the score in the total.
        gate: name of a reward of the suite; this one counts only where that one's raw score is above 0.
        name: name in logs and in the breakdown; the function's own if not given.
        problem_types: the kinds of question that are scored; null for all.

    Raises:
        ValueError: there is no such module or function, or the interface is unknown.
    """

    def __init__(
        self,
        function: str | Callable[..., Any],
        interface: FunctionInterface = "group",
        weight: float = 1.0,
        gate: str | None = None,
        name: str | None = None,
        problem_types: list[str] | None = None,
    ) -> None:
        self.function = _imported(function) if isinstance(function, str) else function
        name = name or getattr(self.function, "__name__", None)
        super().__init__(weight=weight, gate=gate, name=name, problem_types=problem_types)
        if interface not in get_args(FunctionInterface):
            allowed = ", ".join(map(repr, get_args(FunctionInterface)))
            raise ValueError(f"Reward {self.name!r} has interface {interface!r}; allowed are {allowed}.")
        self.interface = interface

    def score_one(self, group: RewardInput, index: int) -> float:
        return self.function(group, index)

    def score(self, group: RewardInput, raw: Mapping[str, Sequence[float]]) -> Sequence[float]:
        if self.interface == "completion":
            return super().score(group, raw)
        return self.function([group])[0] if self.interface == "batch" else self.function(group)

    def score_batch(
        self, groups: Sequence[RewardInput], raw: Sequence[Mapping[str, Sequence[float]]]
    ) -> Sequence[Sequence[float]]:
        return self.function(groups) if self.interface == "batch" else super().score_batch(groups, raw)


def imported_module(name: str) -> ModuleType:
    """Import a user's module.

    Raises:
        ValueError: there is no such module. One that cannot be imported raises its own error.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # The module is there; one that it imports is not.
        raise ValueError(
            f"There is no module {name!r}; put its file into the working directory ({Path.cwd()}), or its folder on "
            "PYTHONPATH."
        ) from error


def _imported(path: str) -> Callable[..., Any]:
    module_name, _, attribute = path.rpartition(".")
    if not module_name:
        raise ValueError(f"function is {path!r}; write module.function, such as my_rewards.brevity.")
    module = imported_module(module_name)
    function = getattr(module, attribute, None)
    if function is None:
        raise ValueError(f"function is {path!r}, but {module.__file__} has no {attribute!r}.")
    if not callable(function):
        raise ValueError(f"function is {path!r}, which is no function: {function!r} in {module.__file__}.")
    return function
