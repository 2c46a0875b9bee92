"""Flat files, HDF5 or npz, one row for each transition: D4RL, DSRL, and a user's own recordings.

Layout of a file with N transitions, episode after episode:

    observations (N, o) and/or frames (N, height, width, 3) uint8       before the action
    actions (N, m)   rewards (N,)   terminals (N,)   timeouts (N,)      (N, 1) is accepted too
    optional: next_observations, next_frames, costs (N,); anything else (infos/..., metadata/...) is not read

Gymnasium's names `terminations` and `truncations` are accepted for terminals and timeouts. A recording of your own:

    np.savez("walk.npz", observations=..., actions=..., rewards=..., terminations=..., truncations=...)

An episode ends where terminals or timeouts is set, without timeouts also after the task's time limit, and at the end of
the file. `Episodes` need the final observation of each episode too, which a file holds only in next_observations.
Without them:

    after a termination      the last transition is kept, as it shows what ends an episode; the final observation is
                             extrapolated, o_T = 2 o_{T-1} - o_{T-2}, the final frame repeats the last one, and
                             info["final_observations"] says so
    after any other end      the last transition is dropped, and its observation is the final one
"""

from pathlib import Path
from typing import Any

import numpy as np

from envs.datasets.readers.arrays import Entry, open_arrays, read_array, require
from mpdiffuser.episodes import Episodes
from mpdiffuser.errors import InputError

REQUIRED = ("actions", "rewards", "terminals")
OPTIONAL = ("timeouts", "next_observations")
ALIASES = {"terminations": "terminals", "truncations": "timeouts"}


def read_flat(file: str | Path, time_limit: int | None = None, info: dict[str, Any] | None = None) -> Episodes:
    """Read a flat file.

    Args:
        time_limit: steps after which an episode ends, if the file has no timeouts.
        info: put into the episodes' info.

    Raises:
        InputError: for a file that is missing, damaged, or not of this layout; names the file, the key, what was found
            and what was expected.
    """
    file = Path(file)
    with open_arrays(file) as entries:
        reader = _Reader(file, entries)
        following = all(f"next_{key}" in reader.entries for key in reader.seen)
        terminals = reader.read("terminals")
        timeouts = reader.read("timeouts") if "timeouts" in reader.entries else None
        if timeouts is None and time_limit is None:
            raise InputError(f"{file}: timeouts: no such key; expected, because no time limit is known for these data")
        starts, steps, terminated = split(terminals, timeouts, time_limit, following)
        if not len(steps):
            raise InputError(f"{file}: terminals, timeouts: no episode with a step in {len(terminals)} rows")
        offsets = np.concatenate([[0], np.cumsum(steps + 1)])
        lasts = offsets[1:] - 1  # rows of the final observations
        source = np.repeat(starts - offsets[:-1], steps + 1) + np.arange(offsets[-1])
        source[lasts] = np.minimum(source[lasts], reader.rows - 1)
        out: dict[str, np.ndarray] = {}
        for key in (*reader.seen, *(key for key in ("actions", "rewards", "costs") if key in reader.entries)):
            out[key] = reader.read(key)[source]
            if key not in reader.seen:
                out[key][lasts] = 0
            elif following:
                out[key][lasts] = reader.read(f"next_{key}")[starts + steps - 1]
            else:
                _extrapolate(out[key], lasts[terminated], np.maximum(lasts - 2, offsets[:-1])[terminated])
    out["terminations"], out["truncations"] = (np.zeros(offsets[-1], bool) for _ in range(2))
    out["terminations"][lasts - 1], out["truncations"][lasts - 1] = terminated, ~terminated
    notes: dict[str, Any] = {"file": file.name, "missing": [key for key in OPTIONAL if key not in reader.entries]}
    if not following and terminated.any():
        notes["final_observations"] = "extrapolated where terminated"
    return Episodes(out, offsets, notes | (info or {}), file)


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


def _extrapolate(array: np.ndarray, rows: np.ndarray, before: np.ndarray) -> None:
    """Fill each row with the linear extrapolation of the two rows before it; a picture repeats the one before it.

    Args:
        before: the row two steps back, or one step back in an episode of one step.
    """
    array[rows] = array[rows - 1] if array.dtype == np.uint8 else 2 * array[rows - 1] - array[before]


class _Reader:
    """The arrays of a flat file by D4RL's names; `read` checks their shapes and types."""

    def __init__(self, file: Path, entries: dict[str, Entry]) -> None:
        self.file = file
        self.entries = {ALIASES.get(key, key): entry for key, entry in entries.items()}
        self.seen = [key for key in ("observations", "frames") if key in self.entries]
        require(file, self.entries, REQUIRED if self.seen else ("observations", *REQUIRED))
        self.rows = self.entries["rewards"].shape[0] if self.entries["rewards"].shape else 0
        if not self.rows:
            raise InputError(
                f"{file}: rewards: must have one row for each transition, found shape {self.entries['rewards'].shape}"
            )

    def read(self, key: str) -> np.ndarray:
        """float32 (N, o), (N, a), (N,); bool flags (N,); uint8 frames (N, height, width, 3)."""
        entry, base = self.entries[key], key.removeprefix("next_")
        if base == "frames":
            size = self.entries["frames"].shape[1:3] if key != base else (None, None)
            return read_array(self.file, key, entry, np.uint8, (self.rows, *size, 3), cast=False)
        if base in ("terminals", "timeouts", "rewards", "costs"):
            kind = bool if base in ("terminals", "timeouts") else np.float32
            return read_array(self.file, key, entry, kind, (self.rows,))
        width = self.entries[base].shape[1] if key != base else None
        return read_array(self.file, key, entry, np.float32, (self.rows, width))
