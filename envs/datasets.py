"""Datasets of all kinds, by task id, file or folder.

    python -m envs.datasets ls                 task ids, and which files are here
    python -m envs.datasets show ID            what is in it: episodes, returns, costs, lengths, what is missing
    python -m envs.datasets convert ID PATH    write it as an Episodes folder
    python -m envs.datasets download ID        fetch a task's public file, or go on fetching it

ID is a task (d4rl/hopper-medium-v2, dsrl/OfflineCarRun-v0), a Minari dataset (minari/D4RL/door/human-v2), or a path: of
a folder of Episodes, Minari, V-D4RL or LeRobot, or of HDF5 or npz files (envs/readers/flat.py has their layout).
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from envs.download import download
from envs.minari_io import import_minari
from envs.readers import lerobot, vd4rl
from envs.readers.arrays import file_kind, open_arrays
from envs.readers.flat import read_flat
from envs.tasks import TASKS, OfflineTask, cost_score, find_file, find_offline_task
from mpdiffuser.episodes import Episodes
from mpdiffuser.errors import InputError

SUITES = ("d4rl", "dsrl")


def open_dataset(
    source: str | Path, data_dir: str | Path | None = None, frames: str | None = None, size: int | None = None
) -> Episodes:
    """The episodes of a task, a Minari dataset, a file or a folder, whose kind is told by its content.

    Args:
        source: a task's id with its suite, "minari/" and a Minari id, or a path.
        data_dir: folder of a task's file; None: the suite's own cache folder.
        frames, size: the film of a LeRobotDataset to keep as pictures, and their pixels a side; see read_lerobot.

    A task's info has `suite`, `task`, `stand_in` (the file is not the public one), `episode_steps`, `cost_limits`, and
    where it can be evaluated here `environment`, the arguments of GymEnv.

    Raises:
        InputError: if there is no such thing, or it is of no known kind, or broken.
    """
    suite, _, name = str(source).partition("/")
    if suite in SUITES:
        return _open_task(find_offline_task(name, suite), data_dir)
    if suite == "minari":
        return import_minari(name)
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
    if task.env_id:
        info["environment"] = {"env_id": task.env_id, "speed_limit": task.speed_limit}
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
        return lerobot.read_lerobot(folder, frames, size)
    if (folder / "data/main_data.hdf5").is_file():
        return import_minari(folder)
    files = sorted(file for file in folder.iterdir() if file.suffix in (".npz", ".hdf5"))
    if files and _is_vd4rl(files[0]):
        return vd4rl.read_vd4rl(folder)
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
        return import_minari(file.parents[1])
    if _is_vd4rl(file):
        return vd4rl.read_vd4rl(file)
    task = next((task for task in TASKS.values() if task.file == file.name), None)
    return _read_task(task, file, stand_in=False) if task else read_flat(file)


def _is_vd4rl(file: Path) -> bool:
    with open_arrays(file) as entries:
        return bool({"image", "observation"} & set(entries))


def _joined(parts: list[Episodes], folder: Path) -> Episodes:
    """One dataset of many."""
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


def summary(episodes: Episodes) -> Iterator[str]:
    """What `show` prints, line by line."""
    info, returns, lengths = episodes.info, episodes.returns, episodes.lengths
    suite = info.get("suite")
    task = find_offline_task(info["task"], suite) if suite else None
    yield f"origin        {', '.join(f'{key} {value}' for key, value in info.items() if isinstance(value, str))}"
    if info.get("stand_in"):
        yield f"stand-in      not the public file: its results are no {suite} results"
    yield f"episodes      {len(episodes):,}, steps {lengths.sum():,}"
    yield f"arrays        {', '.join(f'{key} {array.shape[1:]}' for key, array in sorted(episodes.arrays.items()))}"
    yield f"return        {_spread(returns)}"
    if task and task.score(0.0) is not None:
        scores = np.array([task.score(float(value)) for value in returns])
        factor = "100 " if suite == "d4rl" else ""
        yield f"score         {_spread(scores)} = {factor}(R - {task.low}) / ({task.high} - {task.low})"
    if info.get("source") == "V-D4RL":
        yield f"score         {_spread(returns / 10)}, a tenth of the return"
    if "costs" in episodes:
        costs = np.add.reduceat(np.asarray(episodes["costs"], np.float64), episodes.offsets[:-1])
        yield f"cost          {_spread(costs)}"
        for limit in task.limits if task else ():
            within = f"{(costs <= limit).mean():.0%} of the episodes within it"
            yield f"  limit {limit:<8g}normalised {cost_score(costs.mean(), limit):.3g}, {within}"
    yield f"length        {_spread(lengths)}"
    yield f"terminations  {np.count_nonzero(episodes['terminations']):,} of {len(episodes):,} episodes"
    yield f"missing keys  {', '.join(info.get('missing', [])) or 'none'}"


def _spread(values: np.ndarray) -> str:
    return f"{values.mean():.4g} +- {values.std():.3g} [{values.min():.4g}, {values.max():.4g}]"


def listing(data_dir: str | Path | None) -> Iterator[str]:
    """What `ls` prints: a line a task."""
    for task in TASKS.values():
        try:
            file, stand_in = find_file(task, data_dir)
            here = f"{file}{' (stand-in)' if stand_in else ''}"
        except InputError:
            here = "not here"
        evaluated = task.env_id or "no environment here"
        yield f"{task.id:48} {task.episode_steps:5} steps  {evaluated:22} {here}"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        "envs.datasets", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("command", choices=("ls", "show", "convert", "download"))
    parser.add_argument("id", nargs="?", help="not with ls")
    parser.add_argument("path", nargs="?", type=Path, help="with convert")
    parser.add_argument("--data_dir", help="folder of the tasks' files; default: each suite's cache folder")
    parser.add_argument("--frames", help="film of a LeRobotDataset to keep as pictures")
    parser.add_argument("--size", type=int, help="pixels a side of those pictures")
    options = parser.parse_args(arguments)
    if (options.id is not None) != (options.command != "ls") or (options.path is not None) != (
        options.command == "convert"
    ):
        parser.error("expected: ls, show ID, convert ID PATH, or download ID")
    try:
        _run(options)
    except (InputError, OSError) as error:  # the system's errors say what is wrong with which file
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _run(options: argparse.Namespace) -> None:
    if options.command == "ls":
        print("\n".join(listing(options.data_dir)))
        return
    if options.command == "download":
        suite, _, name = options.id.partition("/")
        task = find_offline_task(name, suite) if suite in SUITES else find_offline_task(options.id)
        print(download(task.url, Path(options.data_dir or task.cache()) / task.file))
        return
    if options.path and options.path.exists():
        raise InputError(f"{options.path}: exists already; choose another name or remove it")
    episodes = open_dataset(options.id, options.data_dir, options.frames, options.size)
    if options.command == "convert":
        episodes.save(options.path)
    print("\n".join(summary(episodes)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
