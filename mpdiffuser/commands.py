"""What all commands share: the name that their help prints, errors in one line, output that may close early."""

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec

from mpdiffuser.console import quiet_pipes
from mpdiffuser.errors import InputError

P = ParamSpec("P")


def entry_point(main: Callable[P, int | None]) -> Callable[P, int]:
    """Decorator for the function of a command; the new function returns the exit status.

    An InputError, or an OSError, which names the file and the fault, is printed as `error: ...`, with status 2. Where
    the reader of the output has gone, the command ends quietly (`quiet_pipes`).
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
    """How this program was called: `mpdiffuser COMMAND` if by the installed command, else `python -m MODULE`."""
    name = Path(sys.argv[0]).name
    return name if name.startswith("mpdiffuser ") else f"python -m {module}"
