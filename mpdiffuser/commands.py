"""Parts of all commands: the program's name in the help, errors in one line, and closed pipes."""

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec

from mpdiffuser.console import quiet_pipes
from mpdiffuser.errors import InputError

P = ParamSpec("P")


def entry_point(main: Callable[P, int | None]) -> Callable[P, int]:
    """Decorator for the function of a command. The new function returns the exit status.

    An InputError or an OSError is printed as `error: ...`, and the status is 2. If the reader closes the output's pipe,
    the command ends without a message (`quiet_pipes`).
    """

    @functools.wraps(main)
    def run(*arguments: P.args, **options: P.kwargs) -> int:
        try:
            with quiet_pipes():
                return main(*arguments, **options) or 0
        except (InputError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2

    return run


def program(module: str) -> str:
    """Return the name of the running command: `mpdiffuser COMMAND` if it is installed, else `python -m MODULE`."""
    name = Path(sys.argv[0]).name
    return name if name.startswith("mpdiffuser ") else f"python -m {module}"
