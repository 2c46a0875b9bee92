"""antmaze against gymnasium's ant with D4RL's constants, and D4RL's rules by hand."""

import gymnasium
import mujoco
import numpy as np
import pytest

from envs import make
from envs.ant_maze import DECISIONS, MAZES, AntMaze, places
from mpdiffuser.errors import InputError


def placed(place: tuple[float, float], maze: str = "umaze") -> AntMaze:
    env = AntMaze(maze=maze)
    env.reset(seed=0)
    env.data.qpos[:2] = place
    return env


def test_free_motion_is_gymnasiums_ant_with_d4rls_constants() -> None:
    env = placed((4.0, 0.0), "medium")
    ant = gymnasium.make("Ant-v5").unwrapped
    model = ant.model  # type: ignore[attr-defined]
    model.opt.timestep, model.geom_solimp[:, :3], model.actuator_gear[:, 0] = 0.02, (0.8, 0.8, 0.01), 30
    data = mujoco.MjData(model)
    data.qpos[:], data.qvel[:] = env.data.qpos, env.data.qvel
    for action in np.random.default_rng(0).uniform(-1, 1, (12, 8)):
        seen = env.step(action)[0]
        data.ctrl[:] = action
        mujoco.mj_step(model, data, 5)
        np.testing.assert_allclose(seen, [*data.qpos, *data.qvel], atol=1e-4)
    assert env.decision_seconds == pytest.approx(0.1)


@pytest.mark.parametrize("maze", MAZES)
def test_starts_and_goals(maze: str) -> None:
    env, found = AntMaze(maze=maze), []
    middle = {"umaze": (0, 8), "medium": (20, 20), "large": (32, 24)}[maze]  # D4RL's goal cells
    for seed in range(300):
        seen, info = env.reset(seed=seed)
        assert np.abs(seen[:2]).max() <= 0.1 and abs(seen[2] - 0.75) <= 0.1
        np.testing.assert_allclose(info["goal"][:2], env.goal, rtol=1e-6)
        found.append(env.goal - middle)
    low, high = np.min(found, 0), np.max(found, 0)
    assert (low >= 0).all() and (low < 0.2).all() and (high <= 1.5).all() and (high > 1.3).all()
    np.testing.assert_allclose(np.mean(found, 0), 0.75, atol=0.1)


def test_the_episode_ends_at_the_goal() -> None:
    for distance, reached in ((0.3, True), (0.9, False)):
        env = placed((0, 0))
        env.data.qpos[:2] = env.goal - np.array([0, distance])
        env.data.qvel[:] = 0
        _, reward, over, late, _ = env.step(np.zeros(8))
        assert (reward, over, late) == (float(reached), reached, False)


def test_walls_stop_the_ant() -> None:
    """In the U the row of the start is closed towards negative x: the wall's side is 2 m from the cell's middle."""
    env = placed((-0.8, 0.0))
    for _ in range(20):
        env.data.qvel[0] = -3.0
        seen = env.step(np.zeros(8))[0]
    assert -2 < seen[0] < -0.8
    free = placed((2.0, 0.0))
    for _ in range(5):
        free.data.qvel[0] = 3.0
        seen = free.step(np.zeros(8))[0]
    assert seen[0] > 2.8


def test_mazes_have_their_walls() -> None:
    for maze, rows in MAZES.items():
        env = AntMaze(maze=maze)
        boxes = env.model.geom_pos[env.model.geom_type == mujoco.mjtGeom.mjGEOM_BOX][:, :2]
        assert {tuple(each) for each in boxes} == {tuple(each) for each in places(maze, "#")}
        assert len(boxes) == sum(row.count("#") for row in rows)


def test_an_episode_has_its_time_and_peeking_changes_nothing() -> None:
    env = make({"kind": "antmaze", "maze": "umaze"})
    env.reset(seed=1)
    actions = np.random.default_rng(1).uniform(-1, 1, (DECISIONS["umaze"], 8)).astype(np.float32)
    ahead = env.peek(actions[:3])
    for step, action in enumerate(actions):
        seen, reward, over, late, _ = env.step(action)
        if step < 3:
            np.testing.assert_array_equal(seen, ahead[step])
        assert (reward, over) == (0.0, False) and late == (step == len(actions) - 1)
    env.close()


def test_refusals() -> None:
    with pytest.raises(InputError, match="maze: must be one of umaze, medium, large, found 'garden'"):
        make({"kind": "antmaze", "maze": "garden"})
    env = AntMaze()
    env.reset(seed=0)
    with pytest.raises(InputError, match=r"must be \(8,\) finite numbers"):
        env.step(np.full(8, np.inf))
