"""D4RL's random data: the rows against the simulator, their checksums, and the file as a task."""

import hashlib
from pathlib import Path

import gymnasium
import h5py
import mujoco
import numpy as np
import pytest

from envs.datasets.__main__ import main
from envs.datasets.opening import open_dataset
from envs.datasets.random_actions import MAKERS, STEPS, RandomData
from envs.datasets.tasks import LOCOMOTION
from mpdiffuser.files import release

# SHA-256 of 100 rows with seed 0, observations rounded to 0.001 and actions
MUJOCO = "3.17.0"
CHECKSUMS = {
    "hopper": "157929591cc4ebe328c66e30bf6267cf9771cc205d13ef87748b1546aff449dd",
    "halfcheetah": "b5e589647750c68a2ce529ccd44f35c68c00a57139b7aeab8ffd3e53c278d198",
    "walker2d": "373c0110afc5fa1d9c4fdd9b6d081a2a8e90c3ac58d225ff8c94e75bbb1772f3",
    "ant": "6ef340dd52df6cb3ae5befd7bf9f3bd1f7376e686d041b0a2bf8ec53af4b0ce1",
}


def checksum(robot: str) -> str:
    arrays = RandomData(robot, 100).arrays(0)
    rounded = (arrays["observations"].round(3) + 0.0).tobytes()
    return hashlib.sha256(rounded + arrays["actions"].tobytes()).hexdigest()


@pytest.mark.parametrize("robot", LOCOMOTION)
def test_rows_are_the_simulators(robot: str) -> None:
    arrays = RandomData(robot, STEPS + 50).arrays(3)
    random = np.random.default_rng([3, 0])
    env = gymnasium.make(LOCOMOTION[robot][0])
    over, width = True, env.observation_space.shape[0]
    for row, (action, reward) in enumerate(zip(arrays["actions"], arrays["rewards"])):
        if over:
            observation, _ = env.reset(seed=int(random.integers(2**31)))
        random.uniform(size=len(action))
        np.testing.assert_allclose(arrays["observations"][row, :width], observation, rtol=1e-5, atol=1e-5)
        observation, expected, terminated, truncated, _ = env.step(action)
        np.testing.assert_allclose(arrays["next_observations"][row, :width], observation, rtol=1e-5, atol=1e-5)
        assert reward == pytest.approx(expected, rel=1e-4, abs=1e-4)
        last = row == STEPS + 49
        assert (arrays["terminals"][row], arrays["timeouts"][row]) == (
            terminated,
            not terminated and (truncated or last),
        )
        over = terminated or truncated
    env.close()
    assert not arrays["observations"][:, width:].any()
    lowest, highest = arrays["actions"].min(0), arrays["actions"].max(0)
    np.testing.assert_allclose([lowest, highest], [env.action_space.low, env.action_space.high], rtol=0.02)


@pytest.mark.skipif(mujoco.__version__ != MUJOCO, reason="the checksums are of another version of mujoco")
@pytest.mark.parametrize("robot", LOCOMOTION)
def test_the_same_seed_gives_the_same_rows(robot: str) -> None:
    assert checksum(robot) == CHECKSUMS[robot]


def test_the_file_is_the_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    for robot, columns in (("hopper", 11), ("ant", 27)):
        name, data = f"d4rl/{robot}-random-v2", RandomData(robot, 200, part=120)
        monkeypatch.setitem(MAKERS, name, data)
        monkeypatch.setattr("envs.datasets.making.MAKERS", MAKERS)
        assert main(["make", name, str(tmp_path / f"{robot}-random-v2.hdf5")]) == 0
        assert [file.name for file in tmp_path.iterdir() if robot in file.name] == [f"{robot}-random-v2.hdf5"]
        with h5py.File(tmp_path / f"{robot}-random-v2.hdf5") as file:
            for key, rows in data.arrays(0, 1).items():
                assert len(file[key]) == 200 and len(rows) == 80
                np.testing.assert_array_equal(file[key][120:], rows)
            assert (file["terminals"][:] | file["timeouts"][:])[[119, 199]].all()
        episodes = open_dataset(name, tmp_path)
        assert episodes.info["stand_in"] and episodes["observations"].shape[1] == columns
        assert episodes.info["environment"]["env_id"] == LOCOMOTION[robot][0]
    capsys.readouterr()
    assert main(["make", "d4rl/hopper-random-v2", str(tmp_path / "folder")]) == 2
    assert "must end in .hdf5" in capsys.readouterr().err


def test_a_file_that_was_cut_off_goes_on(tmp_path: Path) -> None:
    data, parts = RandomData("hopper", 90, part=30), tmp_path / "hopper-random-v2.parts"
    data._made(parts, 0)
    release(parts)
    (parts / "001.npz").unlink()
    kept = data.arrays(0, 2) | {"actions": np.ones((30, 3), np.float32)}
    np.savez(parts / "002.npz", **kept)
    data.write(tmp_path / "hopper-random-v2.hdf5", 0)
    with h5py.File(tmp_path / "hopper-random-v2.hdf5") as file:
        np.testing.assert_array_equal(file["actions"][:60], np.vstack([data.arrays(0, n)["actions"] for n in (0, 1)]))
        assert (file["actions"][60:] == 1).all()
    assert not parts.exists()
