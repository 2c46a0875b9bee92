"""The table of public tasks."""

import re
from pathlib import Path

import pytest

from envs.datasets.tasks import OFFLINE_TASKS, cost_score, find_file, find_offline_task
from mpdiffuser.errors import InputError


def test_all_ids_are_there() -> None:
    families: dict[str, int] = {}
    for task in OFFLINE_TASKS.values():
        family = re.match(r"(?:Offline)?([a-z0-9]+|[A-Z].*)", task.name)
        assert family
        kind = family[1] if task.suite == "d4rl" else task.name.partition("-")[0]
        kind = "ogbench" if task.suite == "ogbench" else kind
        families[kind] = families.get(kind, 0) + 1
        assert task.url.startswith("http") and task.url.endswith(task.file) and task.file.endswith((".hdf5", ".npz"))
        assert task.low < task.high and task.score(task.low) == 0
        assert task.score(task.high) == pytest.approx(1 if task.suite == "dsrl" else 100)
        assert (task.suite == "dsrl") == bool(task.limits)
    locomotion = dict.fromkeys(("hopper", "halfcheetah", "walker2d", "ant"), 6)
    others = {"maze2d": 6, "antmaze": 6, "kitchen": 3, "ogbench": 82} | dict.fromkeys(
        ("pen", "hammer", "door", "relocate"), 3
    )
    assert {kind: count for kind, count in families.items() if not kind.startswith("Offline")} == locomotion | others
    assert sum(kind.startswith("Offline") for kind in families) == 29
    assert len({task.url for task in OFFLINE_TASKS.values()}) == len(OFFLINE_TASKS) == 162


@pytest.mark.parametrize(
    ("name", "steps", "file"),
    [
        ("hopper-medium-replay-v2", 1000, "gym_mujoco_v2/hopper_medium_replay-v2.hdf5"),
        ("maze2d-umaze-v1", 300, "maze2d/maze2d-umaze-sparse-v1.hdf5"),
        ("maze2d-large-dense-v1", 800, "maze2d/maze2d-large-dense-v1.hdf5"),
        ("antmaze-umaze-v2", 700, "Ant_maze_u-maze_noisy_multistart_False_multigoal_False_sparse_fixed.hdf5"),
        ("kitchen-mixed-v0", 280, "kitchen/kitchen_microwave_kettle_bottomburner_light-v0.hdf5"),
        ("pen-cloned-v1", 100, "hand_dapg_v1/pen-cloned-v1.hdf5"),
        ("antmaze-large-explore-v0", 1000, "ogbench/antmaze-large-explore-v0.npz"),
        ("visual-cube-double-play-v0", 500, "ogbench/visual-cube-double-play-v0.npz"),
        ("OfflineCarRun-v0", 200, "SafetyCarRun-v0-40-651.hdf5"),
        ("OfflineCarGoal1Gymnasium-v0", 1000, "SafetyCarGoal1Gymnasium-v0-120-1671.hdf5"),
        ("OfflineHopperVelocityGymnasium-v1", 1000, "SafetyHopperVelocityGymnasium-v1-250-2240.hdf5"),
    ],
)
def test_some_facts(name: str, steps: int, file: str) -> None:
    task = find_offline_task(name)
    assert task.episode_steps == steps and task.url.endswith(file)


def test_scores() -> None:
    assert find_offline_task("kitchen-partial-v0", "d4rl").score(3) == 75
    assert find_offline_task("OfflineCarRun-v0").limits == (10, 20, 40)
    assert find_offline_task("OfflineAntVelocityGymnasium-v1").limits == (20, 40, 80)
    assert cost_score(30, 20) == 1.5 and cost_score(0, 0) == 1 and cost_score(3, 0) == 4


def test_an_unknown_id_names_its_neighbours() -> None:
    with pytest.raises(InputError, match=r"task=d4rl/hoper-medium-v2: no such task; did you mean hopper-medium-v2"):
        find_offline_task("hoper-medium-v2", "d4rl")
    with pytest.raises(InputError, match=r"dsrl/hopper-medium-v2: no such task"):
        find_offline_task("hopper-medium-v2", "dsrl")


@pytest.mark.parametrize(
    ("name", "file", "stand_in"),
    [
        ("hopper-medium-v2", "hopper_medium-v2.hdf5", False),
        ("hopper-medium-v2", "hopper-medium-v2.hdf5", True),
        ("hopper-medium-v2", "hopper-medium.hdf5", True),
        ("OfflinePointGoal1Gymnasium-v0", "SafetyPointGoal1Gymnasium-v0-100-2022.hdf5", False),
        ("OfflinePointGoal1Gymnasium-v0", "SafetyPointGoal1Gymnasium-v0-99-7.hdf5", True),
        ("OfflinePointGoal1Gymnasium-v0", "SafetyPointGoal1.hdf5", True),
    ],
)
def test_files_are_found(tmp_path: Path, monkeypatch, name: str, file: str, stand_in: bool) -> None:
    (tmp_path / file).touch()
    task = find_offline_task(name)
    assert find_file(task, tmp_path) == (tmp_path / file, stand_in)
    monkeypatch.setenv(f"{task.suite.upper()}_DATASET_DIR", str(tmp_path))
    assert find_file(task) == (tmp_path / file, stand_in)


def test_a_missing_file(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv("DSRL_DATASET_DIR", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(InputError) as error:
        find_file(find_offline_task("OfflineCarRun-v0"))
    for words in (
        "dsrl/OfflineCarRun-v0: no file",
        f"{tmp_path}/.dsrl/datasets/SafetyCarRun-v0-40-651.hdf5",
        f"{tmp_path}/.dsrl/datasets/SafetyCarRun-v0-*.hdf5",
        "https://huggingface.co/datasets/YYY-45/DSRL/resolve/main/SafetyCarRun-v0-40-651.hdf5",
        "python -m envs.datasets download dsrl/OfflineCarRun-v0",
    ):
        assert words in str(error.value)
