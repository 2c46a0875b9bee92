"""Minari datasets (HDF5), of this project's export or of others.

In Minari: observations are the Dict of `frames` and `observations`, or the one of them that there is; `physics` and
other arrays are infos at the same index; `costs[t + 1]` is the cost of action t, as infos that a step returns.
"""

import io
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from envs.datasets.readers.arrays import Entry, guard, open_arrays, read_array, require
from mpdiffuser.episodes import KINDS, REQUIRED, Episodes
from mpdiffuser.errors import InputError
from mpdiffuser.files import read_json

INFO_KEY = "mpdiffuser_info"  # of the metadata, where the export keeps the info of the Episodes
LARGE = 32  # pixels a side from which on Minari keeps pictures as JPEG


def read_minari(source: str | Path) -> Episodes:
    """Read a Minari dataset into memory.

    Minari's own reader is not used: it would make the environment that a dataset names.

    Args:
        source: a dataset id, or the folder of a dataset.

    Observations that are pictures (height, width, 3) uint8 become `frames`; the others are flattened and joined as
    `observations`. Of the infos of other projects' datasets, `physics` and `costs` (or `cost`) are kept.

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
    """A dataset's metadata, and the info that `export_minari` wrote there; None where another project wrote it."""
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

    def arrays(self, every_info: bool) -> dict[str, np.ndarray]:
        """Arrays of T + 1 rows; every_info: also infos other than physics and costs."""
        arrays = self.observations()
        for key in REQUIRED:
            values = self.read(key, self.steps, *KINDS[key])
            arrays[key] = np.concatenate([values, np.zeros((1, *values.shape[1:]), values.dtype)])
        for name in self.entries:
            group, _, key = name.partition("/")
            key = "costs" if key == "cost" else key
            known = every_info or (key in ("physics", "costs") and self.entries[name].shape[:1] == (self.steps + 1,))
            if group == "infos" and known and key not in arrays:
                as_it_is = str(self.entries[name].dtype), len(self.entries[name].shape)
                values = self.read(name, self.steps + 1, *KINDS.get(key, as_it_is))
                arrays[key] = np.roll(values, -1) if key == "costs" else values
        return arrays

    def read(self, key: str, rows: int, dtype: str, dimensions: int) -> np.ndarray:
        """(rows, ...) of a type and so many dimensions; where 2 are wanted, more are flattened to 2."""
        entry = self.entries[key]
        inner = () if dimensions == 1 else (None,) * (len(entry.shape) - 1)
        values = read_array(self.file, f"{self.name}/{key}", entry, np.dtype(dtype).type, (rows, *inner))
        return values.reshape(rows, -1) if dimensions == 2 else values

    def observations(self) -> dict[str, np.ndarray]:
        """`frames` and `observations`, made of the leaves of the observation space."""
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
                f"{self.file}: {self.name}: {len(pictures)} pictures in an observation; only one can be read"
            )
        arrays = {"frames": pictures[0]} if pictures else {}
        return arrays | ({"observations": np.concatenate(flat, axis=1)} if flat else {})

    def jpeg_size(self, key: str) -> tuple[int, ...] | None:
        """(height, width, 3) of a leaf that Minari keeps as JPEG: a large picture, unless the metadata deny it."""
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
