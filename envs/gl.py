"""Imports mujoco and dm_control with the rendering back-end of MUJOCO_GL.

Both load the back-end's libraries when they are imported, and fail if these are missing. Then they are imported again
without rendering: states still work, and `failure` keeps the reason for the error of the first frame.
"""

import importlib
import os

import envs  # noqa: F401  chooses MUJOCO_GL

failure: Exception | None = None


def _import_all() -> None:
    for module in ("mujoco", "dm_control.suite"):
        importlib.import_module(module)


try:
    _import_all()
except (ImportError, AttributeError, RuntimeError, OSError) as error:
    failure = error
    chosen = os.environ.get("MUJOCO_GL", "")
    os.environ["MUJOCO_GL"] = "disable"
    try:
        _import_all()
    finally:
        os.environ["MUJOCO_GL"] = chosen
