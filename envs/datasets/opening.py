"""Opens datasets of every kind, by task id, file or folder."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from envs.datasets.readers.arrays import file_kind, open_arrays, visible
from envs.datasets.readers.flat import SECONDS, NoStep, read_flat
from envs.datasets.readers.lerobot import read_lerobot
from envs.datasets.readers.minari import minari_folder, read_minari
from envs.datasets.readers.vd4rl import read_vd4rl
from envs.datasets.tasks import OFFLINE_TASKS, SUITES, OfflineTask, find_file, find_offline_task, made_again
from mpdiffuser.episodes import Episodes
from mpdiffuser.errors import InputError
from mpdiffuser.memory import enough_memory
from mpdiffuser.pictures import StoredPictures
from mpdiffuser.record import PICTURE, Actions, Record

SUFFIXES = (".npz", ".hdf5", ".h5")
DEPTHS = {"meta": 3, "data": 2, "videos": 3}  # of files in the folders of a LeRobotDataset; Minari's is data
NOTES = 8  # of the files of a folder, the rest are counted


def open_dataset(
    source: str | Path,
    data_dir: str | Path | None = None,
    frames: str | None = None,
    size: int | None = None,
    keys: Mapping[str, str] | None = None,
    pictures: bool = True,
) -> Episodes:
    """The episodes of a task, a Minari dataset, a file or a folder; the content of a file or folder tells its kind.

    Args:
        source: a path, or where there is no such file or folder a task's id with its suite, or "minari/" and a Minari
            id.
        data_dir: folder of a task's file; None: the suite's own cache folder.
        frames, size: the film of a LeRobotDataset to keep as pictures, and their pixels a side; see read_lerobot.
        keys: our names of arrays -> their names in npz and HDF5 files (see `read_flat`).
        pictures: whether all films of a LeRobotDataset are kept, without `frames`.

    Pictures of other projects' data are `StoredPictures`: they are read when they are indexed or saved.

    info of other projects' data has `missing`, the keys that are not there, `left_out`, what was not read -> why, and
    where there is something to tell `notes`, sentences. A task's info has `suite`, `task`, `stand_in` (the file is not
    the public one), `episode_steps`, `cost_limits`, and where the task can be evaluated here `environment`, a record
    for `envs.make`.

    Raises:
        InputError: if there is no such dataset, its kind is unknown, it is damaged, or it does not fit into the memory.
    """
    path = Path(source).expanduser()
    suite, _, name = str(source).partition("/")
    with enough_memory(source), allowed():
        if path.is_dir() and (path / "meta/info.json").is_file() and not (path / "meta.json").is_file():
            return read_lerobot(path, frames, size, pictures)
        if frames is not None or size is not None:
            raise InputError(f"{source}: frames={frames}, size={size}: are of LeRobotDatasets; leave them out")
        if path.is_dir():
            return _open_folder(path, keys or {})
        if path.is_file():
            return _open_file(path, keys or {})
        if suite in SUITES:
            return _open_named(source, lambda: open_task(name, suite, data_dir))
        if suite == "minari":
            return _open_named(source, lambda: read_minari(name))
    found = "leads nowhere (a broken link)" if path.is_symlink() else "no such file or folder"
    raise InputError(
        f"{source}: {found}, nor a task (d4rl/..., dsrl/..., ogbench/...) or Minari dataset (minari/...); "
        "python -m envs.datasets ls lists the tasks"
    )


def dataset_files(source: str | Path, data_dir: str | Path | None = None) -> list[Path]:
    """The files that a dataset is read from, also those in linked folders; see `open_dataset`.

    Raises:
        InputError: if a task or a Minari dataset is not there.
    """
    path = Path(source).expanduser()
    suite, _, name = str(source).partition("/")
    if not path.exists():
        if suite in SUITES:
            return [_open_named(source, lambda: find_file(find_offline_task(name, suite), data_dir)[0])]
        if suite != "minari":
            return []
        path = _open_named(source, lambda: minari_folder(name))
    if path.is_file():
        return [path]
    films = (path / "meta/info.json").is_file()
    parts = [part for part in DEPTHS if films or (path / part / "main_data.hdf5").is_file()]
    levels = [f"{part}{'/*' * depth}" for part in parts for depth in range(1, DEPTHS[part] + 1)]
    found = [file for level in ("*", *levels) for file in path.glob(level)]
    return [file for file in visible(found) if file.is_file()]


@contextlib.contextmanager
def allowed() -> Iterator[None]:
    """Re-raise a PermissionError of the block as InputError."""
    try:
        yield
    except PermissionError as error:
        raise InputError(f"{error.filename}: no permission to read it; change its permissions") from error


def _open_named(source: str | Path, read: Callable[[], Any]) -> Any:
    """Read a dataset by its id; an id that looks like a file's path is told of."""
    try:
        return read()
    except InputError as error:
        if not Path(source).suffix or "no such task" not in str(error):
            raise
        raise InputError(
            f"{error} There is no file {source} either: give the path of one, such as ./{source}"
        ) from error


