"""What the command line says about a user's mistake: the reason and the remedy, without what libraries add."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_WORKER_ERROR = re.compile(r"Caught \w+ in DataLoader worker process \d+\.\n")
_UNION_NOISE = re.compile(
    r"\s*(?:Does not validate against any of|Subtypes: |Errors:$|- Expected a <class 'NoneType'>|Given value)"
)
_REFUSED_ARGUMENT = re.compile(
    r"""Parser key "([\w.]+)":.*Problem with given class_path '([\w.]+)':\s+(?:Option|[Uu]nrecognized)""", re.DOTALL
)


def mistakes() -> tuple[type[Exception], ...]:
    """The exceptions that stand for a user's mistake. Call it once one was raised: it imports nothing itself."""
    names = (("rewards.errors", "UserError"), ("lightning.fabric.utilities.exceptions", "MisconfigurationException"))
    return tuple(getattr(sys.modules[module], name) for module, name in names if module in sys.modules)


@contextmanager
def user_mistakes_unwrapped() -> Iterator[None]:
    """Raise a UserError that jsonargparse wrapped in ValueErrors while it built a class as a UserError again."""
    from rewards.errors import UserError

    try:
        yield
    except ValueError as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, UserError):
            cause = cause.__cause__
        if cause is None or cause is error:
            raise
        raise UserError(str(error)) from error


def reason(error: Exception) -> str:
    """The message that was raised, wherever it was: in a loader's worker or while a class was built from YAML.

    What a terminal would obey in the data that it quotes stands there as escapes.
    """
    from datamodules.video.types import LAYOUT, printable

    message = str(error)
    if _WORKER_ERROR.match(message):
        # The worker's traceback ends in the message, after the last line that begins with the exception's name.
        *_, start = re.finditer(rf"^(?:[\w.]+\.)?{type(error).__name__}: ", message, re.MULTILINE)
        message = message[start.end() :].strip()
    return printable(plain(message), keep=LAYOUT)


def plain(message: str) -> str:
    """jsonargparse's message without what it says about the alternatives of a union type."""
    if "Union subtypes" not in message:
        return message
    lines = [line for line in message.splitlines() if not _UNION_NOISE.match(line)]
    return "\n".join(lines).strip().removeprefix("- ")


def option_hint(message: str, prog: str) -> str:
    """Which command lists what may be given in place of what jsonargparse refused."""
    prog = prog.replace(" [options]", "")
    refused = _REFUSED_ARGUMENT.search(message)
    if refused:
        return f"(`python {prog} --{refused[1]}.help={refused[2]}` lists its arguments)"
    return f"(`python {prog} --help` lists all options; configs/ has complete runs)"
