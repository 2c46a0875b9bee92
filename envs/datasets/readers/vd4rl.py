"""V-D4RL (Lu et al. 2023): DeepMind Control from pixels, in two layouts.

    64px   a folder of *.npz, one episode in each: image (T + 1, 64, 64, 3) uint8, action (T + 1, m), reward (T + 1,),
           is_terminal (T + 1,); discount, is_first, is_last
    84px   a folder of *.hdf5, or one of them, episode after episode: observation (N, 3, 84, 84) uint8, action (N, m),
           reward (N,), discount (N,), step_type (N,) with 0 first, 1 mid, 2 last

A row holds the action and the reward that led to its picture; in `Episodes` they move to the row before. Each action
was held for two simulator steps. V-D4RL's score is a tenth of the return.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from envs.datasets.readers.arrays import Entry, check_shape, open_arrays, read_array, require
from mpdiffuser.episodes import Episodes
from mpdiffuser.errors import InputError

KEYS = {
    ".npz": ("image", "action", "reward", "is_terminal"),
    ".hdf5": ("observation", "action", "reward", "discount", "step_type"),
}


@dataclass(frozen=True)
class _Shard:
    """A file's flags, (n,) bool: which rows begin an episode, which are terminal; size: (height, width)."""

    file: Path
    firsts: np.ndarray
    terminal: np.ndarray
    size: tuple[int, ...]
    action_dim: int


def read_vd4rl(source: str | Path, info: dict[str, Any] | None = None) -> Episodes:
    """Read a folder of V-D4RL, or one file of it, into memory; prints what was read.

    Files whose pictures and flags differ in number are skipped, and their names printed; some public files are such.

    Raises:
        InputError: naming file, key, what was found and what was expected; or if no file is left.
    """
    source = Path(source)
    files = [source] if source.is_file() else sorted(source.glob("*.npz")) or sorted(source.glob("*.hdf5"))
    found = [_examine(file) for file in files]
    shards = [shard for shard in found if isinstance(shard, _Shard)]
    skipped = [reason for reason in found if isinstance(reason, str)]
    print("".join(f"skipped {reason}\n" for reason in skipped), end="")
    if not shards:
        raise InputError(f"{source}: image, observation: no episode to read; expected *.npz or *.hdf5 of V-D4RL, "
                         f"found {len(files)}, of which skipped {len(skipped)}")  # fmt: skip
    episodes = _joined(source, shards, info or {})
    size = "x".join(map(str, shards[0].size))
    print(f"V-D4RL: {len(shards)} files, {len(episodes)} episodes, {episodes.lengths.sum():,} steps, {size} px")
    return episodes


def _examine(file: Path) -> _Shard | str:
    """The flags of a file, or the reason for which it is skipped."""
    with open_arrays(file) as entries:
        keys = _keys(file, entries)
        require(file, entries, keys)
        rows, pictures = (entries[key].shape[:1] for key in ("reward", keys[0]))
        if pictures != rows:
            return f"{file}: {keys[0]}: found {pictures} pictures, expected as many as there are rewards, {rows}"
        frame = (3, None, None) if keys[0] == "observation" else (None, None, 3)
        check_shape(file, keys[0], entries[keys[0]], (*rows, *frame))
        check_shape(file, "action", entries["action"], (*rows, None))
        flags = {key: read_array(file, key, entries[key], np.float32, rows) for key in keys[3:]}
        size = tuple(side for side, want in zip(entries[keys[0]].shape[1:], frame) if want is None)
    if not rows[0]:
        return f"{file}: reward: no row in it"
    if "step_type" in flags:
        if not np.isin(flags["step_type"], (0, 1, 2)).all():
            raise InputError(f"{file}: step_type: must be 0, 1 or 2, found {np.unique(flags['step_type'])[:5]}")
        firsts, terminal = flags["step_type"] == 0, (flags["step_type"] == 2) & (flags["discount"] == 0)
    else:
        firsts, terminal = np.zeros(rows, bool), flags["is_terminal"] != 0
    firsts[0] = True
    keep = len(firsts) - int(firsts[-1])  # a last row that begins an episode holds no step
    if not keep:
        return f"{file}: reward: found one row, expected at least two"
    return _Shard(file, firsts[:keep], terminal[:keep], size, entries["action"].shape[1])


def _keys(file: Path, entries: dict[str, Entry]) -> tuple[str, ...]:
    return KEYS[".hdf5" if "observation" in entries or file.suffix == ".hdf5" else ".npz"]


def _joined(source: Path, shards: list[_Shard], info: dict[str, Any]) -> Episodes:
    firsts = np.concatenate([shard.firsts for shard in shards])
    terminal = np.concatenate([shard.terminal for shard in shards])
    rows, size, width = len(firsts), shards[0].size, shards[0].action_dim
    arrays: dict[str, np.ndarray] = {
        "frames": np.empty((rows, *size, 3), np.uint8),
        "actions": np.empty((rows, width), np.float32),
        "rewards": np.empty(rows, np.float32),
        "terminations": np.zeros(rows, bool),
        "truncations": np.zeros(rows, bool),
    }
    start = 0
    for shard in shards:
        _fill(shard, {key: array[start : start + len(shard.firsts)] for key, array in arrays.items()})
        start += len(shard.firsts)
    offsets = np.append(np.flatnonzero(firsts), rows)
    lasts = offsets[1:] - 1
    for key in ("actions", "rewards"):
        arrays[key][:-1] = arrays[key][1:]
        arrays[key][lasts] = 0
    arrays["terminations"][lasts - 1], arrays["truncations"][lasts - 1] = terminal[lasts], ~terminal[lasts]
    return Episodes(arrays, offsets, _origin(source) | info, source)


def _fill(shard: _Shard, out: dict[str, np.ndarray]) -> None:
    """Copy a file's rows into `out`; they must have the first file's shapes."""
    with open_arrays(shard.file) as entries:
        key, rows, size = _keys(shard.file, entries)[0], entries["reward"].shape[0], out["frames"].shape[1:3]
        frame = (3, *size) if key == "observation" else (*size, 3)
        pictures = read_array(shard.file, key, entries[key], np.uint8, (rows, *frame), cast=False)
        pictures = pictures.transpose(0, 2, 3, 1) if key == "observation" else pictures
        width = out["actions"].shape[1]
        actions = read_array(shard.file, "action", entries["action"], np.float32, (rows, width))
        rewards = read_array(shard.file, "reward", entries["reward"], np.float32, (rows,))
    for name, values in (("frames", pictures), ("actions", actions), ("rewards", rewards)):
        out[name][:] = values[: len(shard.firsts)]


def _origin(source: Path) -> dict[str, Any]:
    """Facts of the path: task and quality of .../walker_walk/expert/64px."""
    folder = source.parent if source.is_file() else source
    known = len(folder.parts) > 2 and folder.name in ("64px", "84px")
    where = {"task": folder.parts[-3], "quality": folder.parts[-2]} if known else {}
    return {"source": "V-D4RL", "action_repeat": 2, **where}
