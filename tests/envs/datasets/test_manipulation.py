"""OGBench's cube, scene and puzzle data: the rows against the package's simulator, and the file as a task."""

import hashlib
from pathlib import Path

import gymnasium
import mujoco
import numpy as np
import pytest

from envs.datasets.__main__ import main
from envs.datasets.manipulation import EPISODES, KINDS, MAKERS, ManipulationData, in_sight
from envs.datasets.opening import open_dataset
from envs.ogbench import import_package

# of 40 rows with seed 0, rounded to 0.001; another version of mujoco may move the arm otherwise
MUJOCO = "3.17.0"
CHECKSUMS = {
    ("cube-single", "play"): "1cbcc0c5c53d872d",
    ("cube-single", "noisy"): "87dc569d6646c570",
    ("cube-double", "play"): "6d81e67c21b0e753",
    ("cube-double", "noisy"): "a54dd6e4f7ae127f",
    ("cube-triple", "play"): "15f2c96246d6f712",
    ("cube-triple", "noisy"): "5022f77e2f0ecc1d",
    ("cube-quadruple", "play"): "43df8a30201d8303",
    ("cube-quadruple", "noisy"): "c352978d051e9fe3",
    ("scene", "play"): "16d44c9d6b228c49",
    ("scene", "noisy"): "7588671bbb29ea1f",
    ("puzzle-3x3", "play"): "4727908363003f21",
    ("puzzle-3x3", "noisy"): "5a8de2b6110ec4da",
    ("puzzle-4x4", "play"): "8f393963f27573a3",
    ("puzzle-4x4", "noisy"): "63b61e05e5549434",
    ("puzzle-4x5", "play"): "e3afcf5248e033cd",
    ("puzzle-4x5", "noisy"): "755b78cf39d1ce7e",
    ("puzzle-4x6", "play"): "b70d38cf06cd58ec",
    ("puzzle-4x6", "noisy"): "4d29ad98a040e08e",
}


def rows(task: str, kind: str) -> dict[str, np.ndarray]:
    return ManipulationData(task, kind, rows=40).episode(0, 0)


def checksum(found: dict[str, np.ndarray]) -> str:
    rounded = [np.round(found[key].astype(float), 3) + 0.0 for key in sorted(found)]  # + 0.0: no -0
    return hashlib.sha256(b"".join(each.tobytes() for each in rounded)).hexdigest()[:16]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("task", ["cube-double", "scene", "puzzle-3x3"])
def test_rows_are_the_simulators(task: str, kind: str) -> None:
    found = rows(task, kind)
    assert np.abs(found["actions"]).max() <= 1 and found["terminals"].nonzero()[0].tolist() == [39]
    import_package()
    env = gymnasium.make(f"{task}-v0", mode="data_collection", disable_env_checker=True)
    env.reset(seed=9)
    inner = env.unwrapped
    for row in (0, 17, 39):
        state = [found[key][row] for key in ("qpos", "qvel", "button_states") if key in found]
        inner.set_state(*state)
        # but for the hand's place, which lags a physics step, and the force of its contact, which is no part of a state
        same = np.delete(np.arange(len(found["observations"][row])), [12, 13, 14, 18])
        np.testing.assert_allclose(inner.compute_observation()[same], found["observations"][row][same], atol=2e-3)
    env.close()


@pytest.mark.skipif(mujoco.__version__ != MUJOCO, reason="the checksums are of another version of mujoco")
@pytest.mark.parametrize(("task", "kind"), CHECKSUMS)
def test_the_same_seed_gives_the_same_rows(task: str, kind: str) -> None:
    assert checksum(rows(task, kind)) == CHECKSUMS[task, kind]


def test_all_tasks_have_a_checksum() -> None:
    assert {f"ogbench/{task}-{kind}-v0" for task, kind in CHECKSUMS} == MAKERS.keys()


def test_an_episode_does_not_depend_on_those_before() -> None:
    dataset = ManipulationData("cube-single", "noisy", rows=10)
    first = dataset.episode(0, 1)
    other, again = dataset.episode(0, 2), dataset.episode(0, 1)
    for key, values in first.items():
        np.testing.assert_array_equal(values, again[key])
    assert not np.array_equal(first["actions"], other["actions"])


@pytest.mark.slow
def test_the_oracle_moves_the_cube_and_chooses_new_targets() -> None:
    places = ManipulationData("cube-single", "play").episode(0, 0)["qpos"][:, 14:17]
    lifted = places[:, 2] > 0.06
    assert (np.diff(lifted.astype(int)) == 1).sum() >= 4  # it is picked up again and again
    on_table = places[~lifted][:, :2]
    assert np.ptp(on_table, axis=0).max() > 0.1


def test_the_cube_in_sight() -> None:
    places = np.array([[0.4, 0.0, 0.02], [0.4, 0.28, 0.02]])
    assert in_sight(places) and not in_sight(places + np.array([0, 0.02, 0]))
    assert in_sight(np.array([[0.4, -0.31, 0.07]])) and not in_sight(np.array([[0.4, -0.31, 0.02]]))


def test_the_files_are_the_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    name, file = "ogbench/puzzle-3x3-noisy-v0", tmp_path / "data" / "puzzle-3x3-noisy-v0.npz"
    dataset = ManipulationData("puzzle-3x3", "noisy", 3, 12)
    monkeypatch.setitem(MAKERS, name, dataset)
    monkeypatch.setattr("envs.datasets.making.MAKERS", MAKERS)
    assert main(["make", name, str(file), "--seed", "3"]) == 0
    arrays, second = np.load(file), np.load(file.with_name("puzzle-3x3-noisy-v0-val.npz"))
    for number, rows_of in enumerate(np.split(arrays["observations"], 3)):
        np.testing.assert_allclose(rows_of, dataset.episode(3, number)["observations"], atol=1e-5)
    np.testing.assert_allclose(second["observations"], dataset.episode(3, 3)["observations"], atol=1e-5)
    assert [each.name for each in file.parent.iterdir() if each.suffix != ".npz"] == []
    found = open_dataset(name, file.parent)
    assert found.info["stand_in"] and found.info["asks_for_goals"] and len(found) == 3
    assert found.info["environment"] == {"kind": "ogbench", "env_id": "puzzle-3x3-v0"}
    capsys.readouterr()
    assert main(["make", name, str(tmp_path / "folder")]) == 2 and "must end in .npz" in capsys.readouterr().err
    file.unlink()
    assert main(["make", name, str(file)]) == 2 and "-val.npz: exists already" in capsys.readouterr().err
    assert EPISODES["puzzle-4x6"] == 5000
