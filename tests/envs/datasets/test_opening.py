"""One function opens every kind of dataset."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from envs.datasets import open_dataset, open_task
from envs.datasets.minari import export_minari
from mpdiffuser.episodes import Episodes
from mpdiffuser.errors import InputError

Transitions = Callable[..., dict[str, np.ndarray]]


def same_episodes(one: Episodes, other: Episodes) -> bool:
    return set(one.arrays) == set(other.arrays) and all(np.array_equal(one[key], other[key]) for key in one.arrays)


def test_a_task(tmp_path: Path, capsys, write: Callable[..., Path]) -> None:
    write(tmp_path / "hopper_medium-v2.hdf5")
    episodes = open_dataset("d4rl/hopper-medium-v2", tmp_path)
    expected = {"suite": "d4rl", "task": "hopper-medium-v2", "stand_in": False}
    expected |= {"environment": {"kind": "gymnasium", "env_id": "Hopper-v4", "speed_limit": None}}
    assert {key: episodes.info[key] for key in expected} == expected and not capsys.readouterr().out
    opened = open_dataset(tmp_path / "hopper_medium-v2.hdf5")  # known by its name
    assert same_episodes(opened, episodes) and opened.info == episodes.info
    (tmp_path / "hopper_medium-v2.hdf5").rename(tmp_path / "hopper-medium.hdf5")
    assert open_dataset("d4rl/hopper-medium-v2", tmp_path).info["stand_in"] is True
    assert "a stand-in; its results are no d4rl results" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"d4rl/hopper-expert-v2: no file; tried .* download d4rl/hopper-expert-v2"):
        open_dataset("d4rl/hopper-expert-v2")


def test_costs_and_time_limits_of_tasks(tmp_path: Path, write: Callable[..., Path]) -> None:
    file = write(tmp_path / "SafetyBallRun-v0-80-940.hdf5", timeouts=None)
    with pytest.raises(InputError, match=r"SafetyBallRun-v0-80-940.hdf5: costs: no such key; expected of dsrl/Off"):
        open_dataset("dsrl/OfflineBallRun-v0", tmp_path)
    write(file, timeouts=None, costs=np.ones(12, np.float32))
    episodes = open_dataset("dsrl/OfflineBallRun-v0", tmp_path)
    assert "environment" not in episodes.info and episodes.lengths.tolist() == [5, 6]
    velocity = write(tmp_path / "SafetyHopperVelocity.hdf5", costs=np.ones(12, np.float32))
    assert velocity.exists()
    info = open_dataset("dsrl/OfflineHopperVelocityGymnasium-v1", tmp_path).info
    assert (
        info["environment"] == {"kind": "gymnasium", "env_id": "Hopper-v4", "speed_limit": 0.7402} and info["stand_in"]
    )


def test_ants_contact_forces_that_are_zero(
    tmp_path: Path, write: Callable[..., Path], transitions: Callable[..., dict[str, np.ndarray]]
) -> None:
    wide = np.zeros((12, 111), np.float32)
    wide[:, :27] = transitions(12, 27)["observations"]
    file = write(tmp_path / "ant_medium-v2.hdf5", observations=wide)
    assert open_dataset("d4rl/ant-medium-v2", tmp_path)["observations"].shape == (13, 27)
    wide[3, 50] = 1
    write(file, observations=wide)
    with pytest.raises(InputError, match=r"observations: must be 0 from column 27 on"):
        open_dataset("d4rl/ant-medium-v2", tmp_path)


def test_every_kind_gives_the_same_episodes(
    tmp_path: Path, write: Callable[..., Path], transitions: Callable[..., dict[str, np.ndarray]]
) -> None:
    file = write(tmp_path / "own.hdf5")
    episodes = open_dataset(file)
    np.savez(tmp_path / "own.npz", **transitions())  # type: ignore[arg-type]
    episodes.save(tmp_path / "folder")
    export_minari(episodes, "mine/toy-v0")
    minari = tmp_path / "MINARI_DATASETS_PATH/mine/toy-v0"
    sources: list[str | Path] = [tmp_path / "own.npz", tmp_path / "folder", "minari/mine/toy-v0", minari]
    for source in [*sources, minari / "data/main_data.hdf5", str(file)]:
        assert same_episodes(open_dataset(source), episodes), source


def test_a_folder_of_recordings(tmp_path: Path, transitions: Transitions) -> None:
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


def test_the_rate_of_a_folder_is_that_of_its_files(tmp_path: Path, transitions: Transitions) -> None:
    seconds: dict[str, float | None] = {"a": 0.02, "b": None, "c": 0.02}
    for name, value in seconds.items():
        more = {} if value is None else {"decision_seconds": np.array(value)}
        np.savez(tmp_path / f"{name}.npz", **transitions(), **more)  # type: ignore[arg-type]
    assert open_dataset(tmp_path).info["decision_seconds"] == 0.02
    np.savez(tmp_path / "d.npz", **transitions(), decision_seconds=np.array(0.1))  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"decision_seconds: must be the same in all files.* 0.02 in .*a.npz"):
        open_dataset(tmp_path)


def test_a_file_without_a_step_is_left_out(tmp_path: Path, transitions: Transitions) -> None:
    np.savez(tmp_path / "long.npz", **transitions())  # type: ignore[arg-type]
    whole = open_dataset(tmp_path)
    one = {key: array[:1] for key, array in transitions().items()}
    np.savez(tmp_path / "short.npz", **one | {"terminals": np.zeros(1, bool)})  # type: ignore[arg-type]
    episodes = open_dataset(tmp_path)
    assert same_episodes(episodes, whole) and episodes.info["left_out"]["short.npz"] == "no episode with a step"
    (tmp_path / "long.npz").unlink()
    with pytest.raises(InputError, match="no episode with a step in 1 files"):
        open_dataset(tmp_path)


def test_a_camera_of_ones_own_may_be_called_image(tmp_path: Path, transitions: Transitions) -> None:
    """V-D4RL's actions are called `action`."""
    rows = transitions(12)
    np.savez(tmp_path / "own.npz", image=np.zeros((12, 8, 8, 3), np.uint8), **rows)  # type: ignore[arg-type]
    for source in (tmp_path, tmp_path / "own.npz"):
        assert open_dataset(source)["image"].shape[1:] == (8, 8, 3)


