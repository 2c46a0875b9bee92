"""Episodes to and from Minari datasets (HDF5), without loss. envs/datasets/readers/minari.py has the layout.

    python -m envs.datasets.minari export PATH ID     Episodes folder -> Minari dataset, e.g. ID mine/cartpole-v0
    python -m envs.datasets.minari import ID PATH     Minari dataset (or its folder) -> Episodes folder
    python -m envs.datasets.minari compare PATH       speed of reading random windows from either layout

Minari compresses pictures with loss by default; the export turns that off.
"""

import json
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces

from envs.datasets.readers.minari import INFO_KEY, RECORD_KEY, read_minari
from mpdiffuser.commands import entry_point
from mpdiffuser.episodes import REQUIRED, Episodes
from mpdiffuser.errors import InputError


def _minari() -> Any:
    try:
        import h5py  # noqa: F401
        import minari
    except ImportError as error:
        raise InputError(f"Minari is not installed ({error}): pip install 'mpdiffuser[minari]'") from error
    return minari


def export_minari(episodes: Episodes, dataset_id: str, **metadata: Any) -> Any:
    """Write a Minari dataset.

    Args:
        episodes: what to write.
        dataset_id: Minari's name, e.g. "mine/cartpole-mixed-v0".
        metadata: further arguments of minari.create_dataset_from_buffers, such as author or description.

    Returns:
        The minari.MinariDataset.

    Raises:
        InputError: if Minari is missing, or refuses the name or finds it taken.
    """
    minari = _minari()
    views = list(episodes.record.observations)
    kinds = {key: _space(episodes[key]) for key in views}
    buffers = [_to_buffer(episodes, index, views) for index in range(len(episodes))]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # it warns that no authors and links are given
            dataset = minari.create_dataset_from_buffers(
                dataset_id,
                buffers,
                observation_space=spaces.Dict(kinds) if len(views) > 1 else kinds[views[0]],
                action_space=spaces.Box(-np.inf, np.inf, episodes["actions"].shape[1:], episodes["actions"].dtype.type),
                jpeg_encoding=False,
                **metadata,
            )
    except (ValueError, OSError) as error:
        raise InputError(f"Minari dataset {dataset_id!r}: {error}") from error
    notes = {INFO_KEY: json.dumps(episodes.info), RECORD_KEY: json.dumps(episodes.record.to_json())}
    dataset.storage.update_metadata(notes)
    return dataset


def _space(array: np.ndarray) -> spaces.Space:
    low, high = (0, 255) if array.dtype == np.uint8 else (-np.inf, np.inf)
    return spaces.Box(low, high, array.shape[1:], array.dtype.type)


def _to_buffer(episodes: Episodes, index: int, views: list[str]) -> Any:
    from minari.data_collector import EpisodeBuffer

    rows = episodes.rows(index)
    steps = slice(rows.start, rows.stop - 1)
    infos = {key: array[rows] for key, array in episodes.arrays.items() if key not in {*REQUIRED, *views, "costs"}}
    if "costs" in episodes:
        infos["costs"] = np.roll(episodes["costs"][rows], 1)
    return EpisodeBuffer(
        id=index,
        observations={key: episodes[key][rows] for key in views} if len(views) > 1 else episodes[views[0]][rows],
        actions=episodes["actions"][steps],
        rewards=episodes["rewards"][steps],
        terminations=episodes["terminations"][steps],
        truncations=episodes["truncations"][steps],
        infos=infos or None,
    )


def compare(path: str | Path, length: int = 32, count: int = 500) -> dict[str, float]:
    """Windows read a second, at random places of an Episodes folder and of the same data as a Minari dataset.

    A window is `length` rows of frames (or observations) and actions. Minari is read through its interface, which loads
    whole episodes, and by slicing its HDF5 file with h5py.

    Returns:
        "episodes", "minari", "h5py" -> windows a second.
    """
    _minari()
    import h5py

    episodes = Episodes.load(path)
    random = np.random.default_rng(0)
    chosen = random.integers(len(episodes), size=count)
    starts = [int(random.integers(episodes.lengths[e] - length + 1)) for e in chosen]
    key = "frames" if "frames" in episodes else "observations"
    before = os.environ.get("MINARI_DATASETS_PATH")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MINARI_DATASETS_PATH"] = folder
        try:
            dataset = export_minari(episodes, "compare-v0")
        finally:
            os.environ.pop("MINARI_DATASETS_PATH")
            os.environ.update({} if before is None else {"MINARI_DATASETS_PATH": before})
        both = "frames" in episodes and "observations" in episodes

        def through_episodes(episode: int, start: int) -> tuple[np.ndarray, np.ndarray]:
            first = int(episodes.offsets[episode]) + start
            return np.array(episodes[key][first : first + length]), np.array(
                episodes["actions"][first : first + length]
            )

        def through_minari(episode: int, start: int) -> tuple[np.ndarray, np.ndarray]:
            data = dataset[episode]
            seen = data.observations[key] if both else data.observations
            return seen[start : start + length].copy(), data.actions[start : start + length]

        with h5py.File(Path(dataset.storage.data_path) / "main_data.hdf5") as file:

            def through_h5py(episode: int, start: int) -> tuple[np.ndarray, np.ndarray]:
                group = file[f"episode_{episode}"]
                seen = group["observations"][key] if both else group["observations"]
                return seen[start : start + length], group["actions"][start : start + length]

            readers = {"episodes": through_episodes, "minari": through_minari, "h5py": through_h5py}
            return {name: _speed(reader, chosen, starts) for name, reader in readers.items()}


def _speed(read: Callable[[int, int], Any], episodes: np.ndarray, starts: list[int]) -> float:
    """Windows a second, of a second reading: the first warms the caches."""
    for _ in range(2):
        begin = time.perf_counter()
        for episode, start in zip(episodes.tolist(), starts):
            read(episode, start)
        seconds = time.perf_counter() - begin
    return len(starts) / seconds


@entry_point
def main(arguments: list[str] | None = None) -> int:
    match sys.argv[1:] if arguments is None else arguments:
        case ["-h" | "--help"]:
            print(__doc__)
        case ["export", path, dataset_id]:
            print(export_minari(Episodes.load(path), dataset_id).storage.data_path)
        case ["import", source, path]:
            read_minari(source).save(path)
            print(path)
        case ["compare", path]:
            for name, speed in compare(path).items():
                print(f"{name:8} {speed:8.0f} windows/s")
        case _:
            print(__doc__)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
