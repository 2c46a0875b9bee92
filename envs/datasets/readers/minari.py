"""Minari datasets (HDF5), of this project's export or of others.

In Minari: observations are the Dict of the observations of the record, or the one of them that there is; `physics` and
other arrays are infos at the same index; `costs[t + 1]` is the cost of action t, as infos that a step returns. Datasets
without an info of the reset hold `costs[t]`, one a step.

Since 0.5.3 Minari keeps large pictures (height, width, 3) or (height, width) as JPEG, unless its metadata deny it:
each as a row of bytes. Earlier it kept them as they are.
"""

import contextlib
import io
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from envs.datasets.readers.arrays import Entry, check_claim, guard, open_arrays, read_array, require
from envs.datasets.readers.pictures import camera_names, check_pictures
from mpdiffuser.episodes import KINDS, REQUIRED, Episodes
from mpdiffuser.errors import InputError
from mpdiffuser.files import read_json
from mpdiffuser.memory import check_memory
from mpdiffuser.pictures import Source, StoredPictures
from mpdiffuser.record import DECLARED, PICTURE, PROPRIOCEPTION, TRUE_STATE, Actions, Record

INFO_KEY = "mpdiffuser_info"  # of the metadata, where the export keeps the info of the Episodes
RECORD_KEY = "mpdiffuser_record"  # likewise their record
LARGE = 32  # pixels a side from which on Minari takes arrays for pictures
UNUSED = "of the infos only physics and costs are read"


def read_minari(source: str | Path) -> Episodes:
    """Read a Minari dataset; its pictures are read when they are needed.

    Minari's own reader is not used: it would make the environment that a dataset names.

    Args:
        source: a dataset id, or the folder of a dataset.

    An observation that is a picture, (height, width, 3) uint8 or grey and large, becomes `frames`; several keep the
    last parts of their names. The others are flattened and joined as `observations`; texts are left out. Of the infos
    of other projects' datasets, `physics` and `costs` (or `cost`) are kept; info["left_out"] lists the others.

    Raises:
        InputError: if there is no such dataset, or it is damaged or of another kind; names file, key, what was found
            and what was expected.
    """
    folder = minari_folder(source)
    about, note = _about(folder / "data/metadata.json")
    file = folder / "data/main_data.hdf5"
    record = None
    if RECORD_KEY in about:
        record = Record.from_json(about[RECORD_KEY], f"{folder / 'data/metadata.json'}: {RECORD_KEY}")
    episodes = _read_episodes(file, about, record)
    parts, lengths = [one.arrays for one in episodes], [one.steps + 1 for one in episodes]
    steps = sum(lengths) - len(parts)
    if about.get("total_steps", steps) != steps:
        raise InputError(f"{file}: must have {about['total_steps']!r} steps (metadata.json), found {steps}")
    check_memory(file, "episodes", sum(values.nbytes for part in parts for values in part.values()))
    joined: dict[str, Any] = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    for key, name in _short_names(list(episodes[0].pictures), record).items():
        leaf = episodes[0].pictures[key]
        pictures = [_source(file, key, leaf, lengths)]
        joined[name] = StoredPictures((sum(lengths), *leaf.size[:2], 3), pictures, [file])
    left_out = {name: reason for one in episodes for name, reason in one.left_out.items()}
    notes = {key: told for one in episodes for key, told in one.notes.items()}
    info = {"source": f"Minari {source}", "missing": [], "left_out": left_out} if note is None else note
    if recorded := _env_id(about.get("env_spec")):
        notes["environment"] = f"recorded in {recorded}; environment={recorded} evaluates in it, if it is installed"
    info |= {"notes": list(notes.values())} if notes else {}
    result = Episodes(joined, np.append(0, np.cumsum(lengths)), info, folder, record=record)  # type: ignore[arg-type]
    bounds = _bounds(folder / "data/metadata.json", about.get("action_space"), joined["actions"].shape[1])
    return result if record or not bounds else replace(result, record=result.record.with_actions(bounds))