def test_vd4rl_and_lerobot_are_recognised(tmp_path: Path) -> None:
    rows = {"action": np.zeros((4, 2)), "reward": np.zeros(4), "is_terminal": np.zeros(4, bool)}
    (tmp_path / "pixels").mkdir()
    np.savez(tmp_path / "pixels/a-4.npz", image=np.zeros((4, 8, 8, 3), np.uint8), **rows)  # type: ignore[arg-type]
    assert open_dataset(tmp_path / "pixels")["frames"].shape == (4, 8, 8, 3)
    assert open_dataset(tmp_path / "pixels/a-4.npz").info["source"] == "V-D4RL"
    (tmp_path / "robot/meta").mkdir(parents=True)
    (tmp_path / "robot/meta/info.json").write_text(json.dumps({"codebase_version": "v1.4", "fps": 1, "features": {}}))
    with pytest.raises(InputError, match=r"codebase_version: must be v3"):
        open_dataset(tmp_path / "robot")


def test_paths_that_look_like_ids(tmp_path: Path, monkeypatch, write: Callable[..., Path]) -> None:
    """What exists is a path; an id is a task also where a folder has its name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dsrl").mkdir()
    (tmp_path / "minari").mkdir()
    write(tmp_path / "dsrl/walk.hdf5")
    assert same_episodes(open_dataset("dsrl/walk.hdf5"), open_dataset(tmp_path / "dsrl/walk.hdf5"))
    with pytest.raises(
        InputError, match=r"no such task; .* There is no file dsrl/run.hdf5 either: give .* \./dsrl/run"
    ):
        open_dataset("dsrl/run.hdf5")
    with pytest.raises(InputError, match=r"Minari dataset 'toy-v0': not in"):
        open_dataset("minari/toy-v0")
    (tmp_path / "minari/toy-v0").mkdir()
    with pytest.raises(InputError, match=r"minari/toy-v0: no dataset of a known kind"):
        open_dataset("minari/toy-v0")
    (tmp_path / "d4rl/hopper-medium-v2").mkdir(parents=True)
    write(tmp_path / "hopper_medium-v2.hdf5")
    assert open_task("hopper-medium-v2", "d4rl", tmp_path).info["task"] == "hopper-medium-v2"
    (tmp_path / "gone.npz").symlink_to("nowhere")
    with pytest.raises(InputError, match=r"gone.npz: leads nowhere \(a broken link\)"):
        open_dataset("gone.npz")


def test_no_memory(tmp_path: Path, monkeypatch, write: Callable[..., Path]) -> None:
    def fill(*arguments: object, **more: object) -> None:
        raise MemoryError("Unable to allocate 9 TB")

    monkeypatch.setattr("envs.datasets.opening.read_flat", fill)
    with pytest.raises(InputError, match=r"own.hdf5: does not fit into the memory \(Unable to allocate 9 TB\); close"):
        open_dataset(write(tmp_path / "own.hdf5"))


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


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read(tmp_path: Path, write: Callable[..., Path]) -> None:
    (tmp_path / "folder").mkdir()
    file = write(tmp_path / "folder/own.hdf5")
    for path in (file, tmp_path / "folder"):
        path.chmod(0)
        with pytest.raises(InputError, match=r"folder.*: no permission to read it; change its permissions"):
            open_dataset(path)
        path.chmod(0o700)


def test_broken_minari(tmp_path: Path, write: Callable[..., Path]) -> None:
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
