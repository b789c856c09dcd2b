"""A run as its YAML files describe it, parsed but not started, for `check` and `export`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from lightning_modules.commands.error_messages import user_mistakes_unwrapped

if TYPE_CHECKING:
    from jsonargparse import Namespace
    from lightning.pytorch.cli import LightningCLI

ParseRun = Callable[[Sequence[str]], "LightningCLI"]
"""Options of a run -> the LightningCLI that parsed them, with nothing built and nothing started."""


class RunConfig:
    """The parsed YAML files of a run.

    Args:
        parse: reads the options of a run.
        config: YAML files, or their text; later ones win.
    """

    def __init__(self, parse: ParseRun, config: Sequence[str]) -> None:
        self._cli = parse([f"--config={given}" for given in config])

    @property
    def settings(self) -> Namespace:
        """All settings of the run, the defaults included."""
        return self._cli.config

    def build(self, part: str) -> Any:
        """The run's "data" or "model"; nothing else is built."""
        from jsonargparse import Namespace

        with user_mistakes_unwrapped():
            return self._cli.parser.instantiate_classes(Namespace({part: self.settings[part]}))[part]

    def dump(self) -> str:
        """All settings as YAML text."""
        return self._cli.parser.dump(self.settings)


def summary_of(command: Callable[..., object]) -> str:
    """The first line of a command's docstring, for its `--help`."""
    return (command.__doc__ or "").partition("\n")[0]