def minari_folder(source: str | Path) -> Path:
    """Return the folder of a Minari dataset, given by its id or as a folder.

    Raises:
        InputError: if there is no such dataset.
    """
    folder = Path(source).expanduser()
    if not (folder / "data").is_dir():
        root = Path(os.environ.get("MINARI_DATASETS_PATH") or "~/.minari/datasets").expanduser()
        folder = root / str(source)
        if not re.fullmatch(r"[-\w]+(/[-\w]+)*", str(source)) or not (folder / "data").is_dir():
            raise InputError(f"Minari dataset {str(source)!r}: not in {root}; expected an id, or a dataset's folder")
    return folder


def _read_episodes(file: Path, about: dict[str, Any], record: Record | None) -> list["_Episode"]:
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
        parts = [_Episode(file, name, episodes[name], about, record) for name in wanted]
    expected = parts[0].shapes()
    odd = next((part for part in parts if part.shapes() != expected), None)
    if odd:
        raise InputError(f"{file}: {odd.name}: must hold {expected} as episode_0 does, found {odd.shapes()}")
    return parts


def _short_names(keys: list[str], record: Record | None) -> dict[str, str]:
    """Leaf of the observations -> name of the array, of pictures."""
    if record:
        return {key: key.partition("/")[2] or record.names(PICTURE)[0] for key in keys}
    if len(keys) == 1:
        return {keys[0]: "frames"}
    return camera_names(keys, lambda key: re.sub(r"_index", "_", key.rpartition("/")[2]).strip("_"))


def _about(file: Path) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """A dataset's metadata, and the info that `export_minari` wrote there; None where another project wrote it."""
    about = read_json(file)
    if about.get("data_format", "hdf5") != "hdf5":
        raise InputError(f"{file}: data_format: must be 'hdf5', found {about['data_format']!r}; convert it with Minari")
    with guard(file):
        for key in ("observation_space", "action_space", INFO_KEY, RECORD_KEY):  # texts of JSON
            if key in about:
                about[key] = json.loads(about[key])
    note = about.get(INFO_KEY)
    if note is not None and not isinstance(note, dict):
        raise InputError(f"{file}: {INFO_KEY}: must be an object, found a {type(note).__name__}")
    return about, note


def _env_id(spec: Any) -> str | None:
    """The gymnasium id of the environment that the metadata tell of. It is a text; nothing is made of it."""
    with contextlib.suppress(ValueError, TypeError, AttributeError):
        name = (json.loads(spec) if isinstance(spec, str) else spec).get("id")
        return name if isinstance(name, str) and re.fullmatch(r"[-\w./]{1,80}", name) else None
    return None


def _bounds(file: Path, space: Any, width: int) -> Actions | None:
    """The bounds that the metadata declare for actions; None where they declare none, or infinite ones."""
    if not isinstance(space, dict) or space.get("type") != "Box":
        return None
    with guard(file):
        low, high = (np.broadcast_to(np.asarray(space[key], float).reshape(-1), (width,)) for key in ("low", "high"))
    if not np.isfinite([low, high]).all():
        return None
    return Actions(tuple(low.tolist()), tuple(high.tolist()), DECLARED)


@dataclass(frozen=True)
class _Leaf:
    """Pictures among the observations: (height, width, 3) or (height, width), and whether they are kept as JPEG."""

    size: tuple[int, ...]
    encoded: bool


def _source(file: Path, key: str, leaf: _Leaf, lengths: list[int]) -> Source:
    """The pictures of all episodes; grey ones three times."""

    def read(first: int) -> Iterator[np.ndarray]:
        with open_arrays(file, nested=True) as entries:
            for number, rows in enumerate(lengths):
                where = f"episode_{number}/{key}"
                if first < rows and leaf.encoded:
                    with guard(file):
                        encoded = entries[where].load()[first:]
                    yield from (_decoded(file, where, data, leaf.size)[None] for data in encoded)
                elif first < rows:
                    for block in entries[where].blocks(first):
                        yield block if leaf.size[2:] else np.repeat(block[..., None], 3, -1)
                first = max(first - rows, 0)

    return Source(np.arange(sum(lengths)), read)


