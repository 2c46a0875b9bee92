"""Simulators and data: dm_control tasks, rendering, collection, experts.

Importing this package chooses MuJoCo's rendering back-end, which must happen before mujoco or dm_control is imported.
A value of MUJOCO_GL set by the user is kept.
"""

import contextlib
import os
import sys

# triton, which torch loads late, crashes the process if Mesa's LLVM was loaded before its own
with contextlib.suppress(ImportError):
    import triton  # noqa: F401

if sys.platform.startswith("linux"):
    os.environ.setdefault("MUJOCO_GL", "egl")
