"""A file in D4RL's layout that is made again."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import h5py
import numpy as np

from envs.datasets.tasks import MADE_BY, made_by
from mpdiffuser.errors import InputError
from mpdiffuser.files import replacing, writing


def write_d4rl(
    path: Path, arrays: Callable[[int], Mapping[str, np.ndarray]], seed: int, differences: Sequence[str]
) -> None:
    """Write the arrays of a seed, each with N rows, under D4RL's names.

    Args:
        arrays: called with the seed, once it is known that the file can be written.
        differences: from D4RL's own file.

    Raises:
        InputError: for a path that does not end in .hdf5, or cannot be written.
    """
    if path.suffix != ".hdf5":
        raise InputError(f"{path}: must end in .hdf5, since it is a file in D4RL's layout")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as handle, h5py.File(handle, "w") as file:
            for name, values in arrays(seed).items():
                file.create_dataset(name, data=values, compression="gzip", compression_opts=1, chunks=True)
            file.attrs[MADE_BY] = made_by(seed, differences)
