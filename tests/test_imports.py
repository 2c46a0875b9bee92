"""Libraries that get along only in one order."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_rendering_before_torch_compiles() -> None:
    """Mesa and triton each bring an LLVM; the process must live through the use of both."""
    program = (
        "from envs.simulator import DMControlEnv\n"
        "DMControlEnv('cartpole_swingup', 'frames').reset(seed=0)\n"
        "import torch._dynamo\n"
        "print('alive')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=Path(__file__).parents[1]
    )
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr[-2000:]
