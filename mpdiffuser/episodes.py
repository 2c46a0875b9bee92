"""Episodes: logged experience as flat, memory-mapped arrays.

Layout of the rows of an episode of T steps (T + 1 rows):

    row            0     1     ...   T-1    T
    observations   o_0   o_1   ...   o_T-1  o_T      also frames and physics; each is stored once
    actions        a_0   a_1   ...   a_T-1  0        a_t leads from o_t to o_t+1
    rewards        r_0   r_1   ...   r_T-1  0        r_t is the reward of a_t
    terminations   0     0     ...   end?   0        also truncations

Episode e has the rows offsets[e] : offsets[e + 1] of every array. An Episodes folder has one .npy file for each array,
`offsets.npy` and `meta.json`. The writer writes `meta.json` last, so a folder without it is not a dataset.
"""

import errno
import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np

from mpdiffuser.console import progress
from mpdiffuser.errors import InputError
from mpdiffuser.files import ADVICE, claim, create_array, fingerprint, publish, read_json, release, write_whole, writing
from mpdiffuser.pictures import StoredPictures
from mpdiffuser.record import KINDS as OBSERVATIONS
from mpdiffuser.record import Record

FORMAT = "mpdiffuser-episodes"
VERSION = 3
REQUIRED = ("actions", "rewards", "terminations", "truncations")
KINDS = {  # dtype and number of dimensions of the arrays that are not observations
    "actions": ("float32", 2),
    "rewards": ("float32", 1),
    "terminations": ("bool", 1),
    "truncations": ("bool", 1),
    "costs": ("float32", 1),
    "physics": ("float64", 2),
    "offsets": ("int64", 1),
}
LONGEST = 64  # characters of an array's name
KEEP_EVERY = 2**28  # bytes of pictures between two resume points
UNREADABLE = {errno.EACCES: "change its permissions", errno.ENOMEM: ADVICE[errno.ENOMEM]}
AGAIN = "the dataset is damaged, collect it again"


