"""Imports mujoco and dm_control with the rendering back-end of MUJOCO_GL.

Both load the back-end's libraries when they are imported, and fail if these are missing. Then they are imported again
without rendering: states still work, and `failure` keeps the reason for the error of the first frame.

EGL draws on the first card of CUDA_VISIBLE_DEVICES, unless the user has set MUJOCO_EGL_DEVICE_ID. In containers and on
shared nodes EGL may list fewer cards, or others. If it has no card of that number, or the card does not work, EGL draws
on the first card that does, as without the variable.
"""

import contextlib
import importlib
import importlib.util
import os
from collections.abc import Iterator

import envs  # noqa: F401  chooses MUJOCO_GL

DEVICE = "MUJOCO_EGL_DEVICE_ID"
ERRORS = (ImportError, AttributeError, RuntimeError, OSError, ValueError)

card: str | None = None  # number of the card of CUDA_VISIBLE_DEVICES; None: no such variable, or it has no effect
failure: Exception | None = None


def _visible_card() -> str | None:
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "").partition(",")[0].strip()
    return first if os.environ.get("MUJOCO_GL") == "egl" and DEVICE not in os.environ and first.isdecimal() else None


@contextlib.contextmanager
def on_card() -> Iterator[None]:
    """Context manager: EGL displays that are made in the block use `card`."""
    if card is not None:
        os.environ[DEVICE] = card
    try:
        yield
    finally:
        if card is not None:
            del os.environ[DEVICE]


def _import_all() -> None:
    importlib.import_module("mujoco")
    if importlib.util.find_spec("dm_control"):  # benchmarks.gpu does without
        importlib.import_module("dm_control.suite")


card = _visible_card()
try:
    try:
        with on_card():
            _import_all()  # dm_control makes an EGL display
    except ERRORS:
        if card is None:
            raise
        card = None
        _import_all()
except ERRORS as error:
    failure = error
    chosen = os.environ.get("MUJOCO_GL", "")
    os.environ["MUJOCO_GL"] = "disable"
    try:
        _import_all()
    finally:
        os.environ["MUJOCO_GL"] = chosen
