"""The exception for mistakes of the user, which the command line shows as one message without a traceback."""

from collections.abc import Iterable


class UserError(ValueError):
    """A mistake of the user: the message says what was given, what is allowed and how to fix it."""


def check_choice(name: str, given: object, allowed: Iterable[object]) -> None:
    """Raise a UserError that lists what is allowed unless `given` is among it; `name` says whose setting it is."""
    allowed = list(allowed)
    if given not in allowed:
        raise UserError(f"{name} is {given!r}; allowed are {', '.join(map(repr, allowed))}.")
