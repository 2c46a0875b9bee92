"""python -m envs.datasets, run in this process."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from envs import make
from envs.datasets import OFFLINE_TASKS, find_offline_task, open_dataset
from envs.datasets import __main__ as command
from envs.datasets.__main__ import main
from mpdiffuser.episodes import Episodes


def test_show(tmp_path: Path, capsys, write: Callable[..., Path]) -> None:
    costs = np.zeros(12, np.float32)
    costs[:5] = 30
    write(tmp_path / "SafetyCarRun-v0-40-651.hdf5", costs=costs, timeouts=None)
    assert main(["show", "dsrl/OfflineCarRun-v0", "--data_dir", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    for words in (
        "episodes      2, steps 11",
        "return        6 +- 1 [5, 7]",
        "(R - 204.28726196289062) / (574.6533203125 - 204.28726196289062)",
        "cost          75 +- 75 [0, 150]",
        "  limit 20      normalised 3.75, 50% of the episodes within it",
        "length        5.5 +- 0.5 [5, 6]",
        "terminations  1 of 2 episodes",
        "missing keys  timeouts, next_observations",
        "note          rewards: 1 last rows of episodes are added to the step before",
    ):
        assert words in shown
    assert main(["show", "dsrl/OfflineCarRun-v1"]) == 2 and capsys.readouterr().err.startswith("error: task=dsrl/")


def test_arrays_of_other_names(tmp_path: Path, capsys, transitions: Callable[..., dict[str, np.ndarray]]) -> None:
    rows = transitions()
    rows["states"] = rows.pop("observations")
    np.savez(tmp_path / "own.npz", **rows)  # type: ignore[arg-type]
    own = str(tmp_path / "own.npz")
    assert main(["show", own]) == 2 and "keys.observations=NAME takes an array" in capsys.readouterr().err
    assert main(["show", own, "keys.observations=states"]) == 0 and "steps 11" in capsys.readouterr().out
    assert main(["convert", own, str(tmp_path / "folder"), "keys.observations=states"]) == 0
    assert np.array_equal(Episodes.load(tmp_path / "folder")["observations"][:5], rows["states"][:5])
    for words in (["show", own, "keys.states=x"], ["show", own, "keys.rewards"], ["ls", "keys.rewards=r"]):
        assert main(words) == 2 and "must be keys.NAME=OTHER with show or convert" in capsys.readouterr().err


def test_a_reader_that_stops_early() -> None:
    """As in `python -m envs.datasets ls | head -1`."""
    shell = f"{sys.executable} -m envs.datasets ls | head -1"
    done = subprocess.run(shell, shell=True, capture_output=True, text=True, cwd=Path(__file__).parents[3])
    assert done.stdout.startswith("d4rl/hopper-random-v2") and done.stderr == ""


@pytest.mark.parametrize("pipe", ["| head -2", "| true", "2>&1 | head -0"])
def test_show_to_a_reader_that_stops_early(tmp_path: Path, write: Callable[..., Path], pipe: str) -> None:
    file = write(tmp_path / "own.hdf5", **{f"extra_{number}": np.zeros(3) for number in range(2000)})
    shell = f"{sys.executable} -m envs.datasets show {file} {pipe}"
    done = subprocess.run(shell, shell=True, capture_output=True, text=True, cwd=Path(__file__).parents[3])
    assert done.stderr == "" and done.stdout.count("\n") == (2 if "-2" in pipe else 0)


def test_show_lists_what_is_left_out(tmp_path: Path, capsys, write: Callable[..., Path]) -> None:
    seen = np.random.default_rng(0).normal(np.array([0.0, 0.0, 1e12]), size=(12, 3))
    file = write(tmp_path / "own.hdf5", observations=seen, qpos=np.zeros((12, 9)), success=np.zeros(12))
    assert main(["show", str(file)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[:22] for line in lines if line.startswith("left out")] == [
        "left out      qpos: fl",
        "left out      success:",
    ]
    assert any(line.startswith("note          observations: float32") and "column 2" in line for line in lines)


def test_convert(tmp_path: Path, capsys, write: Callable[..., Path]) -> None:
    file = write(tmp_path / "own.hdf5")
    assert main(["convert", str(file), str(tmp_path / "out")]) == 0
    assert Episodes.load(tmp_path / "out").checksum() == open_dataset(file).checksum()
    assert main(["convert", str(file), str(tmp_path / "out")]) == 2
    assert "exists already" in capsys.readouterr().err


def test_ls(tmp_path: Path, capsys, write: Callable[..., Path]) -> None:
    write(tmp_path / "hopper-medium.hdf5")
    assert main(["ls", "--data_dir", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 162
    words = "d4rl/hopper-random-v2 1000 steps evaluated in Hopper-v4 can be made or downloaded"
    assert lines[0].split() == words.split()
    assert lines[2].endswith("evaluated in Hopper-v4      to be downloaded")
    maze = next(line for line in lines if line.startswith("d4rl/maze2d-large-dense-v1"))
    assert maze.endswith("evaluated in maze2d         can be made or downloaded")
    assert lines[1].endswith("hopper-medium.hdf5 (stand-in)")
    for wrong in (["ls", "x"], ["show"], ["convert", "x"], ["fly"]):
        with pytest.raises(SystemExit):
            main(wrong)


def test_ls_says_which_tasks_can_be_evaluated(capsys) -> None:
    """A task is listed as evaluated where its environment can be made and takes the data's observations."""
    assert main(["ls"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for line, task in zip(lines, OFFLINE_TASKS.values(), strict=True):
        assert line.startswith(f"{task.id} ")
        assert (f"evaluated in {task.evaluated_in}" in line) == (task.environment is not None)
        assert ("trained without evaluation" in line) == (task.environment is None)
        assert line.endswith(f" ({task.without})") == (task.environment is None)
    assert sum("trained without evaluation" in line for line in lines) == 24  # navigation and Bullet
    tried = [task.environment for task in OFFLINE_TASKS.values() if task.environment and task.suite != "ogbench"]
    tried += [find_offline_task(f"{world}-v0").environment for world in ("antsoccer-arena-stitch", "puzzle-3x3-noisy")]
    records = {str(record): record for record in tried if record}
    for record in records.values():
        env = make(record)
        env.reset(seed=0)
        assert env.step(np.zeros(env.action_space.shape or ()))[4]["cost"] in (0.0, 1.0)
        env.close()


def test_download_goes_to_the_cache(tmp_path: Path, monkeypatch, capsys) -> None:
    task = find_offline_task("pen-human-v1")
    monkeypatch.setattr(command, "download", lambda url, file: (url, str(file)))
    assert main(["download", "d4rl/pen-human-v1"]) == 0
    assert capsys.readouterr().out == f"{(task.url, f'{tmp_path}/D4RL_DATASET_DIR/pen-human-v1.hdf5')}\n"
