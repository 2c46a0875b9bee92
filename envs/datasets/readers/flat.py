"""Flat files, HDF5 or npz, one row for each transition: D4RL, DSRL, OGBench, and a user's own recordings.

Layout of a file with N transitions, episode after episode:

    observations (N, o) and/or frames (N, height, width, 3) uint8       before the action; other arrays of pictures
                                                                        are further cameras
    actions (N, m)   rewards (N,)   terminals (N,)   timeouts (N,)      (N, 1) is accepted too
    optional: next_observations, next_frames, ..., costs (N,), action_low (m,), action_high (m,)

action_low and action_high declare the bounds of actions, in their own units. Without them the bounds are the range of
the data. decision_seconds, one number, is the time from a row to the next.

Pictures may also be called `observations`. Gymnasium's names `terminations` and `truncations` are accepted for
terminals and timeouts. A recording of your own:

    np.savez("walk.npz", observations=..., actions=..., rewards=..., terminations=..., truncations=...)

Everything else (infos/..., metadata/..., qpos) is not read; info["left_out"] lists it. Without rewards they are 0, and
info["missing"] has "rewards". A file of OGBench has neither rewards nor timeouts: its `terminals` mark the last row of
each episode, and no episode terminates.

An episode ends where terminals or timeouts is set, without timeouts also after the task's time limit, and at the end of
the file. `Episodes` need the final observation of each episode too, which a file holds only in next_observations.
Without them:

    after a termination      the last transition is kept, as it shows what ends an episode; the final observation is
                             extrapolated, o_T = 2 o_{T-1} - o_{T-2}, the final picture repeats the last one, and
                             info["final_observations"] says so
    after any other end      the last transition is no step: its observation is the final one, its action is left out,
                             and its reward and cost are added to those of the step before

Rows that no step uses may hold anything. info["notes"] tells in words what else a user should know.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from envs.datasets.readers.arrays import Entries, Entry, open_arrays, read_array, require
from envs.datasets.readers.pictures import array_source, camera_names, check_pictures
from mpdiffuser.episodes import Episodes
from mpdiffuser.errors import InputError
from mpdiffuser.pictures import StoredPictures
from mpdiffuser.record import DECLARED, Actions

REQUIRED = ("actions",)
ALIASES = {"terminations": "terminals", "truncations": "timeouts"}
UNUSED = "no array of this layout (envs/datasets/readers/flat.py)"
BOUNDS = ("action_low", "action_high")
SECONDS = "decision_seconds"
VECTORS = ("observations", "actions", "rewards", "costs", "terminals", "timeouts", *BOUNDS)
PICTURES = "pictures (N, height, width, 3) uint8, 0 to 255"
PART = 2**12  # rows compared at once


class NoStep(InputError):
    """No episode of a file has a step."""


def read_flat(
    file: str | Path,
    time_limit: int | None = None,
    info: dict[str, Any] | None = None,
    keys: Mapping[str, str] | None = None,
) -> Episodes:
    """Read a flat file.

    Args:
        time_limit: steps after which an episode ends, if the file has no timeouts.
        info: put into the episodes' info.
        keys: name of this layout -> name in the file, for arrays of other names.

    Raises:
        InputError: for a file that is missing, damaged, or not of this layout; names the file, the key, what was found
            and what was expected. NoStep, if no episode has a step.
    """
    file = Path(file)
    with open_arrays(file) as entries:
        reader = _Reader(file, entries, keys or {})
        following = all(f"next_{key}" in reader.entries for key in reader.seen)
        terminals, timeouts = reader.marks(time_limit)
        starts, steps, terminated = split(terminals, timeouts, time_limit, following)
        if not len(steps):
            raise NoStep(f"{file}: terminals, timeouts: no episode with a step in {len(terminals)} rows")
        out, offsets = reader.arrays(starts, steps, terminated, following)
        bounds, seconds = reader.bounds(out["actions"].shape[1]), reader.seconds()
    lasts = offsets[1:] - 1
    out["terminations"], out["truncations"] = (np.zeros(offsets[-1], bool) for _ in range(2))
    out["terminations"][lasts - 1], out["truncations"][lasts - 1] = terminated, ~terminated
    missing = [key for key in ("rewards", "timeouts") if key not in reader.names]
    missing += [] if following else ["next_observations"]
    notes: dict[str, Any] = {"file": file.name, "missing": missing, "left_out": reader.left_out()} | seconds
    if reader.notes:
        notes["notes"] = list(reader.notes.values())
    if not following and terminated.any():
        notes["final_observations"] = "extrapolated where terminated"
    episodes = Episodes(out, offsets, notes | (info or {}), file)
    return episodes if bounds is None else replace(episodes, record=episodes.record.with_actions(bounds))


def split(
    terminals: np.ndarray, timeouts: np.ndarray | None, time_limit: int | None, following: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First row, number of steps, and whether it terminated, (E,) each, of the episodes in N transitions.

    Args:
        terminals, timeouts: (N,) bool; time_limit is used if there are no timeouts.
        following: whether the observation after an episode's last transition is known. If it is not, the last
            transition of an episode that did not terminate is no step. Episodes without a step are left out.
    """
    ended = terminals.copy()
    if timeouts is not None:
        ended |= timeouts
    elif time_limit:
        begins = np.concatenate([[0], np.flatnonzero(ended[:-1]) + 1])
        since = np.arange(len(ended)) - np.repeat(begins, np.diff(np.append(begins, len(ended))))
        ended |= (since + 1) % time_limit == 0
    ended[-1] = True
    ends = np.flatnonzero(ended)
    starts = np.concatenate([[0], ends[:-1] + 1])
    steps = ends - starts + (following | terminals[ends])
    keep = steps > 0
    return starts[keep], steps[keep], terminals[ends][keep]


