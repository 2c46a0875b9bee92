"""Episodes: logged experience as flat, memory-mapped arrays.

Row layout, for an episode of T steps (T + 1 rows):

    row            0     1     ...   T-1    T
    observations   o_0   o_1   ...   o_T-1  o_T      frames and physics likewise, each stored once
    actions        a_0   a_1   ...   a_T-1  0        a_t leads from o_t to o_t+1
    rewards        r_0   r_1   ...   r_T-1  0        r_t is paid for a_t
    terminations   0     0     ...   end?   0        truncations likewise

Episode e owns rows offsets[e] : offsets[e + 1] of every array. On disk an Episodes folder is one .npy file an
array, `offsets.npy`, and `meta.json`, which is written last: a folder without it is not a dataset.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np

from mpdiffuser.errors import InputError
from mpdiffuser.files import claim, create_array, publish, read_json, release, write_whole, writing

FORMAT = "mpdiffuser-episodes"
VERSION = 2
REQUIRED = ("actions", "rewards", "terminations", "truncations")
KINDS = {  # type and dimensions of the arrays that have a meaning
    "actions": ("float32", 2),
    "rewards": ("float32", 1),
    "terminations": ("bool", 1),
    "truncations": ("bool", 1),
    "observations": ("float32", 2),
    "frames": ("uint8", 4),
    "costs": ("float32", 1),
    "physics": ("float64", 2),
    "offsets": ("int64", 1),
}
AGAIN = "the dataset is damaged, collect it again"


@dataclass
class Episodes:
    """Logged episodes of one system.

    Args:
        arrays: name -> array of M rows. Always `actions` (M, m) float32, `rewards` (M,) float32, `terminations` and
            `truncations` (M,) bool, and at least one of `observations` (M, o) float32 and `frames`
            (M, height, width, 3) uint8; where known also `costs` (M,) float32 and `physics` (M, p) float64.
        offsets: (E + 1,) int64, first row of each episode, then M.
        info: JSON-able facts about the origin (task, environment, quality, seeds, ...).
        numbers: (E,) what the episodes are called: their indices in the dataset that they were selected from.

    Raises:
        InputError: if arrays are missing, disagree in length, or an episode has no step.
    """

    arrays: dict[str, np.ndarray]
    offsets: np.ndarray
    info: dict[str, Any] = field(default_factory=dict)
    path: Path | None = None
    numbers: np.ndarray = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        where = f"{self.path}: " if self.path else ""
        missing = [key for key in REQUIRED if key not in self.arrays]
        if missing or not {"observations", "frames"} & set(self.arrays):
            raise InputError(
                f"{where}episodes need {', '.join(REQUIRED)} and observations or frames; found {sorted(self.arrays)}"
            )
        lengths = {key: len(array) for key, array in self.arrays.items()}
        if len(set(lengths.values())) != 1:
            raise InputError(f"{where}arrays differ in their number of rows: {lengths}")
        offsets = np.asarray(self.offsets)
        rows = next(iter(lengths.values()))
        if offsets.ndim != 1 or len(offsets) < 2 or offsets[0] != 0 or offsets[-1] != rows:
            raise InputError(f"{where}offsets must start at 0 and end at the number of rows {rows}; found {offsets}")
        if (np.diff(offsets) < 2).any():
            episode = int(np.argmax(np.diff(offsets) < 2))
            raise InputError(f"{where}episode {episode} has no step (an episode of T steps has T + 1 rows)")
        if self.numbers is None:
            self.numbers = np.arange(len(self))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, key: str) -> np.ndarray:
        return self.arrays[key]

    def __contains__(self, key: str) -> bool:
        return key in self.arrays

    @property
    def lengths(self) -> np.ndarray:
        """Steps of each episode, (E,)."""
        return np.diff(self.offsets) - 1

    @property
    def episode_of_row(self) -> np.ndarray:
        """Index of the episode that owns each row, (M,)."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    @property
    def returns(self) -> np.ndarray:
        """Undiscounted return of each episode, (E,)."""
        return np.add.reduceat(np.asarray(self.arrays["rewards"], np.float64), self.offsets[:-1])

    def rows(self, episode: int) -> slice:
        return slice(int(self.offsets[episode]), int(self.offsets[episode + 1]))

    def select(self, episodes: np.ndarray) -> Self:
        """The given episodes, copied into memory."""
        index = np.concatenate([np.arange(self.offsets[e], self.offsets[e + 1]) for e in episodes])
        offsets = np.concatenate([[0], np.cumsum(np.diff(self.offsets)[episodes])])
        arrays = {key: array[index] for key, array in self.arrays.items()}
        return type(self)(arrays, offsets, self.info, self.path, self.numbers[episodes])

    def check_finite(self) -> Self:
        """These episodes, if every number in them is finite.

        Raises:
            InputError: naming the dataset, the array, and the episode and row of the first number that is not.
        """
        for key, array in self.arrays.items():
            if array.dtype.kind != "f":
                continue
            for first in range(0, len(array), 65_536):  # a part at a time: arrays may be larger than the memory
                part = np.asarray(array[first : first + 65_536])
                finite = np.isfinite(part).reshape(len(part), -1).all(1)
                if not finite.all():
                    row = first + int(np.argmin(finite))
                    episode = int(self.episode_of_row[row])
                    where = f"episode {self.numbers[episode]}, row {row - self.offsets[episode]} of it"
                    raise InputError(
                        f"{self.path or 'episodes'}: {key}: must be finite, found {array[row]} in {where} (row {row})"
                    )
        return self

    def checksum(self, *keys: str) -> str:
        """A name for what the episodes hold: SHA-256 of the offsets and the arrays `keys` (none: all)."""
        digest = hashlib.sha256(np.asarray(self.offsets, np.int64).tobytes())
        for key in sorted(keys or self.arrays):
            array = self.arrays[key]
            digest.update(json.dumps([key, str(array.dtype), array.shape]).encode())
            for first in range(0, len(array), 4096):
                digest.update(array[first : first + 4096].tobytes())
        return digest.hexdigest()[:16]

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Open a folder, memory-mapped.

        Raises:
            InputError: if the folder is absent, unfinished, of another format or version, or damaged.
        """
        path = Path(path)
        meta_file = path / "meta.json"
        if not meta_file.is_file():
            raise InputError(f"{path}: no dataset here (meta.json is missing); make one with collect.py")
        meta = read_json(meta_file)
        if meta.get("format") != FORMAT:
            raise InputError(f"{meta_file}: field 'format' must be {FORMAT!r}; this is no dataset of this program")
        if meta.get("version") != VERSION:
            raise InputError(
                f"{meta_file}: format version {meta.get('version')!r} found, this program reads version {VERSION}; "
                "collect or convert the data again"
            )
        specs, info = meta.get("arrays"), meta.get("info")
        if not isinstance(specs, dict) or not isinstance(info, dict) or "offsets" not in specs:
            raise InputError(f"{meta_file}: fields 'arrays', with offsets, and 'info' must be objects; {AGAIN}")
        stray = sorted({file.stem for file in path.glob("*.npy")} - set(specs))
        if stray:
            raise InputError(f"{path / stray[0]}.npy: meta.json says nothing of it; {AGAIN}")
        arrays = {key: _open_array(path, key, spec) for key, spec in specs.items()}
        offsets = np.array(arrays.pop("offsets"))
        return cls(arrays, offsets, info, path).check_finite()

    def save(self, path: str | Path) -> None:
        """Write a folder that `load` opens; it appears whole or not at all."""
        with EpisodesWriter(path, len(self.arrays["actions"]), self.info) as writer:
            for key, array in self.arrays.items():
                writer.create(key, array.shape[1:], array.dtype)[:] = array
            writer.offsets = self.offsets


def _open_array(folder: Path, key: str, spec: Any) -> np.ndarray:
    if not re.fullmatch(r"\w{1,64}", key, re.ASCII):  # a key is a file's name, and must not lead elsewhere
        raise InputError(
            f"{folder / 'meta.json'}: arrays: {key[:80]!r} must be a name of letters, digits and _; {AGAIN}"
        )
    file = folder / f"{key}.npy"
    if not file.is_file() or file.is_symlink():
        raise InputError(f"{file}: {'a link, which may lead anywhere' if file.is_symlink() else 'missing'}; {AGAIN}")
    try:
        array = np.lib.format.open_memmap(file, mode="r")  # unlike np.load it opens nothing but .npy
    except Exception as error:  # numpy's parser of headers has many ways to fail
        raise InputError(f"{file}: truncated or not a .npy file ({error}); {AGAIN}") from error
    found = {"shape": list(array.shape), "dtype": str(array.dtype)}
    if found != spec:
        raise InputError(f"{file}: holds {found}, but meta.json says {spec}; {AGAIN}")
    dtype, dimensions = KINDS.get(key, (found["dtype"], max(array.ndim, 1)))
    if (found["dtype"], array.ndim) != (dtype, dimensions):
        raise InputError(f"{file}: holds {found}, must be {dtype} of {dimensions} dimensions; {AGAIN}")
    if array.dtype == bool and np.frombuffer(array, np.uint8).max(initial=0) > 1:
        raise InputError(f"{file}: holds bytes that are neither true nor false; {AGAIN}")
    return array


class EpisodesWriter:
    """Writes an Episodes folder under a temporary name and renames it when it is whole.

    Use as a context manager: `create` arrays, fill them, set `offsets`. Disk space is reserved when an array is
    created, so a full disk is an error at the start and not a crash in the middle. After `keep(progress)` a writer that
    fails or is killed leaves its arrays, and the next writer with the same rows and info finds them in `create`, and
    `progress`.

    Raises:
        InputError: if `path` exists already or is being written by another process, or cannot be written.
    """

    def __init__(self, path: str | Path, rows: int, info: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.rows = rows
        self.info = dict(info)
        self.offsets: np.ndarray | None = None
        self.progress = 0
        self._arrays: dict[str, np.ndarray] = {}
        self._partial = self.path.with_name(self.path.name + ".partial")
        self._kept = self._partial / "progress.json"
        self._identity = {"rows": rows, "info": json.loads(json.dumps(self.info))}

    def __enter__(self) -> Self:
        if self.path.exists():
            raise InputError(f"{self.path}: exists already; choose another name or remove it")
        claim(self._partial, f"it is collecting {self.path.name}; wait for it")
        kept = read_json(self._kept) if self._kept.exists() else {}
        if kept and kept.get("identity") == self._identity:
            self.progress = int(kept["progress"])
        else:
            for left in self._partial.iterdir():  # of a killed writer
                if left.name != ".lock":
                    left.unlink()
        return self

    def create(self, key: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """A writable array of shape (rows, *shape) for `key`, its space on disk reserved."""
        file, shape = self._partial / f"{key}.npy", (self.rows, *shape)
        if self.progress:
            array = np.lib.format.open_memmap(file, "r+")
            if (array.shape, array.dtype) != (shape, np.dtype(dtype)):
                raise InputError(f"{file}: of another shape or type than is written now; remove {self._partial}")
        else:
            with writing(file):
                array = create_array(file, dtype, shape)
        self._arrays[key] = array
        return array

    def keep(self, progress: int) -> None:
        """What was written up to here is to outlive a kill; `progress` says to the next writer how much that is."""
        with writing(self._partial):
            self._flush()
            write_whole(self._kept, json.dumps({"identity": self._identity, "progress": progress}))

    def _flush(self) -> None:
        for array in self._arrays.values():
            array.flush()  # type: ignore[attr-defined]

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            if kind is None:
                self._publish()
        finally:
            self._arrays.clear()
            if self._partial.exists() and not self._kept.exists():
                shutil.rmtree(self._partial, ignore_errors=True)
            release(self._partial)

    def _publish(self) -> None:
        assert self.offsets is not None, "set writer.offsets before leaving the block"
        arrays = {**self._arrays, "offsets": np.asarray(self.offsets, np.int64)}
        # refuse to publish what load would refuse
        Episodes(dict(self._arrays), arrays["offsets"], self.info, self.path).check_finite()
        specs = {key: {"shape": list(array.shape), "dtype": str(array.dtype)} for key, array in arrays.items()}
        meta = {"format": FORMAT, "version": VERSION, "info": self.info, "arrays": specs}
        with writing(self.path):
            np.save(self._partial / "offsets.npy", arrays["offsets"])
            self._flush()
            self._kept.unlink(missing_ok=True)
            (self._partial / "meta.json").write_text(json.dumps(meta, indent=1))
            publish(self._partial, self.path)
            (self.path / ".lock").unlink()