@dataclass
class Episodes:
    """Logged episodes of one system.

    Args:
        arrays: name -> array of M rows. Required are `actions` (M, m) float32, `rewards` (M,) float32, `terminations`
            and `truncations` (M,) bool, and at least one array of observations: vectors (M, o) float32, usually called
            `observations`, or pictures (M, height, width, 3) uint8, usually `frames`. Optional are `costs` (M,) float32
            and `physics` (M, p) float64.
        offsets: (E + 1,) int64, the first row of each episode, then M.
        info: record of the data's origin (task, environment, quality, seeds, ...); JSON.
        path: the dataset's folder, for messages.
        numbers: (E,) indices of the episodes in the dataset; None: 0..E-1.
        record: what the observations and actions are; None: `Record.of` the arrays.

    Raises:
        InputError: if arrays are missing, differ in length or differ from the record, or an episode has no step.
    """

    arrays: dict[str, np.ndarray]
    offsets: np.ndarray
    info: dict[str, Any] = field(default_factory=dict)
    path: Path | None = None
    numbers: np.ndarray = None  # type: ignore[assignment]
    record: Record = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        where = f"{self.path}: " if self.path else ""
        missing = [key for key in REQUIRED if key not in self.arrays]
        if missing:
            raise InputError(f"{where}episodes need {', '.join(REQUIRED)}; found {sorted(self.arrays)}")
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
        if self.record is None:
            self.record = Record.of(self.arrays, offsets[1:] - 1)
        self._check_record(where)

    def _check_record(self, where: str) -> None:
        """Raise InputError unless the arrays are those of the record."""
        if not self.record.observations:
            raise InputError(f"{where}episodes need observations or frames; found {sorted(self.arrays)}")
        shapes = {name: each.shape for name, each in self.record.observations.items()}
        shapes |= {"actions": (len(self.record.actions.low),)}
        for name, shape in shapes.items():
            found = self.arrays[name].shape[1:] if name in self.arrays else None
            if found != shape:
                raise InputError(f"{where}{name}: must be of shape {shape} as the record says, found {found}")

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, key: str) -> np.ndarray:
        return self.arrays[key]

    def __contains__(self, key: str) -> bool:
        return key in self.arrays

    @property
    def lengths(self) -> np.ndarray:
        """Number of steps of each episode, (E,)."""
        return np.diff(self.offsets) - 1

    @property
    def episode_of_row(self) -> np.ndarray:
        """Index of the episode of each row, (M,)."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    @property
    def returns(self) -> np.ndarray:
        """Undiscounted return of each episode, (E,)."""
        return np.add.reduceat(np.asarray(self.arrays["rewards"], np.float64), self.offsets[:-1])

    def rows(self, episode: int) -> slice:
        """Return the rows of an episode."""
        return slice(int(self.offsets[episode]), int(self.offsets[episode + 1]))

    def select(self, episodes: np.ndarray) -> Self:
        """Return the episodes with these indices, copied into memory."""
        index = np.concatenate([np.arange(self.offsets[e], self.offsets[e + 1]) for e in episodes])
        offsets = np.concatenate([[0], np.cumsum(np.diff(self.offsets)[episodes])])
        arrays = {key: array[index] for key, array in self.arrays.items()}
        return type(self)(arrays, offsets, self.info, self.path, self.numbers[episodes], self.record)

    def check_finite(self) -> Self:
        """Return these episodes if all numbers are finite.

        Raises:
            InputError: if a number is not finite. The message names the dataset, the array, the episode and the row.
        """
        for key, array in self.arrays.items():
            if array.dtype.kind != "f":
                continue
            for first in range(0, len(array), 65_536):  # in parts, since arrays may be larger than the memory
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
        """Return 16 hex digits of the SHA-256 of the offsets and the arrays `keys`; without keys, of all arrays."""
        digest = hashlib.sha256(np.asarray(self.offsets, np.int64).tobytes())
        for key in sorted(keys or self.arrays):
            array = self.arrays[key]
            digest.update(json.dumps([key, str(array.dtype), array.shape]).encode())
            for first in range(0, len(array), 4096):
                digest.update(array[first : first + 4096].tobytes())
        return digest.hexdigest()[:16]

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Open an Episodes folder, memory-mapped.

        Raises:
            InputError: if the folder is missing, incomplete, damaged, or of another format or version.
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
        stray = sorted({file.stem for file in path.glob("[!.]*.npy")} - set(specs))
        if stray:
            raise InputError(f"{path / stray[0]}.npy: meta.json says nothing of it; {AGAIN}")
        record = Record.from_json(meta.get("record"), f"{meta_file}: record")
        kinds = {key: OBSERVATIONS[each.kind] for key, each in record.observations.items()}
        arrays = {key: _open_array(path, key, spec, kinds) for key, spec in specs.items()}
        offsets = np.array(arrays.pop("offsets"))
        return cls(arrays, offsets, info, path, record=record).check_finite()

    def save(self, path: str | Path) -> None:
        """Write an Episodes folder. The folder appears only when it is complete.

        Raises:
            InputError: as `EpisodesWriter`.
        """
        stored: dict[str, Any] = {k: v for k, v in self.arrays.items() if isinstance(v, StoredPictures)}
        with EpisodesWriter(path, len(self.arrays["actions"]), self.info, self.record, self._sources(stored)) as writer:
            for key, array in self.arrays.items():
                out = writer.create(key, array.shape[1:], array.dtype)
                if key not in stored:
                    out[:] = array
            writer.copy(stored)
            writer.offsets = self.offsets

    def _sources(self, stored: Mapping[str, StoredPictures]) -> dict[str, Any]:
        """What must be equal for a killed `save` to be resumed: the arrays, and the files of stored pictures."""
        about = {key: [list(array.shape), str(array.dtype)] for key, array in self.arrays.items()}
        return {"arrays": about, "files": {key: fingerprint(pictures.files) for key, pictures in stored.items()}}


def _check_name(key: str, where: str, remedy: str) -> None:
    """Raise InputError unless an array's name can be a file's name; it must not point to another folder."""
    if not re.fullmatch(rf"\w{{1,{LONGEST}}}", key, re.ASCII):
        raise InputError(f"{where}: {key[:80]!r} must be a name of letters, digits and _, at most {LONGEST}; {remedy}")


def _open_array(folder: Path, key: str, spec: Any, kinds: dict[str, tuple[str, int]]) -> np.ndarray:
    """Open an array; `kinds` are dtype and number of dimensions of the observations."""
    _check_name(key, f"{folder / 'meta.json'}: arrays", AGAIN)
    file = folder / f"{key}.npy"
    if not file.is_file():
        raise InputError(f"{file}: {'a link that leads nowhere' if file.is_symlink() else 'missing'}; {AGAIN}")
    try:
        array = np.lib.format.open_memmap(file, mode="r")  # unlike np.load it opens only .npy files
    except OSError as error:
        advice = UNREADABLE.get(error.errno or 0, "see whether its disk works")
        raise InputError(f"{file}: cannot be read ({error}); {advice}") from error
    except Exception as error:  # numpy's header parser raises many types of exceptions
        raise InputError(f"{file}: truncated or not a .npy file ({error}); {AGAIN}") from error
    found = {"shape": list(array.shape), "dtype": str(array.dtype)}
    if found != spec:
        raise InputError(f"{file}: holds {found}, but meta.json says {spec}; {AGAIN}")
    dtype, dimensions = (KINDS | kinds).get(key, (found["dtype"], max(array.ndim, 1)))
    if (found["dtype"], array.ndim) != (dtype, dimensions):
        raise InputError(f"{file}: holds {found}, must be {dtype} of {dimensions} dimensions; {AGAIN}")
    if array.dtype == bool and np.frombuffer(array, np.uint8).max(initial=0) > 1:
        raise InputError(f"{file}: holds bytes that are neither true nor false; {AGAIN}")
    return array


MINE = (".lock", "progress.json", "meta.json")  # files of a writer, beside its arrays


class EpisodesWriter:
    """Writes an Episodes folder under a temporary name and renames it when it is complete.

    Use it as a context manager: `create` arrays, fill them, set `offsets`. `create` reserves the disk space of an
    array, so a full disk raises an error at the start. `keep(progress)` saves a resume point: if the writer then fails
    or is killed, its arrays stay on the disk. The next writer with the same rows, info and sources gets these arrays
    from `create`, and the number `progress`.

    Args:
        path: the folder to write.
        rows: M, the number of rows of each array.
        info: see `Episodes`.
        record: see `Episodes`; None: `Record.of` the arrays.
        sources: what else the content depends on; JSON.

    Raises:
        InputError: if `path` exists, if another process writes it, or if it cannot be written. Also if there is a file
            that no writer wrote, or without sources a resume point of another content.
    """

    def __init__(
        self,
        path: str | Path,
        rows: int,
        info: Mapping[str, Any],
        record: Record | None = None,
        sources: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = Path(path)
        self.record = record
        self.rows = rows
        self.info = dict(info)
        self.offsets: np.ndarray | None = None
        self.progress = 0
        self._arrays: dict[str, np.ndarray] = {}
        self._partial = self.path.with_name(self.path.name + ".partial")
        self._kept = self._partial / "progress.json"
        self._identity = json.loads(json.dumps({"rows": rows, "info": self.info, "sources": sources}))

    def __enter__(self) -> Self:
        if self.path.exists():
            raise InputError(f"{self.path}: exists already; choose another name or remove it")
        claim(self._partial, f"it is collecting {self.path.name}; wait for it")
        try:
            self._resume()
        except BaseException:
            release(self._partial)
            raise
        return self

    def _resume(self) -> None:
        """Take over the resume point, or remove what a writer left that was killed before its first one."""
        kept = read_json(self._kept) if self._kept.exists() else {}
        names = [file.name.removesuffix(".partial") for file in self._partial.iterdir()]
        strange = [name for name in names if name not in MINE and not name.endswith(".npy")]
        other = bool(kept) and kept.get("identity") != self._identity
        copied = self._identity["sources"] is not None  # it can be copied again
        if strange or (other and not copied):
            raise InputError(
                f"{self._partial}: has a part of another dataset, or one of other options or package versions; repeat "
                "the command that began it, or remove the folder"
            )
        if kept and not other:
            self.progress = int(kept["progress"])
            return
        for left in self._partial.iterdir():
            if left.name != ".lock":
                left.unlink()

    def create(self, key: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """Return a writable array (rows, *shape) for `key`, with reserved disk space.

        Raises:
            InputError: if `key` is no file's name, the disk is full, or the resumed array has another shape or dtype.
        """
        _check_name(key, f"{self.path}: array", "rename it")
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

    def copy(self, stored: Mapping[str, StoredPictures]) -> None:
        """Read pictures into the created arrays of their names, in blocks, with resume points.

        Raises:
            InputError: if a file is damaged, or the pictures cannot be written.
        """
        begin = 0  # number of pictures in the arrays before this one
        for key, pictures in sorted(stored.items()):  # in one order, that of the writer before
            done, unsaved = min(max(self.progress - begin, 0), pictures.count), 0
            with progress(total=pictures.count, initial=done, desc=key, unit="picture") as bar:
                for rows, block in pictures.read(done):
                    self._arrays[key][rows] = block
                    done, unsaved = done + len(block), unsaved + block.nbytes
                    bar.update(len(block))
                    if unsaved >= KEEP_EVERY:
                        self.keep(begin + done)
                        unsaved = 0
            begin += pictures.count

    def keep(self, progress: int) -> None:
        """Save a resume point: write the arrays to the disk, and the number `progress` for the next writer."""
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
        # checks that `load` would accept the folder
        whole = Episodes(dict(self._arrays), arrays["offsets"], self.info, self.path, record=self.record)  # type: ignore[arg-type]
        record = whole.check_finite().record.to_json()
        specs = {key: {"shape": list(array.shape), "dtype": str(array.dtype)} for key, array in arrays.items()}
        meta = {"format": FORMAT, "version": VERSION, "info": self.info, "record": record, "arrays": specs}
        with writing(self.path):
            np.save(self._partial / "offsets.npy", arrays["offsets"])
            self._flush()
            self._kept.unlink(missing_ok=True)
            (self._partial / "meta.json").write_text(json.dumps(meta, indent=1))
            publish(self._partial, self.path)
            (self.path / ".lock").unlink()
