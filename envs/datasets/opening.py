"""Opens datasets of every kind, by task id, file or folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from envs.datasets.readers.arrays import file_kind, open_arrays
from envs.datasets.readers.flat import read_flat
from envs.datasets.readers.lerobot import read_lerobot
from envs.datasets.readers.minari import read_minari
from envs.datasets.readers.vd4rl import read_vd4rl
from envs.datasets.tasks import OFFLINE_TASKS, SUITES, OfflineTask, find_file, find_offline_task
from mpdiffuser.episodes import Episodes
from mpdiffuser.errors import InputError


def open_dataset(
    source: str | Path,
    data_dir: str | Path | None = None,
    frames: str | None = None,
    size: int | None = None,
    keys: Mapping[str, str] | None = None,
    pictures: bool = False,
) -> Episodes:
    """The episodes of a task, a Minari dataset, a file or a folder; the content of a file or folder tells its kind.

    Args:
        source: a task's id with its suite, "minari/" and a Minari id, or a path.
        data_dir: folder of a task's file; None: the suite's own cache folder.
        frames, size: the film of a LeRobotDataset to keep as pictures, and their pixels a side; see read_lerobot.

    A task's info has `suite`, `task`, `stand_in` (the file is not the public one), `episode_steps`, `cost_limits`, and
    where the task can be evaluated here `environment`, a record for `envs.make`.

    Raises:
        InputError: if there is no such dataset, or its kind is unknown, or it is damaged.
    """
    suite, _, name = str(source).partition("/")
    if suite in SUITES:
        return _open_task(find_offline_task(name, suite), data_dir)
    if suite == "minari":
        return read_minari(name)
    path = Path(source).expanduser()
    if path.is_dir():
        return _open_folder(path, frames, size)
    if path.is_file():
        return _open_file(path)
    raise InputError(
        f"{source}: no such file or folder, nor a task (d4rl/..., dsrl/...) or Minari dataset (minari/...); "
        "python -m envs.datasets ls lists the tasks"
    )


def _open_task(task: OfflineTask, data_dir: str | Path | None) -> Episodes:
    file, stand_in = find_file(task, data_dir)
    if stand_in:
        print(f"note: {file} is not the public file {task.file}: a stand-in; its results are no {task.suite} results")
    return _read_task(task, file, stand_in)


def _read_task(task: OfflineTask, file: Path, stand_in: bool) -> Episodes:
    info: dict[str, Any] = {"suite": task.suite, "task": task.name, "stand_in": stand_in}
    info |= {"episode_steps": task.episode_steps, "cost_limits": list(task.limits)}
    if task.environment is not None:
        info["environment"] = task.environment
    episodes = read_flat(file, task.episode_steps, info)
    if task.limits and "costs" not in episodes:
        raise InputError(f"{file}: costs: no such key; expected of {task.id}")
    observations = episodes.arrays.get("observations")
    if task.columns and observations is not None and observations.shape[1] > task.columns:
        if observations[:, task.columns :].any():
            raise InputError(f"{file}: observations: must be 0 from column {task.columns} on, as in {task.id}")
        episodes.arrays["observations"] = observations[:, : task.columns].copy()
    return episodes


def _open_folder(folder: Path, frames: str | None, size: int | None) -> Episodes:
    if (folder / "meta.json").is_file():
        return Episodes.load(folder)
    if (folder / "meta/info.json").is_file():
        return read_lerobot(folder, frames, size)
    if (folder / "data/main_data.hdf5").is_file():
        return read_minari(folder)
    files = sorted(file for file in folder.iterdir() if file.suffix in (".npz", ".hdf5"))
    if files and _is_vd4rl(files[0]):
        return read_vd4rl(folder)
    if files:
        return _joined([read_flat(file) for file in files], folder)
    raise InputError(
        f"{folder}: no dataset of a known kind; expected meta.json (Episodes), meta/info.json (LeRobotDataset), "
        f"data/main_data.hdf5 (Minari), or *.npz or *.hdf5; found {sorted(path.name for path in folder.iterdir())[:10]}"
    )


def _open_file(file: Path) -> Episodes:
    if file_kind(file) is None:
        with open(file, "rb") as handle:
            raise InputError(f"{file}: no dataset of a known kind; expected HDF5 or npz, found {handle.read(8)!r}")
    if file.name == "main_data.hdf5":
        return read_minari(file.parents[1])
    if _is_vd4rl(file):
        return read_vd4rl(file)
    task = next((task for task in OFFLINE_TASKS.values() if task.file == file.name), None)
    return _read_task(task, file, stand_in=False) if task else read_flat(file)


def _is_vd4rl(file: Path) -> bool:
    with open_arrays(file) as entries:
        return bool({"image", "observation"} & set(entries))


def _joined(parts: list[Episodes], folder: Path) -> Episodes:
    """The episodes of several files as one dataset."""
    keys, found = set(parts[0].arrays), [set(part.arrays) for part in parts]
    odd = next((part for part, have in zip(parts, found) if have != keys), None)
    if odd:
        raise InputError(f"{odd.path}: must have {sorted(keys)} as {parts[0].path} has, found {sorted(odd.arrays)}")
    for key in keys:
        shapes = [part[key].shape[1:] for part in parts]
        odd = next((part for part, shape in zip(parts, shapes) if shape != shapes[0]), None)
        if odd:
            raise InputError(f"{odd.path}: {key}: must have rows of shape {shapes[0]}, found {odd[key].shape[1:]}")
    arrays = {key: np.concatenate([part[key] for part in parts]) for key in keys}
    lengths = np.concatenate([np.diff(part.offsets) for part in parts])
    return Episodes(arrays, np.append(0, np.cumsum(lengths)), parts[0].info | {"file": folder.name}, folder)
