"""V-D4RL (Lu et al. 2023): DeepMind Control from pixels, in two layouts.

    64px   a folder of *.npz, one episode in each: image (T + 1, 64, 64, 3) uint8, action (T + 1, m), reward (T + 1,),
           is_terminal (T + 1,); is_first and is_last (T + 1,) may mark several episodes; discount is not read
    84px   a folder of *.hdf5, or one of them, episode after episode: observation (N, 3, 84, 84) uint8, action (N, m),
           reward (N,), discount (N,), step_type (N,) with 0 first, 1 mid, 2 last

A row holds the action and the reward that led to its picture; in `Episodes` they move to the row before. So those of an
episode's first row may be anything. Each action was held for two simulator steps. V-D4RL's score is a tenth of the
return.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from envs.datasets.readers.arrays import Entry, check_shape, open_arrays, read_array, require, visible
from envs.datasets.readers.pictures import CHANNELS_FIRST, HEIGHT_FIRST, array_source, check_pictures
from envs.record import check_record
from mpdiffuser.episodes import Episodes
from mpdiffuser.errors import InputError
from mpdiffuser.files import read_json
from mpdiffuser.pictures import StoredPictures
from mpdiffuser.record import Actions, Record

KEYS = {
    ".npz": ("image", "action", "reward", "is_terminal"),
    ".hdf5": ("observation", "action", "reward", "discount", "step_type"),
}
ABOUT = "about.json"  # facts of files that `envs.datasets.vd4rl` made
MARKS = ("is_first", "is_last")  # of the npz files that have them
UNUSED = "no array of V-D4RL that is needed"


@dataclass(frozen=True)
class _Shard:
    """What is known of a file before its pictures are read.

    Args:
        keep: (n,) bool, the rows of episodes with a step.
        firsts, terminal: (rows kept,) bool: rows that begin an episode, and rows that are terminal.
        key, size: name and (height, width) of the pictures.
        left_out, notes: see `Episodes.info`.
    """

    file: Path
    keep: np.ndarray
    firsts: np.ndarray
    terminal: np.ndarray
    key: str
    size: tuple[int, ...]
    action_dim: int
    left_out: dict[str, str]
    notes: dict[str, str]


def read_vd4rl(source: str | Path, info: dict[str, Any] | None = None) -> Episodes:
    """Read a folder of V-D4RL, or one file of it, into memory; prints what was read.

    Files whose pictures and flags differ in number are skipped, and their names printed; some public files are such.

    Raises:
        InputError: naming file, key, what was found and what was expected; or if no file is left.
    """
    source = Path(source)
    kinds = {"npz": [], "hdf5": []} if source.is_file() else {
        kind: visible(source.glob(f"*.{kind}")) for kind in ("npz", "hdf5")
    }  # fmt: skip
    files = [source] if source.is_file() else kinds["npz"] or kinds["hdf5"]
    left_out = {file.name: "of the other layout of V-D4RL; put it into a folder of its own" for file in kinds["hdf5"]}
    left_out = left_out if kinds["npz"] else {}
    shards = []
    for file in files:
        found = _examine(file)
        if isinstance(found, str):
            print(f"skipped {file}: {found}")
            left_out[file.name] = f"skipped: {found}"
        else:
            shards.append(found)
            left_out |= found.left_out
    if not shards:
        raise InputError(f"{source}: image, observation: no episode to read; expected *.npz or *.hdf5 of V-D4RL, "
                         f"found {len(files)}, of which skipped {len(files) - len(shards)}")  # fmt: skip
    episodes = _joined(source, shards, {"missing": [], "left_out": left_out} | (info or {}))
    size = "x".join(map(str, shards[0].size))
    print(f"V-D4RL: {len(shards)} files, {len(episodes)} episodes, {episodes.lengths.sum():,} steps, {size} px")
    return episodes


def _examine(file: Path) -> _Shard | str:
    """The flags of a file, or the reason for which it is skipped."""
    with open_arrays(file) as entries:
        keys = _keys(file, entries)
        require(file, entries, keys)
        rows, pictures = (entries[key].shape[:1] for key in ("reward", keys[0]))
        if pictures != rows and not entries[keys[0]].refused:
            return f"{keys[0]}: found {pictures} pictures, expected as many as there are rewards, {rows}"
        frame = (3, None, None) if keys[0] == "observation" else (None, None, 3)
        check_pictures(file, keys[0], entries[keys[0]], (*rows, *frame))
        check_shape(file, "action", entries["action"], (*rows, None))
        if not rows[0]:
            return "reward: no row in it"
        steps = "step_type" in keys
        firsts, terminal = (_steps if steps else _flags)(file, entries, rows[0])
        left_out = entries.left_out({*keys, *(() if steps else MARKS)}, UNUSED)
        size = tuple(side for side, want in zip(entries[keys[0]].shape[1:], frame) if want is None)
    notes = {}
    if not firsts[0]:
        notes["begin"] = f"{file.name} begins within an episode: its first row's action and reward are left out"
        firsts[0] = True
    keep = ~(firsts & np.append(firsts[1:], True))  # an episode of one row holds no step
    if not keep.any():
        return "reward: found one row, expected at least two"
    return _Shard(file, keep, firsts[keep], terminal[keep], keys[0], size, entries["action"].shape[1], left_out, notes)


def _keys(file: Path, entries: dict[str, Entry]) -> tuple[str, ...]:
    return KEYS[".hdf5" if "observation" in entries or file.suffix == ".hdf5" else ".npz"]


def _steps(file: Path, entries: dict[str, Entry], rows: int) -> tuple[np.ndarray, np.ndarray]:
    """First rows and terminal rows, (n,) bool, of a file with step types."""
    kinds = read_array(file, "step_type", entries["step_type"], np.float32, (rows,))
    if not np.isin(kinds, (0, 1, 2)).all():
        raise InputError(f"{file}: step_type: must be 0, 1 or 2, found {np.unique(kinds)[:5]}")
    firsts, lasts = kinds == 0, kinds == 2
    _check_follow(file, "step_type: 2 (last)", lasts, firsts)
    discount = read_array(file, "discount", entries["discount"], np.float32, (rows,), used=lasts)
    return firsts, lasts & (discount == 0)


def _flags(file: Path, entries: dict[str, Entry], rows: int) -> tuple[np.ndarray, np.ndarray]:
    """First rows and terminal rows, (n,) bool, of a file with is_first, is_last, or neither: one episode."""
    terminal = read_array(file, "is_terminal", entries["is_terminal"], bool, (rows,))
    first, last = (read_array(file, k, entries[k], bool, (rows,)) if k in entries else None for k in MARKS)
    if first is None:
        first = np.append(True, np.zeros(rows - 1, bool) if last is None else last[:-1])
    elif last is not None:
        _check_follow(file, "is_last", last, first)
    _check_follow(file, "is_terminal", terminal, first)
    return first, terminal


def _check_follow(file: Path, mark: str, lasts: np.ndarray, firsts: np.ndarray) -> None:
    wrong = np.flatnonzero(lasts[:-1] & ~firsts[1:])
    if len(wrong):
        raise InputError(
            f"{file}: {mark} in row {wrong[0]}, but row {wrong[0] + 1} does not begin an episode; correct the marks"
        )


def _joined(source: Path, shards: list[_Shard], info: dict[str, Any]) -> Episodes:
    firsts = np.concatenate([shard.firsts for shard in shards])
    terminal = np.concatenate([shard.terminal for shard in shards])
    rows, size, width = len(firsts), shards[0].size, shards[0].action_dim
    arrays: dict[str, Any] = {
        "actions": np.empty((rows, width), np.float32),
        "rewards": np.empty(rows, np.float32),
        "terminations": np.zeros(rows, bool),
        "truncations": np.zeros(rows, bool),
    }
    start, pictures = 0, []
    notes: dict[str, str] = {}
    for shard in shards:
        if shard.size != size:
            raise InputError(f"{shard.file}: {shard.key}: must be of {size} pixels as others are, found {shard.size}")
        _fill(shard, {key: array[start : start + len(shard.firsts)] for key, array in arrays.items()})
        axes = CHANNELS_FIRST if shard.key == "observation" else HEIGHT_FIRST
        numbers, kept = np.flatnonzero(shard.keep), start + np.arange(len(shard.firsts))
        pictures.append(array_source(shard.file, shard.key, kept, numbers, axes))
        start += len(shard.firsts)
        notes |= {f"{shard.file}: {key}": note for key, note in shard.notes.items() if key == "begin"}
        notes = {key: note for key, note in shard.notes.items() if key != "begin"} | notes
    offsets = np.append(np.flatnonzero(firsts), rows)
    lasts = offsets[1:] - 1
    odd = int(((arrays["rewards"] != 0) | arrays["actions"].any(1))[firsts].sum())
    if odd:
        notes["first"] = (
            f"actions and rewards in first rows of episodes are not used, {odd:,} of them are not 0: "
            "in V-D4RL a row holds what led to its picture"
        )
    for key in ("actions", "rewards"):
        arrays[key][:-1] = arrays[key][1:]
        arrays[key][lasts] = 0
    arrays["terminations"][lasts - 1], arrays["truncations"][lasts - 1] = terminal[lasts], ~terminal[lasts]
    arrays["frames"] = StoredPictures((rows, *size, 3), pictures, [shard.file for shard in shards])
    origin = _origin(source)
    if (task := origin.get("task")) and "environment" not in origin:
        notes["environment"] = (
            f"environment=task task={task} task.action_repeat=2 evaluates in dm_control; also give task.size and "
            "task.camera"
        )
    told = {"notes": list(notes.values())} if notes else {}
    record = Record.of(arrays, lasts).with_actions(Actions.unit(width))
    return Episodes(arrays, offsets, origin | told | info, source, record=record)


def _fill(shard: _Shard, out: dict[str, np.ndarray]) -> None:
    """Copy a file's actions and rewards into `out`."""
    used = shard.keep.copy()
    used[shard.keep] = ~shard.firsts
    with open_arrays(shard.file) as entries:
        rows = entries["reward"].shape[0]
        for name, shape in (("action", (rows, out["actions"].shape[1])), ("reward", (rows,))):
            values = read_array(shard.file, name, entries[name], np.float32, shape, used=used, notes=shard.notes)
            out[f"{name}s"][:] = values[shard.keep]


def _origin(source: Path) -> dict[str, Any]:
    """Task and quality of a path such as .../walker_walk/expert/64px, and the environment of files made here."""
    folder = source.parent if source.is_file() else source
    known = len(folder.parts) > 2 and folder.name in ("64px", "84px")
    where = {"task": folder.parts[-3], "quality": folder.parts[-2]} if known else {}
    return {"source": "V-D4RL", "action_repeat": 2, **where, **_made_here(folder / ABOUT)}


def _made_here(file: Path) -> dict[str, Any]:
    """Facts in the file beside a dataset of `python -m envs.datasets make`."""
    if not file.is_file():
        return {}
    about = read_json(file)
    if "environment" not in about:
        return {}
    check_record(about["environment"], f"{file}: environment")
    return {"environment": about["environment"], "made": about.get("dataset")}