def _decoded(file: Path, where: str, data: Any, size: tuple[int, ...]) -> np.ndarray:
    """A picture (height, width, 3) of bytes (n,) uint8."""
    with guard(file):
        picture = Image.open(io.BytesIO(data), formats=["JPEG"])
        if (picture.height, picture.width, *((len(picture.getbands()),) if size[2:] else ())) != size:
            raise InputError(f"{file}: {where}: must be of {size}, found {picture}")
        return np.asarray(picture if size[2:] else picture.convert("RGB"))


class _Episode:
    """One episode of a Minari file; entries are named without it.

    Args:
        record: of the dataset, where `export_minari` wrote it.
    """

    def __init__(
        self, file: Path, name: str, entries: dict[str, Entry], about: dict[str, Any], record: Record | None
    ) -> None:
        self.file, self.name, self.entries, self.about, self.record = file, name, entries, about, record
        self.own = record is not None
        require(file, {f"{name}/{key}": None for key in entries}, tuple(f"{name}/{key}" for key in REQUIRED))
        self.steps = (entries["rewards"].shape or (0,))[0]
        self.left_out: dict[str, str] = {}
        self.notes: dict[str, str] = {}
        self.pictures: dict[str, _Leaf] = {}
        self.arrays = self.read_all()

    def shapes(self) -> dict[str, Any]:
        """What must be the same in all episodes."""
        found: dict[str, Any] = {key: (values.shape[1:], str(values.dtype)) for key, values in self.arrays.items()}
        return found | {key: (leaf.size, "JPEG" if leaf.encoded else "uint8") for key, leaf in self.pictures.items()}

    def read_all(self) -> dict[str, np.ndarray]:
        """Arrays of T + 1 rows, but for pictures."""
        arrays = self.observations()
        for key in REQUIRED:
            values = self.read(key, self.steps, *KINDS[key])
            arrays[key] = np.concatenate([values, np.zeros((1, *values.shape[1:]), values.dtype)])
        for name in self.entries:
            if name.partition("/")[0] == "infos":
                self.add_info(name, arrays)
            elif name.partition("/")[0] not in {*REQUIRED, "observations"}:
                self.left_out[name] = "no array of an episode that this program uses"
        early = np.flatnonzero(arrays["terminations"][: self.steps - 1])
        if len(early) and not self.own:
            raise InputError(
                f"{self.file}: {self.name}/terminations: step {early[0]} of {self.steps} terminates, but the episode "
                "goes on; divide it there, or correct the mark"
            )
        return arrays

    def add_info(self, name: str, arrays: dict[str, np.ndarray]) -> None:
        """Read an info into `arrays`, or tell why not."""
        key, entry = name.partition("/")[2], self.entries[name]
        key = "costs" if key == "cost" else key
        rows = (entry.shape or (0,))[0]
        if not self.own and key not in ("physics", "costs"):
            self.left_out[name] = entry.refused or UNUSED
        elif key in arrays:
            self.left_out[name] = f"there is another array of {key}"
        elif key == "costs" and rows == self.steps:  # no info of the reset
            values = self.read(name, self.steps, *KINDS[key])
            arrays[key] = np.append(values, np.float32(0))
        elif self.own or rows == self.steps + 1:
            used = np.arange(self.steps + 1) > 0 if key == "costs" else None
            as_it_is = str(entry.dtype), len(entry.shape)
            values = self.read(name, self.steps + 1, *KINDS.get(key, as_it_is), used=used)
            if key == "costs":
                if values[0] and not self.own:
                    self.notes["reset"] = f"{name}: the cost in the info of the reset, of no action, is not used"
                    values = np.append(np.float32(0), values[1:])
                values = np.roll(values, -1)
            arrays[key] = values
        else:
            self.left_out[name] = f"{rows} rows in {self.name}, expected {self.steps + 1}, one an observation"

    def read(self, key: str, rows: int, dtype: str, dimensions: int, used: np.ndarray | None = None) -> np.ndarray:
        """(rows, ...) of a type and so many dimensions; where 2 are wanted, more are flattened to 2."""
        entry = self.entries[key]
        notes: dict[str, str] = {}
        inner = () if dimensions == 1 else (None,) * (len(entry.shape) - 1)
        where = f"{self.name}/{key}"
        values = read_array(self.file, where, entry, dtype, (rows, *inner), used=used, notes=notes)
        for told in notes.values():
            self.notes.setdefault(key, told)
        return values.reshape(rows, -1) if dimensions == 2 else values

    def observations(self) -> dict[str, np.ndarray]:
        """The vectors of the observation space's leaves; the pictures are put into `self.pictures`."""
        leaves = sorted((key for key in self.entries if key.partition("/")[0] == "observations"), key=_place)
        vectors = {}
        for key in leaves:
            size, entry = self.picture_size(key), self.entries[key]
            if size and entry.shape[1:] != size and self.about.get("jpeg_encoding", True):
                self.check_encoded(key, size)
                self.pictures[key] = _Leaf(size, True)
            elif size or (entry.dtype == np.uint8 and len(entry.shape) == 4 and entry.shape[-1] == 3):
                shape = (self.steps + 1, *(size or (None, None, 3)))
                check_pictures(self.file, f"{self.name}/{key}", entry, shape)
                self.pictures[key] = _Leaf(entry.shape[1:], False)
            elif entry.dtype.kind in "OSU" and self.space(key).get("type") == "Text":
                self.left_out[key] = "texts are not read"
            else:
                if entry.dtype == np.uint8 and sum(side >= LARGE for side in entry.shape[1:]) > 1:
                    raise InputError(
                        f"{self.file}: {self.name}/{key}: pictures must be (rows, height, width, 3), found "
                        f"{entry.shape}; transpose them"
                    )
                vectors[key] = self.read(key, self.steps + 1, "float32", 2)
        if self.record:
            names = self.record.names(PROPRIOCEPTION, TRUE_STATE)
            return {key.partition("/")[2] or names[0]: values for key, values in vectors.items()}
        return {"observations": np.concatenate(list(vectors.values()), axis=1)} if vectors else {}

    def space(self, key: str) -> dict[str, Any]:
        """The description of a leaf's space in the metadata; empty where there is none."""
        with guard(self.file.with_name("metadata.json")):
            space = self.about.get("observation_space")
            for part in key.split("/")[1:] if space else ():
                inner = space["subspaces"]  # type: ignore[index]
                space = inner[int(part.removeprefix("_index_")) if isinstance(inner, list) else part]
            return dict(space or {})

    def picture_size(self, key: str) -> tuple[int, ...] | None:
        """(height, width, 3) or (height, width) of a leaf that Minari takes for a picture."""
        with guard(self.file.with_name("metadata.json")):
            space = self.space(key)
            if space.get("type") != "Box" or space["dtype"] != "uint8" or len(space["shape"]) not in (2, 3):
                return None
            whole = (np.asarray(space["low"]) == 0).all() and (np.asarray(space["high"]) == 255).all()
            size = tuple(space["shape"])
            return size if whole and min(size[:2]) >= LARGE and size[2:] in ((), (3,)) else None

    def check_encoded(self, key: str, size: tuple[int, ...]) -> None:
        """Raise InputError unless a leaf has a row of bytes for each picture."""
        where, entry = f"{self.file}: {self.name}/{key}", self.entries[key]
        if entry.refused:
            raise InputError(f"{where}: {entry.refused}")
        if entry.shape[:1] != (self.steps + 1,) or len(entry.shape) > 2:
            raise InputError(
                f"{where}: must have {self.steps + 1} rows, found shape {entry.shape}: neither JPEG nor pictures {size}"
            )
        check_claim(self.file, f"{self.name}/{key}", entry)


def _place(key: str) -> list[tuple[int, str]]:
    """Sorts Dict keys by name, the parts of a Tuple by number."""
    return [(int(part[7:]) if re.fullmatch(r"_index_\d{1,6}", part) else -1, part) for part in key.split("/")]
