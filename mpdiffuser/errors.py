"""The one exception for mistakes that the user can mend."""


class InputError(ValueError):
    """Bad input: names the file, field or option, the value found, and what to do.

    Entry points print its message alone, without a traceback, and exit with status 2.
    """
