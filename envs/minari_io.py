"""Episodes to and from Minari datasets (HDF5), without loss.

    python -m envs.minari_io export PATH ID     Episodes folder -> Minari dataset, e.g. ID mine/cartpole-v0
    python -m envs.minari_io import ID PATH     Minari dataset (or its folder) -> Episodes folder
    python -m envs.minari_io compare PATH       speed of reading random windows from either layout

In Minari: observations are the Dict of `frames` and `observations`, or the one there is; `physics` and other arrays
are infos at the same index; `costs[t + 1]` is the cost of action t, as infos that a step returns. Minari compresses
pictures with loss by default, which is turned off here.
"""

import io
import json
import os
import re
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from PIL import Image

from envs.readers.arrays import Entry, guard, open_arrays, read_array, require
from mpdiffuser.episodes import KINDS, REQUIRED, Episodes
from mpdiffuser.errors import InputError
from mpdiffuser.files import read_json

INFO_KEY = "mpdiffuser_info"
LARGE = 32  # pixels a side from which on Minari keeps pictures as JPEG


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
    except (ValueError, OSError) as error:
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
    """Read a Minari dataset, ours or another's, into memory; Minari itself, which would make the environment that a
    dataset names, is not asked.

    Args:
        source: a dataset id, or the folder of a dataset.

    Observations that are pictures (height, width, 3) uint8 become `frames`; the others are flattened and joined as
    `observations`. Of another's infos, `physics` and `costs` (or `cost`) are kept.

    Raises:
        InputError: if there is no such dataset, or it is damaged or of another kind; names file, key, what was found
            and what was expected.
    """
    folder = Path(source).expanduser()
    if not (folder / "data").is_dir():
        root = Path(os.environ.get("MINARI_DATASETS_PATH") or "~/.minari/datasets").expanduser()
        folder = root / str(source)
        if not re.fullmatch(r"[-\w]+(/[-\w]+)*", str(source)) or not (folder / "data").is_dir():
            raise InputError(f"Minari dataset {str(source)!r}: not in {root}; expected an id, or a dataset's folder")
    about, note = _about(folder / "data/metadata.json")
    file = folder / "data/main_data.hdf5"
    with open_arrays(file, nested=True) as entries:
        episodes: dict[str, dict[str, Entry]] = {}
        for name, entry in entries.items():
            episode, _, key = name.partition("/")
            episodes.setdefault(episode, {})[key] = entry
        wanted = [f"episode_{number}" for number in range(len(episodes))]
        if not episodes or set(episodes) != set(wanted) or about.get("total_episodes", len(wanted)) != len(wanted):
            raise InputError(
                f"{file}: must have episode_0, episode_1, ... {about.get('total_episodes')} in number (metadata.json), "
                f"found {len(episodes)}: {sorted(episodes)[:5]}"
            )
        parts = [_Episode(file, name, episodes[name], about).arrays(note is not None) for name in wanted]
    for name, part in zip(wanted, parts):
        shapes = [{key: (values.shape[1:], values.dtype) for key, values in one.items()} for one in (parts[0], part)]
        if shapes[0] != shapes[1]:
            raise InputError(f"{file}: {name}: must hold {shapes[0]} as episode_0 does, found {shapes[1]}")
    offsets = np.append(0, np.cumsum([len(part["rewards"]) for part in parts]))
    steps = int(offsets[-1]) - len(parts)
    if about.get("total_steps", steps) != steps:
        raise InputError(f"{file}: must have {about['total_steps']!r} steps (metadata.json), found {steps}")
    joined = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    return Episodes(joined, offsets, {"source": f"Minari {source}"} if note is None else note, folder)


def _about(file: Path) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """A dataset's metadata, and the info that `export_minari` wrote there."""
    about = read_json(file)
    if about.get("data_format", "hdf5") != "hdf5":
        raise InputError(f"{file}: data_format: must be 'hdf5', found {about['data_format']!r}; convert it with Minari")
    with guard(file):
        for key in ("observation_space", INFO_KEY):  # texts of JSON
            if key in about:
                about[key] = json.loads(about[key])
    note = about.get(INFO_KEY)
    if note is not None and not isinstance(note, dict):
        raise InputError(f"{file}: {INFO_KEY}: must be an object, found a {type(note).__name__}")
    return about, note


