"""One function opens every kind of dataset."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from envs.datasets import open_dataset
from envs.datasets.minari import export_minari
from envs.datasets.tasks import find_offline_task
from mpdiffuser.episodes import Episodes
from mpdiffuser.errors import InputError


def transitions(rows: int = 12, width: int = 3, seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {
        "observations": random.normal(size=(rows, width)).astype(np.float32),
        "actions": random.uniform(-1, 1, (rows, 2)).astype(np.float32),
        "rewards": np.ones(rows, np.float32),
        "terminals": np.arange(rows) == 4,
        "timeouts": np.arange(rows) == rows - 1,
    }


def write(file: Path, **replaced: np.ndarray | None) -> Path:
    with h5py.File(file, "w") as data:
        for key, array in (transitions() | replaced).items():
            if array is not None:
                data[key] = array
    return file


def same(one: Episodes, other: Episodes) -> bool:
    return set(one.arrays) == set(other.arrays) and all(np.array_equal(one[key], other[key]) for key in one.arrays)


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch) -> None:
    """Cache folders of this test's own."""
    for name in ("D4RL_DATASET_DIR", "DSRL_DATASET_DIR", "MINARI_DATASETS_PATH"):
        monkeypatch.setenv(name, str(tmp_path / name))


def test_a_task(tmp_path: Path, capsys) -> None:
    write(tmp_path / "hopper_medium-v2.hdf5")
    episodes = open_dataset("d4rl/hopper-medium-v2", tmp_path)
    expected = {"suite": "d4rl", "task": "hopper-medium-v2", "stand_in": False}
    expected |= {"environment": {"kind": "gymnasium", "env_id": "Hopper-v4", "speed_limit": None}}
    assert {key: episodes.info[key] for key in expected} == expected and not capsys.readouterr().out
    opened = open_dataset(tmp_path / "hopper_medium-v2.hdf5")  # known by its name
    assert same(opened, episodes) and opened.info == episodes.info
    (tmp_path / "hopper_medium-v2.hdf5").rename(tmp_path / "hopper-medium.hdf5")
    assert open_dataset("d4rl/hopper-medium-v2", tmp_path).info["stand_in"] is True
    assert "a stand-in; its results are no d4rl results" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"d4rl/hopper-expert-v2: no file; tried .* download d4rl/hopper-expert-v2"):
        open_dataset("d4rl/hopper-expert-v2")


def test_costs_and_time_limits_of_tasks(tmp_path: Path) -> None:
    file = write(tmp_path / "SafetyBallRun-v0-80-940.hdf5", timeouts=None)
    with pytest.raises(InputError, match=r"SafetyBallRun-v0-80-940.hdf5: costs: no such key; expected of dsrl/Off"):
        open_dataset("dsrl/OfflineBallRun-v0", tmp_path)
    write(file, timeouts=None, costs=np.ones(12, np.float32))
    episodes = open_dataset("dsrl/OfflineBallRun-v0", tmp_path)
    assert "environment" not in episodes.info and episodes.lengths.tolist() == [5, 6]
    velocity = write(tmp_path / "SafetyHopperVelocity.hdf5", costs=np.ones(12, np.float32))
    assert velocity.exists()
    info = open_dataset("dsrl/OfflineHopperVelocityGymnasium-v1", tmp_path).info
    assert info["environment"] == {"kind": "gymnasium", "env_id": "Hopper-v4", "speed_limit": 0.7402} and info["stand_in"]


def test_ants_contact_forces_that_are_zero(tmp_path: Path) -> None:
    wide = np.zeros((12, 111), np.float32)
    wide[:, :27] = transitions(12, 27)["observations"]
    file = write(tmp_path / "ant_medium-v2.hdf5", observations=wide)
    assert open_dataset("d4rl/ant-medium-v2", tmp_path)["observations"].shape == (13, 27)
    wide[3, 50] = 1
    write(file, observations=wide)
    with pytest.raises(InputError, match=r"observations: must be 0 from column 27 on"):
        open_dataset("d4rl/ant-medium-v2", tmp_path)


def test_every_kind_gives_the_same_episodes(tmp_path: Path) -> None:
    file = write(tmp_path / "own.hdf5")
    episodes = open_dataset(file)
    np.savez(tmp_path / "own.npz", **transitions())  # type: ignore[arg-type]
    episodes.save(tmp_path / "folder")
    export_minari(episodes, "mine/toy-v0")
    minari = tmp_path / "MINARI_DATASETS_PATH/mine/toy-v0"
    sources: list[str | Path] = [tmp_path / "own.npz", tmp_path / "folder", "minari/mine/toy-v0", minari]
    for source in [*sources, minari / "data/main_data.hdf5", str(file)]:
        assert same(open_dataset(source), episodes), source


def test_a_folder_of_recordings(tmp_path: Path) -> None:
    for seed, rows in ((0, 12), (1, 7)):
        np.savez(tmp_path / f"{seed}.npz", **transitions(rows, seed=seed))  # type: ignore[arg-type]
    parts = [open_dataset(tmp_path / f"{seed}.npz") for seed in (0, 1)]
    episodes = open_dataset(tmp_path)
    assert episodes.lengths.tolist() == [5, 6, 5, 1]
    assert np.array_equal(episodes["actions"], np.concatenate([part["actions"] for part in parts]))
    np.savez(tmp_path / "2.npz", **transitions(5, width=4))  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"2.npz: observations: must have rows of shape \(3,\), found \(4,\)"):
        open_dataset(tmp_path)
    np.savez(tmp_path / "2.npz", **transitions(5), costs=np.zeros(5))  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"2.npz: must have \['actions'.* found \['actions', 'costs'"):
        open_dataset(tmp_path)