def open_task(name: str, suite: str, data_dir: str | Path | None = None) -> Episodes:
    """The episodes of a public task; see `open_dataset`.

    Raises:
        InputError: if there is no such task, or its file is not here, or as `open_dataset`.
    """
    task = find_offline_task(name, suite)
    file, stand_in = find_file(task, data_dir)
    if stand_in:
        print(f"note: {file} is not the public file {task.file}: a stand-in; its results are no {task.suite} results")
    with enough_memory(file):
        return _read_task(task, file, stand_in)


def _read_task(task: OfflineTask, file: Path, stand_in: bool) -> Episodes:
    info: dict[str, Any] = {"suite": task.suite, "task": task.name, "stand_in": stand_in}
    info |= {"episode_steps": task.episode_steps, "cost_limits": list(task.limits)}
    if task.environment is not None:
        info["environment"] = task.environment
    if task.suite == "ogbench":
        info["asks_for_goals"] = True
    episodes = read_flat(file, task.episode_steps, info)
    needed = {"d4rl": ["rewards"], "dsrl": ["rewards", "costs"], "ogbench": []}[task.suite]
    for key in needed:
        if key not in episodes or key in episodes.info["missing"]:
            raise InputError(f"{file}: {key}: no such key; expected of {task.id}")
    observations = episodes.arrays.get("observations")
    if task.columns and observations is not None and observations.shape[1] > task.columns:
        if observations[:, task.columns :].any():
            raise InputError(f"{file}: observations: must be 0 from column {task.columns} on, as in {task.id}")
        episodes.arrays["observations"] = observations[:, : task.columns].copy()
    # the actions of all tasks lie in [-1, 1]
    record = Record.of(episodes.arrays, episodes.offsets[1:] - 1).with_actions(
        Actions.unit(episodes["actions"].shape[1])
    )
    return replace(episodes, record=record)


def _open_folder(folder: Path, keys: Mapping[str, str]) -> Episodes:
    _check_keys(folder, keys, (folder / "meta.json").is_file() or (folder / "data/main_data.hdf5").is_file())
    if (folder / "meta.json").is_file():
        return Episodes.load(folder)
    if (folder / "data/main_data.hdf5").is_file():
        return read_minari(folder)
    there = visible(folder.iterdir())
    files = [file for file in there if file.suffix in SUFFIXES and file.is_file()]
    if files and not keys and _is_vd4rl(files[0]):
        return read_vd4rl(folder)
    if files:
        return _open_files(folder, files, there, keys)
    raise InputError(
        f"{folder}: no dataset of a known kind; expected meta.json (Episodes), meta/info.json (LeRobotDataset), "
        f"data/main_data.hdf5 (Minari), or *.npz or *.hdf5; found {[path.name for path in there][:10]}"
    )


def _open_files(folder: Path, files: Sequence[Path], there: Iterable[Path], keys: Mapping[str, str]) -> Episodes:
    """The episodes of the flat files of a folder; `left_out` has what else is there."""
    parts, left_out = [], {}
    for file in files:
        try:
            parts.append(read_flat(file, keys=keys))
        except NoStep:
            left_out[file.name] = "no episode with a step"
    if not parts:
        raise InputError(f"{folder}: no episode with a step in {len(files)} files")
    for path in there:
        if path not in files:
            left_out[path.name] = "a folder; show it by its own path" if path.is_dir() else "neither *.npz nor *.hdf5"
    episodes = _joined(parts, folder)
    episodes.info["left_out"] |= left_out
    return episodes


