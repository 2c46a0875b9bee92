"""Episodes to and from Minari datasets (HDF5), without loss.

    python -m envs.minari_io export PATH ID     Episodes folder -> Minari dataset, e.g. ID mine/cartpole-v0
    python -m envs.minari_io import ID PATH     Minari dataset (or its folder) -> Episodes folder
    python -m envs.minari_io compare PATH       speed of reading random windows from either layout

In Minari: observations are the Dict of `frames` and `observations`, or the one there is; `physics` and other arrays
are infos at the same index; `costs[t + 1]` is the cost of action t, as infos that a step returns. Minari compresses
pictures with loss by default, which is turned off here.
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

from mpdiffuser.episodes import REQUIRED, Episodes
from mpdiffuser.errors import InputError

INFO_KEY = "mpdiffuser_info"


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
    seen = [key for key in ("frames", "observations") if key in episodes]
    views = {key: _space(episodes[key]) for key in seen}
    buffers = [_to_buffer(episodes, index, seen) for index in range(len(episodes))]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # on authors and links that were not given
            dataset = minari.create_dataset_from_buffers(
                dataset_id,
                buffers,
                observation_space=spaces.Dict(views) if len(seen) > 1 else views[seen[0]],
                action_space=spaces.Box(-np.inf, np.inf, episodes["actions"].shape[1:], episodes["actions"].dtype.type),
                jpeg_encoding=False,
                **metadata,
            )
    except (ValueError, FileExistsError) as error:
        raise InputError(f"Minari dataset {dataset_id!r}: {error}") from error
    dataset.storage.update_metadata({INFO_KEY: json.dumps(episodes.info)})
    return dataset


def _space(array: np.ndarray) -> spaces.Space:
    low, high = (0, 255) if array.dtype == np.uint8 else (-np.inf, np.inf)
    return spaces.Box(low, high, array.shape[1:], array.dtype.type)


def _to_buffer(episodes: Episodes, index: int, seen: list[str]) -> Any:
    from minari.data_collector import EpisodeBuffer

    rows = episodes.rows(index)
    steps = slice(rows.start, rows.stop - 1)
    infos = {key: array[rows] for key, array in episodes.arrays.items() if key not in {*REQUIRED, *seen, "costs"}}
    if "costs" in episodes:
        infos["costs"] = np.roll(episodes["costs"][rows], 1)
    return EpisodeBuffer(
        id=index,
        observations={key: episodes[key][rows] for key in seen} if len(seen) > 1 else episodes[seen[0]][rows],
        actions=episodes["actions"][steps],
        rewards=episodes["rewards"][steps],
        terminations=episodes["terminations"][steps],
        truncations=episodes["truncations"][steps],
        infos=infos or None,
    )


def import_minari(source: str | Path) -> Episodes:
    """Read a Minari dataset, ours or another's, into memory.

    Args:
        source: a dataset id, or the folder of a dataset.

    Observations that are pictures (height, width, 3) uint8 become `frames`; the others are flattened and joined as
    `observations`. Of another's infos, `physics` and `costs` (or `cost`) are kept.

    Raises:
        InputError: if Minari is missing, there is no such dataset, or it holds nothing of this kind.
    """
    minari = _minari()
    folder = Path(source).expanduser()
    arrays: dict[str, list[np.ndarray]] = {}
    offsets = [0]
    try:
        if (folder / "data").is_dir():
            dataset = minari.MinariDataset(folder / "data")
        else:
            dataset = minari.load_dataset(str(source))
        note = dataset.storage.metadata.get(INFO_KEY)
        for episode in dataset.iterate_episodes():
            for key, array in _from_episode(episode, note is not None).items():
                arrays.setdefault(key, []).append(array)
            offsets.append(offsets[-1] + len(episode.rewards) + 1)
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"Minari dataset {str(source)!r}: {error}") from error
    if len(offsets) == 1:
        raise InputError(f"Minari dataset {str(source)!r}: it has no episodes")
    joined = {key: np.concatenate(parts) for key, parts in arrays.items()}
    info = json.loads(note) if note else {"source": f"Minari {source}"}
    return Episodes(joined, np.array(offsets), info)


def _from_episode(episode: Any, ours: bool) -> dict[str, np.ndarray]:
    """Arrays of T + 1 rows."""
    arrays = _split_observations(episode.observations)
    kinds = {"actions": np.float32, "rewards": np.float32, "terminations": bool, "truncations": bool}
    for key, kind in kinds.items():
        values = np.asarray(getattr(episode, key), kind)
        values = values.reshape(len(values), -1) if key == "actions" else values
        arrays[key] = np.concatenate([values, np.zeros((1, *values.shape[1:]), kind)])
    rows = len(arrays["rewards"])
    for key, values in (episode.infos or {}).items():
        key = "costs" if key == "cost" else key
        known = isinstance(values, np.ndarray) and len(values) == rows and (ours or key in ("physics", "costs"))
        if known:
            arrays[key] = np.roll(values, -1).astype(np.float32) if key == "costs" else values
    return arrays


def _split_observations(observations: Any) -> dict[str, np.ndarray]:
    parts = list(_leaves(observations))
    pictures = [part for part in parts if part.dtype == np.uint8 and part.ndim == 4 and part.shape[-1] == 3]
    flat = [part.reshape(len(part), -1).astype(np.float32) for part in parts if not any(part is p for p in pictures)]
    if len(pictures) > 1:
        raise InputError(
            f"this Minari dataset has {len(pictures)} pictures an observation; one is all that can be read"
        )
    arrays = {"frames": pictures[0]} if pictures else {}
    return arrays | ({"observations": np.concatenate(flat, axis=1)} if flat else {})


def _leaves(observations: Any) -> Any:
    if isinstance(observations, dict):
        for key in observations:
            yield from _leaves(observations[key])
    elif isinstance(observations, tuple):
        for part in observations:
            yield from _leaves(part)
    else:
        yield np.asarray(observations)


def compare(path: str | Path, length: int = 32, count: int = 500) -> dict[str, float]:
    """Windows a second, `length` rows of frames and actions each, at random places of our layout and of Minari's.

    Minari is read through its interface, which loads whole episodes, and by slicing its HDF5 file with h5py.
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

        def ours(episode: int, start: int) -> tuple[np.ndarray, np.ndarray]:
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

            readers = {"ours": ours, "minari": through_minari, "h5py": through_h5py}
            return {name: _speed(reader, chosen, starts) for name, reader in readers.items()}


def _speed(read: Callable[[int, int], Any], episodes: np.ndarray, starts: list[int]) -> float:
    """Windows a second, the second time they are read."""
    for _ in range(2):
        begin = time.perf_counter()
        for episode, start in zip(episodes.tolist(), starts):
            read(episode, start)
        seconds = time.perf_counter() - begin
    return len(starts) / seconds


def main(arguments: list[str]) -> int:
    match arguments:
        case ["export", path, dataset_id]:
            print(export_minari(Episodes.load(path), dataset_id).storage.data_path)
        case ["import", source, path]:
            import_minari(source).save(path)
            print(path)
        case ["compare", path]:
            for name, speed in compare(path).items():
                print(f"{name:8} {speed:8.0f} windows/s")
        case _:
            print(__doc__)
            return 2
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
