"""The exception for mistakes of the user, which the command line shows as one message without a traceback."""


class UserError(ValueError):
    """A mistake of the user: the message says what was given, what is allowed and how to fix it."""