def _check_keys(source: Path, keys: Mapping[str, str], fixed: bool) -> None:
    if keys and fixed:
        raise InputError(f"keys.{next(iter(keys))}: {source} is no npz or HDF5 file of your own; leave the option out")


def _open_file(file: Path, keys: Mapping[str, str]) -> Episodes:
    if file_kind(file) is None:
        with open(file, "rb") as handle:
            raise InputError(f"{file}: no dataset of a known kind; expected HDF5 or npz, found {handle.read(8)!r}")
    if file.name == "main_data.hdf5":
        return read_minari(file.absolute().parents[1])
    if not keys and _is_vd4rl(file):
        return read_vd4rl(file)
    task = next((task for task in OFFLINE_TASKS.values() if task.file == file.name), None)
    return _read_task(task, file, made_again(file)) if task and not keys else read_flat(file, keys=keys)


def _is_vd4rl(file: Path) -> bool:
    with open_arrays(file) as entries:
        return bool({"image", "observation"} & set(entries)) and "actions" not in entries  # theirs is `action`


def _joined(parts: list[Episodes], folder: Path) -> Episodes:
    """The episodes of several files as one dataset."""
    keys = list(parts[0].arrays)
    odd = next((part for part in parts if set(part.arrays) != set(keys)), None)
    if odd:
        raise InputError(f"{odd.path}: must have {sorted(keys)} as {parts[0].path} has, found {sorted(odd.arrays)}")
    for key in keys:
        shapes = [part[key].shape[1:] for part in parts]
        odd = next((part for part, shape in zip(parts, shapes) if shape != shapes[0]), None)
        if odd:
            raise InputError(f"{odd.path}: {key}: must have rows of shape {shapes[0]}, found {odd[key].shape[1:]}")
    for key in ("rewards", "next_observations"):
        odd = next((part for part in parts if (key in part.info["missing"]) != (key in parts[0].info["missing"])), None)
        if odd:
            names = [part.path for part in parts if key in part.info["missing"]]
            raise InputError(f"{names[0]}: {key}: no such key; expected, as other files of {folder} have it")
    info: dict[str, Any] = {"file": folder.name, "missing": parts[0].info["missing"], "left_out": {}}
    seconds = {part.info[SECONDS]: part.path for part in reversed(parts) if SECONDS in part.info}
    if len(seconds) > 1:
        told = ", ".join(f"{value:g} in {path}" for value, path in seconds.items())
        raise InputError(f"{folder}: {SECONDS}: must be the same in all files, found {told}")
    if seconds:
        info[SECONDS] = next(iter(seconds))
    for part in parts:
        info["left_out"] |= part.info["left_out"]
    notes = [f"{part.info['file']}: {note}" for part in parts for note in part.info.get("notes", [])]
    if notes:
        info["notes"] = (
            notes if len(notes) <= NOTES else [*notes[:NOTES], f"and {len(notes) - NOTES} more of this kind"]
        )
    stems = {Path(part.info["file"]).stem for part in parts}
    held_out = sorted(stem for stem in stems if stem.endswith("-val") and stem.removesuffix("-val") in stems)
    if held_out:
        told = f"{held_out[0]} is read too, as the name of a held-out file; to leave it out, give the other file's path"
        info["notes"] = [*info.get("notes", []), told]
    final = next((part.info for part in parts if "final_observations" in part.info), {})
    info |= {key: final[key] for key in ("final_observations",) if key in final}
    return stacked(parts, keys, info, folder)


def stacked(parts: Sequence[Episodes], keys: Iterable[str], info: dict[str, Any], path: Path | None) -> Episodes:
    """The rows of all parts one after the other; the bounds of actions are `Actions.of_all`.

    Args:
        parts: episodes with the same observations.
        keys: the arrays to keep, which all parts have.
        info, path: of the result.
    """
    pictures = parts[0].record.names(PICTURE)
    join: dict[bool, Callable[[list[Any]], Any]] = {True: StoredPictures.joined, False: np.concatenate}
    arrays = {key: join[key in pictures]([part[key] for part in parts]) for key in keys}
    lengths = np.concatenate([np.diff(part.offsets) for part in parts])
    record = parts[0].record.with_actions(Actions.of_all([part.record.actions for part in parts]))
    return Episodes(arrays, np.append(0, np.cumsum(lengths)), info, path, record=record)
