"""Datasets: list them, look at them, convert, download and make them.

    python -m envs.datasets ls                 the public tasks: can they be evaluated here, and where are their files?
    python -m envs.datasets show ID            episodes, returns, costs, lengths, what is missing and what is left out
    python -m envs.datasets convert ID PATH    write the dataset as an Episodes folder
    python -m envs.datasets download ID        fetch a task's public file, or continue to fetch it
    python -m envs.datasets make ID PATH       make a dataset with its simulator: go2/walk, go2/disturbed,
                                               d4rl/maze2d-umaze-v1 and the other maze2d tasks (PATH ends in .hdf5),
                                               d4rl/hopper-random-v2 and the other random data (PATH ends in .hdf5),
                                               ogbench/pointmaze-medium-navigate-v0, cube-single-play-v0 and others
                                               (PATH ends in .npz),
                                               vd4rl/walker_walk-medium_expert and others of V-D4RL,
                                               mppi/quadruped_walk and others of dm_control, by sampling MPC

ID is a task (d4rl/hopper-medium-v2, dsrl/OfflineCarRun-v0, ogbench/cube-single-play-v0), a Minari dataset
(minari/D4RL/door/human-v2), or a path: of a folder of Episodes, Minari, V-D4RL or LeRobot, or of HDF5 or npz files
(layout: envs/datasets/readers/flat.py). With show and convert, keys.observations=states reads the array `states` of an
npz or HDF5 file as observations, as in the training commands.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from envs.datasets.description import describe, list_tasks
from envs.datasets.download import download
from envs.datasets.opening import open_dataset
from envs.datasets.tasks import SUITES, find_offline_task
from mpdiffuser.commands import entry_point, program
from mpdiffuser.errors import InputError
from mpdiffuser.memory import enough_memory

MADE_WITH = ("rendering", "episodes", "run")  # options of `make`


def given_keys(words: Sequence[str], command: str) -> dict[str, str]:
    """Our name of an array -> its name in the file, from words keys.NAME=OTHER.

    Raises:
        InputError: for another word, or with a command that reads no file.
    """
    if not words:
        return {}
    from mpdiffuser.config import KEYS  # Hydra, which takes a second to import

    found = {}
    for word in words:
        key, _, name = word.removeprefix("keys.").partition("=")
        if key not in KEYS or not name or command not in ("show", "convert"):
            raise InputError(f"{word}: must be keys.NAME=OTHER with show or convert; NAME is one of {', '.join(KEYS)}")
        found[key] = name
    return found


@entry_point
def main(arguments: Sequence[str] | None = None) -> None:
    name = program("envs.datasets")
    parser = argparse.ArgumentParser(
        prog=name,
        description=(__doc__ or "").replace("python -m envs.datasets", name),
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("command", choices=("ls", "show", "convert", "download", "make"))
    parser.add_argument("id", nargs="?", help="not with ls")
    parser.add_argument("path", nargs="?", type=Path, help="with convert and make")
    parser.add_argument("--data_dir", help="folder of the tasks' files; default: each suite's cache folder")
    parser.add_argument("--frames", help="the only film or pictures of a LeRobotDataset to keep, as frames")
    parser.add_argument("--size", type=int, help="pixels a side to which pictures of a LeRobotDataset are resized")
    parser.add_argument("--seed", type=int, default=0, help="of a dataset that is made")
    parser.add_argument("--rendering", choices=("fast", "full"), help="of V-D4RL's frames that are made; default: fast")
    parser.add_argument("--episodes", type=int, help="number of episodes of mppi/TASK; default: 100")
    parser.add_argument("--run", type=Path, help="folder of the agents' training, for V-D4RL's medium_replay")
    words = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args([word for word in words if not word.startswith("keys.")])
    keys = given_keys([word for word in words if word.startswith("keys.")], options.command)
    if (options.id is not None) != (options.command != "ls") or (options.path is not None) != (
        options.command in ("convert", "make")
    ):
        parser.error("expected: ls, show ID, convert ID PATH, download ID, or make ID PATH")
    if options.command == "ls":
        print("\n".join(list_tasks(options.data_dir)))
        return
    if options.command == "download":
        suite, _, name = options.id.partition("/")
        task = find_offline_task(name, suite) if suite in SUITES else find_offline_task(options.id)
        print(download(task.url, Path(options.data_dir or task.cache()) / task.file))
        return
    if options.path and options.path.exists():
        raise InputError(f"{options.path}: exists already; choose another name or remove it")
    if options.command == "make":
        from envs.datasets.making import make_dataset  # a simulator and torch, which take seconds to import

        chosen = {name: value for name in MADE_WITH if (value := getattr(options, name)) is not None}
        make_dataset(options.id, options.path, options.seed, **chosen)
        print("\n".join(describe(open_dataset(options.path))))
        return
    episodes = open_dataset(options.id, options.data_dir, options.frames, options.size, keys)
    with enough_memory(options.id):
        if options.command == "convert":
            episodes.save(options.path)
        print("\n".join(describe(episodes)))


if __name__ == "__main__":
    sys.exit(main())
