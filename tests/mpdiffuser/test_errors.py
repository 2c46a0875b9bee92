"""Errors of a user's making are told apart from those of the program."""

import subprocess
import sys
from pathlib import Path

from mpdiffuser.errors import InputError


def test_an_input_error_is_a_value_error() -> None:
    assert issubclass(InputError, ValueError) and str(InputError("steps: found 0")) == "steps: found 0"


def test_the_simulators_processes_need_no_torch() -> None:
    """They import mpdiffuser.errors, and are many."""
    program = "import sys, mpdiffuser.errors; print(sorted({'torch', 'diffusers', 'numpy'} & set(sys.modules)))"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=root)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr[-2000:]