def _like_pictures(entry: Entry) -> bool:
    """Whether an array may be meant for pictures."""
    return len(entry.shape) == 4 and bool({1, 3, 4} & {entry.shape[1], entry.shape[3]})


class _Reader:
    """The arrays of a flat file by D4RL's names; `read` checks their shapes and types."""

    def __init__(self, file: Path, entries: Entries, keys: Mapping[str, str]) -> None:
        self.file, self.stored = file, entries
        renamed = {ALIASES.get(key, key): name for key, name in keys.items()}
        for key, name in keys.items():
            if name not in entries:
                raise InputError(f"keys.{key}={name}: {file}: no such array; found {sorted(entries)}")
        self.names = {ALIASES.get(key, key): key for key in entries if key not in renamed.values()}
        self.names |= renamed  # D4RL's name -> the file's
        self.notes: dict[str, str] = {}
        self.read_names: set[str] = set()
        self._pictures_called_observations()
        self.cameras = self._cameras()
        self.seen = [*self.cameras, *(["observations"] if "observations" in self.names else [])]
        if not self.seen:
            self._refuse_without_observations()
        require(file, self.entries, REQUIRED)
        if not {"terminals", "timeouts"} & set(self.names):
            raise InputError(
                f"{file}: truncations: no such key; expected truncations (N,), which mark the last row of each "
                f"recording, or D4RL's timeouts, or OGBench's terminals; found {sorted(entries)}"
            )
        counted = next(key for key in ("rewards", "terminals", "timeouts") if key in self.names)
        entry = self.entries[counted]
        self.rows = (entry.shape or (0,))[0]
        if not self.rows:
            found = entry.refused or f"must have one row for each transition, found shape {entry.shape}"
            raise InputError(f"{file}: {self.names[counted]}: {found}")
        for other, key in ALIASES.items():
            if other in entries and key in entries and not np.array_equal(self._flags(other), self._flags(key)):
                raise InputError(f"{file}: {other}: must mark the same rows as {key}; leave out the wrong one")

    @property
    def entries(self) -> dict[str, Entry]:
        return {key: self.stored[name] for key, name in self.names.items()}

    def _pictures_called_observations(self) -> None:
        entry = self.stored.get("observations")
        if entry and "frames" not in self.names and entry.dtype == np.uint8 and len(entry.shape) == 4:
            for prefix in ("", "next_"):
                if f"{prefix}observations" in self.names:
                    self.names[f"{prefix}frames"] = self.names.pop(f"{prefix}observations")

    def _cameras(self) -> list[str]:
        """The names of the arrays of pictures, and of theirs in `names`: see `camera_names`."""
        found = [key for key in self.names if self._is_camera(key)]
        renamed = camera_names(found, taken=set(self.names) - set(found))
        for key, name in renamed.items():
            for prefix in ("", "next_"):
                if f"{prefix}{key}" in self.names:
                    self.names[f"{prefix}{name}"] = self.names.pop(f"{prefix}{key}")
        return list(renamed.values())

    def _is_camera(self, key: str) -> bool:
        """Whether an array has pictures; `frames` are always taken for pictures, and checked when they are read."""
        entry = self.entries[key]
        pictures = entry.dtype == np.uint8 and len(entry.shape) == 4 and entry.shape[3] == 3
        return key == "frames" or (pictures and key not in VECTORS and "/" not in key and not key.startswith("next_"))

    def _refuse_without_observations(self) -> None:
        entries = self.entries
        near = next((key for key, entry in entries.items() if _like_pictures(entry)), None)
        found = f"{near}: found {entries[near].dtype} of shape {entries[near].shape}" if near else (
            f"observations: no such key; found {sorted(self.stored)}")  # fmt: skip
        raise InputError(
            f"{self.file}: {found}; expected observations (N, o), or {PICTURES}; keys.observations=NAME takes an array "
            "of another name for observations"
        )

    def _flags(self, name: str) -> np.ndarray:
        self.read_names.add(name)
        return read_array(self.file, name, self.stored[name], bool, (self.rows,))

    def marks(self, time_limit: int | None) -> tuple[np.ndarray, np.ndarray | None]:
        """terminals and timeouts, (N,) bool; no timeouts: the time limit tells where episodes end."""
        if "timeouts" in self.names:
            timeouts = self.read("timeouts")
            return self.read("terminals") if "terminals" in self.names else np.zeros_like(timeouts), timeouts
        terminals = self.read("terminals")
        if "rewards" not in self.names and self.names["terminals"] == "terminals":
            self.notes["terminals"] = (
                "terminals are taken for the last rows of episodes that did not terminate, as in OGBench, "
                "since there are neither rewards nor timeouts"
            )
            return np.zeros_like(terminals), terminals
        if time_limit is None:
            raise InputError(
                f"{self.file}: truncations: no such key; expected truncations (N,), which mark the last row of each "
                "recording that did not terminate, or D4RL's timeouts; if every recording terminates they are all False"
            )
        return terminals, None

    def arrays(
        self, starts: np.ndarray, steps: np.ndarray, terminated: np.ndarray, following: bool
    ) -> tuple[dict[str, Any], np.ndarray]:
        """The arrays of `Episodes` but for the marks, and their offsets. The arguments are as `split` returns them."""
        offsets = np.concatenate([[0], np.cumsum(steps + 1)])
        lasts = offsets[1:] - 1  # rows of the final observations
        source = np.repeat(starts - offsets[:-1], steps + 1) + np.arange(offsets[-1])
        source[lasts] = np.minimum(source[lasts], self.rows - 1)
        if not following:  # no row shows what followed a termination: pictures repeat the last one
            source[lasts[terminated]] = source[lasts[terminated] - 1]
        taken = np.zeros(self.rows, bool)  # rows whose action is a step
        taken[np.delete(source, lasts)] = True
        dropped = (starts + steps)[~terminated] if not following else np.zeros(0, int)  # last rows that are no step
        seen = taken.copy()
        seen[dropped] = True
        self._note_of_rows_left_out(seen)
        out: dict[str, Any] = {}
        ends = starts + steps - 1 if following else None  # rows whose next_ arrays have the final observations
        for key in self.cameras:
            out[key] = self.pictures(key, source, lasts, ends, taken)
        for key in (key for key in ("observations", "actions", "rewards", "costs") if key in self.names):
            values = self.read(key, seen if key in self.seen else taken)
            out[key] = values[source]
            if key not in self.seen:
                out[key][lasts] = 0
                if key != "actions":
                    out[key][lasts[~terminated] - 1] += values[dropped] if len(dropped) else np.float32(0)
                    self._note_of_sums(key, values[dropped])
            elif following:
                used = np.zeros(self.rows, bool)
                used[ends] = True
                after = self.read(f"next_{key}", used)
                self._note_of_order(key, after, values, taken & ~used)
                out[key][lasts] = after[used]
            else:  # one step back in an episode of one step
                rows, before = lasts[terminated], np.maximum(lasts - 2, offsets[:-1])[terminated]
                out[key][rows] = 2 * out[key][rows - 1] - out[key][before]
        out.setdefault("rewards", np.zeros(offsets[-1], np.float32))
        return out, offsets

    def pictures(
        self, key: str, source: np.ndarray, lasts: np.ndarray, ends: np.ndarray | None, taken: np.ndarray
    ) -> StoredPictures:
        """The pictures of all rows.

        Args:
            source: (M,), the file's row of each row.
            lasts: (E,), the rows of final observations.
            ends: (E,), the file's rows whose next_ arrays have the final observations; None: `source` has them.
            taken: (N,) bool, the file's rows whose action is a step.
        """
        names = [self.names[name] for name in (key, f"next_{key}") if name in self.names][: 1 if ends is None else 2]
        shape: tuple[int | None, ...] = (self.rows, None, None, 3)
        for name in names:
            check_pictures(self.file, name, self.stored[name], shape)
            self.read_names.add(name)
            shape = self.stored[names[0]].shape
        rows, whole = np.arange(len(source)), (len(source), *self.stored[names[0]].shape[1:])
        if ends is None:
            return StoredPictures(whole, [array_source(self.file, names[0], rows, source)], [self.file])
        now, after = (next(self.stored[name].blocks(0)) for name in names)
        inner = taken[: min(len(now) - 1, len(after))].copy()
        inner[ends[ends < len(inner)]] = False
        self._note_of_order(key, after, now, inner)
        inside = np.delete(rows, lasts)
        sources = [(names[0], inside, source[inside]), (names[1], lasts, ends)]
        return StoredPictures(whole, [array_source(self.file, *each) for each in sources], [self.file])

    def _note_of_rows_left_out(self, seen: np.ndarray) -> None:
        alone = int((~seen).sum())
        if alone:
            self.notes["rows"] = (
                f"{alone:,} episodes of one row are left out, with their rewards: they have no step, "
                "as no next_observations are there"
            )

    def _note_of_sums(self, key: str, values: np.ndarray) -> None:
        if values.any():
            self.notes[f"last {key}"] = (
                f"{key}: {np.count_nonzero(values):,} last rows of episodes are added to the step before, "
                f"{values.sum(dtype=np.float64):.6g} in all: without next_observations these rows are no steps"
            )

    def _note_of_order(self, key: str, after: np.ndarray, now: np.ndarray, inner: np.ndarray) -> None:
        rows, differ = np.flatnonzero(inner), 0  # of steps that are not an episode's last
        for first in range(0, len(rows), PART):
            some = rows[first : first + PART]
            differ += int((now[some + 1] != after[some]).reshape(len(some), -1).any(1).sum())
        if 2 * differ > len(rows):
            self.notes[f"order of {key}"] = (
                f"next_{key} differ from the {key} of the next row in {differ:,} of {len(rows):,} rows within "
                "episodes: are the rows in the order of time? only those after last steps are used"
            )

    def bounds(self, width: int) -> Actions | None:
        """The declared bounds of the actions, if the file has them."""
        ends = [key for key in BOUNDS if key in self.names]
        if not ends:
            return None
        require(self.file, self.entries, BOUNDS)
        self.read_names |= {self.names[key] for key in BOUNDS}
        low, high = (read_array(self.file, key, self.entries[key], np.float32, (width,)) for key in BOUNDS)
        if (low > high).any():
            number = int(np.argmax(low > high))
            raise InputError(f"{self.file}: action_low: must be at most action_high, found {low[number]} in {number}")
        return Actions(tuple(low.astype(float).tolist()), tuple(high.astype(float).tolist()), DECLARED)

    def seconds(self) -> dict[str, float]:
        """The declared seconds a decision, if the file has them."""
        if SECONDS not in self.names:
            return {}
        self.read_names.add(self.names[SECONDS])
        entry = self.entries[SECONDS]
        found = read_array(self.file, SECONDS, replace(entry, shape=entry.shape or (1,)), np.float64, (1,))
        if not 0 < found[0] < 1e6:
            raise InputError(f"{self.file}: {SECONDS}: must be a positive number, found {found[0]}")
        return {SECONDS: round(float(found[0]), 9)}

    def left_out(self) -> dict[str, str]:
        """Arrays and groups that are not read -> why."""
        told = self.stored.left_out(self.read_names, UNUSED)
        for name in told:
            if name in self.stored and not self.stored[name].refused and _like_pictures(self.stored[name]):
                told[name] = f"{self.stored[name].dtype} of shape {self.stored[name].shape}; expected {PICTURES}"
        return told

    def read(self, key: str, used: np.ndarray | None = None) -> np.ndarray:
        """float32 (N, o), (N, a), (N,); bool flags (N,). used: see `read_array`."""
        entry, base, name = self.entries[key], key.removeprefix("next_"), self.names[key]
        self.read_names.add(name)
        if base in ("terminals", "timeouts"):
            return self._flags(name)
        if base in ("rewards", "costs"):
            return read_array(self.file, name, entry, np.float32, (self.rows,), used=used, notes=self.notes)
        width = self.entries[base].shape[1] if key != base else None
        return read_array(self.file, name, entry, np.float32, (self.rows, width), used=used, notes=self.notes)
