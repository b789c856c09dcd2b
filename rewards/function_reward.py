"""A plain function as a reward, such as one in a user's own file that a YAML names by its dotted path."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args

from rewards.base import Reward, naming_failures
from rewards.errors import UserError, check_choice
from rewards.types import RewardInput

FunctionInterface = Literal["group", "completion"]


class FunctionReward(Reward):
    """What a function returns for a group, or for one completion at a time.

    Args:
        function: dotted path such as my_rewards.brevity, or the function itself. Its module is imported like any other:
            from an installed package, a folder on PYTHONPATH or the working directory.
        interface: how the function is called. group: `function(group)` returns one number per completion. completion:
            `function(group, index)` returns the number of one completion.
        name: name in logs and in the breakdown; null takes the name of the function.
        kwargs: weight, gate and problem_types, as for every `Reward`.

    Raises:
        UserError: there is no such module or function, or the interface is unknown.
    """

    def __init__(
        self,
        function: str | Callable[..., Any],
        interface: FunctionInterface = "group",
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        self.function = _imported(function) if isinstance(function, str) else function
        super().__init__(name=name or getattr(self.function, "__name__", None), **kwargs)
        check_choice(f"Reward {self.name!r}: interface", interface, get_args(FunctionInterface))
        self.interface = interface

    def score(self, group: RewardInput, raw: Mapping[str, Sequence[float]]) -> Sequence[float]:
        if self.interface == "group":
            return self.function(group)
        scores = []
        for index in range(len(group.completions)):
            with naming_failures(self, group, completion=index):
                scores.append(self.function(group, index))
        return scores


def imported_module(name: str) -> ModuleType:
    """Import a user's module.

    Raises:
        UserError: there is no such module. A module that fails while it is imported raises its own error.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # The module exists; one that it imports does not.
        raise UserError(
            f"There is no module {name!r}; put its file into the working directory ({Path.cwd()}), or its folder on "
            "PYTHONPATH."
        ) from error


def _imported(path: str) -> Callable[..., Any]:
    module_name, _, attribute = path.rpartition(".")
    if not module_name:
        raise UserError(f"function is {path!r}; write module.function, such as my_rewards.brevity.")
    module = imported_module(module_name)
    function = getattr(module, attribute, None)
    if function is None:
        raise UserError(f"function is {path!r}, but {module.__file__} has no {attribute!r}.")
    if not callable(function):
        raise UserError(f"function is {path!r}, which is not a function but {function!r} in {module.__file__}.")
    return function
