"""D4RL and DSRL files: flat HDF5 arrays with a row a transition.

Layout of a file with N transitions (the format of both):

    observations (N, o)   actions (N, a)   rewards (N,)   terminals (N,)   timeouts (N,)     (N, 1) also occurs
    optional: next_observations (N, o), costs (N,); anything else (infos/..., metadata/...) is not read

An episode ends where terminals or timeouts is set; without timeouts, after the task's time limit; at the end of the
file. `Episodes` want one row more than steps, the observation an episode ends with, which such a file holds only where
it has next_observations. Without them:

    ended by a termination   the last transition is kept, since it tells what ends an episode; the final observation is
                             extrapolated, o_T = 2 o_{T-1} - o_{T-2}, and info["final_observations"] says so
    ended otherwise          the last transition is dropped and its observation is the final one
"""

from pathlib import Path
from typing import Any

import h5py
import numpy as np

from mpdiffuser.episodes import Episodes
from mpdiffuser.errors import InputError

WIDE = ("observations", "next_observations", "actions")
NARROW = ("rewards", "terminals", "timeouts", "costs")
REQUIRED = ("observations", "actions", "rewards", "terminals")


def read_flat_hdf5(file: str | Path, time_limit: int | None = None, info: dict[str, Any] | None = None) -> Episodes:
    """Read a D4RL or DSRL file.

    Args:
        time_limit: steps after which an episode ends where the file has no timeouts.
        info: kept in the episodes.

    Raises:
        InputError: for a file that is missing, damaged, or not of this layout; names the file, the key, what was found
            and what was expected.
    """
    file = Path(file)
    arrays = _load(file)
    ends = _episode_ends(file, arrays, time_limit)
    starts = np.concatenate([[0], ends[:-1] + 1])
    terminated = arrays["terminals"][ends]
    following = "next_observations" in arrays
    steps = ends - starts + (following | terminated)
    keep = np.flatnonzero(steps > 0)  # an unfinished episode of one row holds no step
    if not len(keep):
        raise InputError(f"{file}: terminals, timeouts: no episode with a step in {len(arrays['rewards'])} rows")
    starts, steps, terminated = starts[keep], steps[keep], terminated[keep]
    offsets = np.concatenate([[0], np.cumsum(steps + 1)])
    lasts = offsets[1:] - 1  # rows of the final observations
    source = np.repeat(starts - offsets[:-1], steps + 1) + np.arange(offsets[-1])
    source[lasts] = np.minimum(source[lasts], len(arrays["rewards"]) - 1)
    kept = [key for key in ("observations", "actions", "rewards", "costs") if key in arrays]
    out: dict[str, np.ndarray] = {key: arrays[key][source] for key in kept}
    for key in set(out) - {"observations"}:
        out[key][lasts] = 0
    out["terminations"], out["truncations"] = (np.zeros(offsets[-1], bool) for _ in range(2))
    out["terminations"][lasts - 1], out["truncations"][lasts - 1] = terminated, ~terminated
    if following:
        out["observations"][lasts] = arrays["next_observations"][starts + steps - 1]
    else:
        before = np.maximum(lasts - 2, offsets[:-1])
        ahead = 2 * out["observations"][lasts - 1] - out["observations"][before]
        out["observations"][lasts[terminated]] = ahead[terminated]
    note = {} if following or not terminated.any() else {"final_observations": "extrapolated where terminated"}
    return Episodes(out, offsets, {"file": file.name, **(info or {}), **note}, file)


def _load(file: Path) -> dict[str, np.ndarray]:
    """The arrays of a file, checked: float32 (N, o), (N, a), (N,), and bool flags (N,)."""
    if not file.is_file():
        raise InputError(f"{file}: no such file")
    try:
        with h5py.File(file, "r") as data:
            missing = [key for key in REQUIRED if key not in data]
            if missing:
                raise InputError(
                    f"{file}: {missing[0]}: no such key; expected {', '.join(REQUIRED)}, found {list(data)}"
                )
            return _checked(file, data)
    except OSError as error:
        raise InputError(f"{file}: damaged, or not an HDF5 file ({error}); get it again") from error


def _checked(file: Path, data: h5py.File) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    rows = None
    for key in (key for key in (*WIDE, *NARROW) if key in data):
        entry = data[key]
        if not isinstance(entry, h5py.Dataset) or entry.dtype.kind not in "fiub":
            raise InputError(f"{file}: {key}: must be an array of numbers, found {entry}")
        rows = entry.shape[0] if rows is None and entry.shape else rows
        fits = entry.ndim == 2 if key in WIDE else entry.shape in ((rows,), (rows, 1))
        if not fits or entry.shape[0] != rows:
            wanted = f"({rows}, dimensions)" if key in WIDE else f"({rows},) or ({rows}, 1)"
            raise InputError(f"{file}: {key}: must have shape {wanted}, found {entry.shape}")
        if entry.nbytes > 64 * max(file.stat().st_size, 2**20):
            raise InputError(f"{file}: {key}: claims {entry.nbytes:,} bytes, the file has {file.stat().st_size:,}")
        values = entry[()] if key in WIDE else entry[()].reshape(-1)
        arrays[key] = values.astype(bool) if key in ("terminals", "timeouts") else values.astype(np.float32, copy=False)
        finite = np.isfinite(arrays[key]).reshape(len(values), -1).all(1) if len(values) else np.ones(0, bool)
        if not finite.all():
            row = int(np.argmin(finite))
            raise InputError(f"{file}: {key}: must be finite, found {arrays[key][row]} in row {row}")
    if not rows:
        raise InputError(f"{file}: observations: no transition in it (0 rows)")
    if "next_observations" in arrays and arrays["next_observations"].shape != arrays["observations"].shape:
        found = [arrays[key].shape for key in ("observations", "next_observations")]
        raise InputError(f"{file}: next_observations: must have the shape of observations {found[0]}, found {found[1]}")
    return arrays


def _episode_ends(file: Path, arrays: dict[str, np.ndarray], time_limit: int | None) -> np.ndarray:
    """The last row of each episode."""
    ended, rows = arrays["terminals"].copy(), len(arrays["terminals"])
    if "timeouts" in arrays:
        ended |= arrays["timeouts"]
    elif time_limit is None:
        raise InputError(f"{file}: timeouts: no such key, and no time limit is known for this task; give one")
    else:  # count from each termination on
        since = np.arange(rows)
        begins = np.unique(np.concatenate([[0], np.flatnonzero(ended) + 1])).astype(int)
        begins = begins[begins < rows]
        first = begins[np.searchsorted(begins, since, "right") - 1]
        ended |= (since - first + 1) % time_limit == 0
    ended[-1] = True
    return np.flatnonzero(ended)