def test_vd4rl_and_lerobot_are_recognised(tmp_path: Path) -> None:
    rows = {"action": np.zeros((4, 2)), "reward": np.zeros(4), "is_terminal": np.zeros(4, bool)}
    (tmp_path / "pixels").mkdir()
    np.savez(tmp_path / "pixels/a-4.npz", image=np.zeros((4, 8, 8, 3), np.uint8), **rows)  # type: ignore[arg-type]
    assert open_dataset(tmp_path / "pixels")["frames"].shape == (4, 8, 8, 3)
    assert open_dataset(tmp_path / "pixels/a-4.npz").info["source"] == "V-D4RL"
    (tmp_path / "robot/meta").mkdir(parents=True)
    (tmp_path / "robot/meta/info.json").write_text(json.dumps({"codebase_version": "v2.0", "fps": 1, "features": {}}))
    with pytest.raises(InputError, match=r"codebase_version: must be v3"):
        open_dataset(tmp_path / "robot")


def test_what_is_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent: no such file or folder, nor a task .* ls lists the tasks"):
        open_dataset(tmp_path / "absent")
    (tmp_path / "notes.txt").write_text("hello there")
    with pytest.raises(InputError, match=r"notes.txt: .*expected HDF5 or npz, found b'hello th'"):
        open_dataset(tmp_path / "notes.txt")
    with pytest.raises(InputError, match=r"no dataset of a known kind; expected .* found \['notes.txt'\]"):
        open_dataset(tmp_path)
    with pytest.raises(InputError, match=r"d4rl/hopper: no such task; did you mean"):
        open_dataset("d4rl/hopper")


def test_broken_minari(tmp_path: Path) -> None:
    export_minari(open_dataset(write(tmp_path / "own.hdf5")), "mine/toy-v0")
    file = tmp_path / "MINARI_DATASETS_PATH/mine/toy-v0/data/main_data.hdf5"
    with h5py.File(file, "a") as data:
        data["episode_1/observations"][2, 1] = np.nan
    with pytest.raises(InputError, match=r"main_data.hdf5: episode_1/observations: must be finite, found .* in row 2"):
        open_dataset("minari/mine/toy-v0")
    with h5py.File(file, "a") as data:
        del data["episode_1/actions"]
    with pytest.raises(InputError, match=r"main_data.hdf5: episode_1/actions: no such key"):
        open_dataset("minari/mine/toy-v0")
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"main_data.hdf5: damaged or truncated"):
        open_dataset("minari/mine/toy-v0")


def test_show(tmp_path: Path, capsys) -> None:
    costs = np.zeros(12, np.float32)
    costs[:5] = 30
    write(tmp_path / "SafetyCarRun-v0-40-651.hdf5", costs=costs, timeouts=None)
    assert main(["show", "dsrl/OfflineCarRun-v0", "--data_dir", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    for words in (
        "episodes      2, steps 11",
        "return        5.5 +- 0.5 [5, 6]",
        "(R - 204.28726196289062) / (574.6533203125 - 204.28726196289062)",
        "cost          75 +- 75 [0, 150]",
        "  limit 20      normalised 3.75, 50% of the episodes within it",
        "length        5.5 +- 0.5 [5, 6]",
        "terminations  1 of 2 episodes",
        "missing keys  timeouts, next_observations",
    ):
        assert words in shown
    assert main(["show", "dsrl/OfflineCarRun-v1"]) == 2 and capsys.readouterr().err.startswith("error: task=dsrl/")


def test_convert(tmp_path: Path, capsys) -> None:
    file = write(tmp_path / "own.hdf5")
    assert main(["convert", str(file), str(tmp_path / "out")]) == 0
    assert same(Episodes.load(tmp_path / "out"), open_dataset(file))
    assert main(["convert", str(file), str(tmp_path / "out")]) == 2
    assert "exists already" in capsys.readouterr().err


def test_ls(tmp_path: Path, capsys) -> None:
    write(tmp_path / "hopper-medium.hdf5")
    assert main(["ls", "--data_dir", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 80
    assert lines[0].split() == ["d4rl/hopper-random-v2", "1000", "steps", "Hopper-v4", "not", "here"]
    assert lines[1].endswith("hopper-medium.hdf5 (stand-in)") and "no environment here" in lines[-1]
    for wrong in (["ls", "x"], ["show"], ["convert", "x"], ["fly"]):
        with pytest.raises(SystemExit):
            main(wrong)


def test_download_goes_to_the_cache(tmp_path: Path, monkeypatch, capsys) -> None:
    task = find_offline_task("pen-human-v1")
    monkeypatch.setattr(datasets, "download", lambda url, file: (url, str(file)))
    assert main(["download", "d4rl/pen-human-v1"]) == 0
    assert capsys.readouterr().out == f"{(task.url, f'{tmp_path}/D4RL_DATASET_DIR/pen-human-v1.hdf5')}\n"