class _Episode:
    """One episode of a Minari file; entries are named without it."""

    def __init__(self, file: Path, name: str, entries: dict[str, Entry], about: dict[str, Any]) -> None:
        self.file, self.name, self.entries, self.about = file, name, entries, about
        require(file, {f"{name}/{key}": None for key in entries}, tuple(f"{name}/{key}" for key in REQUIRED))
        self.steps = (entries["rewards"].shape or (0,))[0]

    def arrays(self, ours: bool) -> dict[str, np.ndarray]:
        """Arrays of T + 1 rows; ours: with all infos."""
        arrays = self.observations()
        for key in REQUIRED:
            values = self.read(key, self.steps, *KINDS[key])
            arrays[key] = np.concatenate([values, np.zeros((1, *values.shape[1:]), values.dtype)])
        for name in self.entries:
            group, _, key = name.partition("/")
            key = "costs" if key == "cost" else key
            known = ours or (key in ("physics", "costs") and self.entries[name].shape[:1] == (self.steps + 1,))
            if group == "infos" and known and key not in arrays:
                as_it_is = str(self.entries[name].dtype), len(self.entries[name].shape)
                values = self.read(name, self.steps + 1, *KINDS.get(key, as_it_is))
                arrays[key] = np.roll(values, -1) if key == "costs" else values
        return arrays

    def read(self, key: str, rows: int, dtype: str, dimensions: int) -> np.ndarray:
        """(rows, ...) of a type and so many dimensions; what has more is joined to one vector, where there are two."""
        entry = self.entries[key]
        inner = () if dimensions == 1 else (None,) * (len(entry.shape) - 1)
        values = read_array(self.file, f"{self.name}/{key}", entry, np.dtype(dtype).type, (rows, *inner))
        return values.reshape(rows, -1) if dimensions == 2 else values

    def observations(self) -> dict[str, np.ndarray]:
        """`frames` and `observations`, of the leaves of the observation space."""
        leaves = sorted((key for key in self.entries if key.partition("/")[0] == "observations"), key=_place)
        pictures, flat = [], []
        for key in leaves:
            size = self.jpeg_size(key)
            entry = self.entries[key]
            if size:
                pictures.append(self.decode(key, size))
            elif entry.dtype == np.uint8 and len(entry.shape) == 4 and entry.shape[-1] == 3:
                pictures.append(self.read(key, self.steps + 1, "uint8", 4))
            else:
                flat.append(self.read(key, self.steps + 1, "float32", 2))
        if len(pictures) > 1:
            raise InputError(
                f"{self.file}: {self.name}: {len(pictures)} pictures an observation; one is all that can be read"
            )
        arrays = {"frames": pictures[0]} if pictures else {}
        return arrays | ({"observations": np.concatenate(flat, axis=1)} if flat else {})

    def jpeg_size(self, key: str) -> tuple[int, ...] | None:
        """(height, width, 3) of a leaf that Minari keeps as JPEG: large pictures, unless told otherwise."""
        if not self.about.get("jpeg_encoding", True):
            return None
        with guard(self.file.with_name("metadata.json")):
            space = self.about.get("observation_space")
            for part in key.split("/")[1:]:
                inner = space["subspaces"]  # type: ignore[index]
                space = inner[int(part.removeprefix("_index_")) if isinstance(inner, list) else part]
            if not space or space["type"] != "Box" or space["dtype"] != "uint8" or min(space["shape"][:2]) < LARGE:
                return None
            whole = (np.asarray(space["low"]) == 0).all() and (np.asarray(space["high"]) == 255).all()
            return tuple(space["shape"]) if whole and len(space["shape"]) == 3 else None

    def decode(self, key: str, size: tuple[int, ...]) -> np.ndarray:
        """(T + 1, height, width, 3) pictures."""
        with guard(self.file):
            stored = self.entries[key].load()
            pictures = []
            for data in stored:
                picture = Image.open(io.BytesIO(data), formats=["JPEG"])
                if (picture.height, picture.width, len(picture.getbands())) != size:
                    raise InputError(f"{self.file}: {self.name}/{key}: must be of {size}, found {picture}")
                pictures.append(np.asarray(picture))
            if len(pictures) != self.steps + 1:
                raise InputError(
                    f"{self.file}: {self.name}/{key}: must have {self.steps + 1} rows, found {len(stored)}"
                )
            return np.stack(pictures)


def _place(key: str) -> list[tuple[int, str]]:
    """Sorts Dict keys by name, the parts of a Tuple by number."""
    return [(int(part[7:]) if re.fullmatch(r"_index_\d{1,6}", part) else -1, part) for part in key.split("/")]


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
