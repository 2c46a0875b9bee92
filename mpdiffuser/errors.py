"""The exception for mistakes that the user can correct."""


class InputError(ValueError):
    """Wrong input. The message names the file, field or option, the value found, and what to do.

    Entry points print only the message, without a traceback, and exit with status 2.
    """


class NotInstalled(InputError):
    """A package of an extra is needed and not installed. The message has the command that installs it."""
