"""Simulators and data: environments, rendering, collection, datasets and experts.

Importing this package chooses MuJoCo's rendering back-end. That must happen before mujoco or dm_control is imported, so
the package itself imports neither: `make` imports a simulator when it is asked for one. A value of MUJOCO_GL that the
user has set is kept.
"""

import contextlib
import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from envs.observations import Observed
    from envs.protocol import Environment

# triton, which torch loads late, crashes the process if Mesa's LLVM was loaded before its own
with contextlib.suppress(ImportError):
    import triton  # noqa: F401

if sys.platform.startswith("linux"):
    os.environ.setdefault("MUJOCO_GL", "egl")


def make(record: Mapping[str, Any], observation: "Observed" = "states") -> "Environment":
    """The environment that a record describes.

    Args:
        record: what a dataset and a pipeline keep as info["environment"], or what `environment_of` returned;
            envs/record.py lists the fields.
        observation: "states", "frames", "both", or names of observations of a gymnasium environment.

    Raises:
        InputError: if a field is unknown, missing, of the wrong type, or names something that does not exist; if this
            environment does not give these observations; for the user's own environment if the record is of a file.
    """
    from envs.record import KINDS, check_record

    check_record(record)
    fields = {name: value for name, value in record.items() if name != "kind"}
    return KINDS[record["kind"]].load()(observation=observation, **fields)
