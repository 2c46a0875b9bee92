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

import errno
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np

from mpdiffuser.errors import InputError

FORMAT = "mpdiffuser-episodes"
VERSION = 1
REQUIRED = ("actions", "rewards", "terminations", "truncations")


@dataclass
class Episodes:
    """Logged episodes of one system.

    Args:
        arrays: name -> array of M rows. Always `actions` (M, m) float32, `rewards` (M,) float32, `terminations` and
            `truncations` (M,) bool, and at least one of `observations` (M, o) float32 and `frames`
            (M, height, width, 3) uint8; where known also `costs` (M,) float32 and `physics` (M, p) float64.
        offsets: (E + 1,) int64, first row of each episode, then M.
        info: JSON-able facts about the origin (task, action_repeat, rendering, quality, seeds, ...).

    Raises:
        InputError: if arrays are missing, disagree in length, or an episode has no step.
    """

    arrays: dict[str, np.ndarray]
    offsets: np.ndarray
    info: dict[str, Any] = field(default_factory=dict)
    path: Path | None = None

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
        return type(self)({key: array[index] for key, array in self.arrays.items()}, offsets, self.info, self.path)

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
        try:
            meta = json.loads(meta_file.read_text())
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise InputError(f"{meta_file}: not readable as JSON ({error})") from error
        if not isinstance(meta, dict) or meta.get("format") != FORMAT:
            raise InputError(f"{meta_file}: field 'format' must be {FORMAT!r}; this is not a dataset of ours")
        if meta.get("version") != VERSION:
            raise InputError(
                f"{meta_file}: version {meta.get('version')!r} found, this program reads version {VERSION}"
            )
        arrays = {key: _open_array(path / f"{key}.npy", spec) for key, spec in meta["arrays"].items()}
        offsets = np.asarray(arrays.pop("offsets"))
        return cls(arrays, offsets, meta["info"], path)

    def save(self, path: str | Path) -> None:
        """Write a folder that `load` opens; it appears whole or not at all."""
        with EpisodesWriter(path, len(self.arrays["actions"]), self.info) as writer:
            for key, array in self.arrays.items():
                writer.create(key, array.shape[1:], array.dtype)[:] = array
            writer.offsets = self.offsets


def _open_array(file: Path, spec: Mapping[str, Any]) -> np.ndarray:
    try:
        array = np.lib.format.open_memmap(file, mode="r")  # unlike np.load it opens nothing but .npy
    except FileNotFoundError as error:
        raise InputError(f"{file}: missing; the dataset is damaged, collect it again") from error
    except (ValueError, EOFError, OSError) as error:
        raise InputError(f"{file}: truncated or not a .npy file ({error}); collect the dataset again") from error
    found = {"shape": list(array.shape), "dtype": str(array.dtype)}
    if found != dict(spec):
        raise InputError(f"{file}: holds {found}, but meta.json says {dict(spec)}; collect the dataset again")
    return array


class EpisodesWriter:
    """Writes an Episodes folder under a temporary name and renames it when it is whole.

    Use as a context manager: `create` arrays, fill them, set `offsets`. Disk space is reserved when an array is
    created, so a full disk is an error at the start and not a crash in the middle.

    Raises:
        InputError: if `path` exists already, or the disk is too full.
    """

    def __init__(self, path: str | Path, rows: int, info: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.rows = rows
        self.info = dict(info)
        self.offsets: np.ndarray | None = None
        self._arrays: dict[str, np.ndarray] = {}
        self._partial = self.path.with_name(self.path.name + ".partial")

    def __enter__(self) -> Self:
        if self.path.exists():
            raise InputError(f"{self.path}: exists already; choose another name or remove it")
        if self._partial.exists():  # left by a killed writer
            shutil.rmtree(self._partial)
        self._partial.mkdir(parents=True)
        return self

    def create(self, key: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """A writable array of shape (rows, *shape) for `key`, its space on disk reserved."""
        file = self._partial / f"{key}.npy"
        array = np.lib.format.open_memmap(file, "w+", np.dtype(dtype), (self.rows, *shape))
        try:
            with open(file, "r+b") as handle:
                # without this a full disk shows up as SIGBUS at some later write
                os.posix_fallocate(handle.fileno(), 0, os.fstat(handle.fileno()).st_size)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            free = shutil.disk_usage(self._partial).free
            raise InputError(
                f"{self.path}: no space for {key}: {array.nbytes / 1e9:.3f} GB needed, {free / 1e9:.3f} GB free; "
                "free some space or set data_root="
            ) from error
        self._arrays[key] = array
        return array

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if kind is not None:
            self._arrays.clear()
            shutil.rmtree(self._partial, ignore_errors=True)
            return
        assert self.offsets is not None, "set writer.offsets before leaving the block"
        arrays = {**self._arrays, "offsets": np.asarray(self.offsets, np.int64)}
        Episodes(
            dict(self._arrays), arrays["offsets"], self.info, self.path
        )  # refuse to publish what load would refuse
        np.save(self._partial / "offsets.npy", arrays["offsets"])
        for array in self._arrays.values():
            array.flush()  # type: ignore[attr-defined]
        specs = {key: {"shape": list(array.shape), "dtype": str(array.dtype)} for key, array in arrays.items()}
        meta = {"format": FORMAT, "version": VERSION, "info": self.info, "arrays": specs}
        (self._partial / "meta.json").write_text(json.dumps(meta, indent=1))
        self._partial.rename(self.path)
