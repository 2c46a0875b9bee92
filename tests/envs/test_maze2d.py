"""maze2d against D4RL's formulas, by hand."""

import numpy as np
import pytest

from envs import make
from envs.maze2d import DECISIONS, MAZES, Maze2D, cells, goal, rewards
from mpdiffuser.errors import InputError

STEP, GEAR, DAMPING, MASS = 0.01, 100.0, 1.0, 1000 * 4 / 3 * np.pi * 0.1**3


def placed(place: tuple[float, float], velocity: tuple[float, float] = (0.0, 0.0), maze: str = "umaze") -> Maze2D:
    env = Maze2D(maze=maze)
    env.reset(seed=0)
    env.data.qpos[:], env.data.qvel[:] = place, velocity
    return env


def test_free_motion_is_eulers_with_implicit_damping() -> None:
    env = placed((3.0, 2.0), (0.3, -0.2))
    place, velocity = env.data.qpos.copy(), env.data.qvel.copy()
    for action in np.random.default_rng(0).uniform(-1, 1, (8, 2)):
        seen = env.step(action)[0]
        velocity = (MASS * velocity + STEP * GEAR * action) / (MASS + STEP * DAMPING)
        place = place + STEP * velocity
        np.testing.assert_allclose(seen, [*place, *velocity], rtol=1e-5)


def test_the_velocity_is_clipped_before_a_decision() -> None:
    env = placed((1.0, 1.0), (0.0, 9.0))
    seen = env.step(np.zeros(2))[0]
    assert seen[3] == pytest.approx(5 * MASS / (MASS + STEP * DAMPING), rel=1e-5)


@pytest.mark.parametrize(("action", "axis", "wall"), [((1, 0), 0, 3.2), ((-1, 0), 0, 2.4), ((0, 1), 1, 3.2)])
def test_walls_stop_the_ball(action: tuple[int, int], axis: int, wall: float) -> None:
    """In cell (3, 3) of the U the free cells are left of it and above it; the ball's radius is 0.1."""
    env = placed((3.0, 3.0) if axis or action[0] > 0 else (3.0, 1.0))
    for _ in range(100):
        seen = env.step(np.array(action))[0]
    assert seen[axis] == pytest.approx(wall, abs=0.01) and abs(seen[2 + axis]) < 0.05


def test_rewards() -> None:
    env = placed((1.4, 1.2))
    assert env.step(np.zeros(2))[1] == 1.0
    assert placed((1.6, 1.0)).step(np.zeros(2))[1] == 0.0
    places = np.array([[1.3, 1.4], [4.0, 5.0]])
    np.testing.assert_allclose(rewards(places, "umaze", "dense"), np.exp([-0.5, -5.0]))
    dense = make({"kind": "maze2d", "maze": "large", "reward": "dense"})
    seen = dense.reset(seed=1)[0]
    assert dense.step(np.zeros(2))[1] == pytest.approx(np.exp(-np.linalg.norm(seen[:2] - [7, 9])), abs=0.01)


@pytest.mark.parametrize("maze", MAZES)
def test_starts_lie_in_all_free_cells(maze: str) -> None:
    env, found = Maze2D(maze=maze), set()
    for seed in range(400):
        seen = env.reset(seed=seed)[0]
        cell = tuple(np.round(seen[:2]).astype(int).tolist())
        assert np.abs(seen[:2] - cell).max() <= 0.1 + 1e-6 and np.abs(seen[2:]).max() < 0.6
        found.add(cell)
    assert found == set(cells(maze)) and tuple(goal(maze)) in found


def test_only_the_time_ends_an_episode_and_peek_changes_nothing() -> None:
    env = Maze2D()
    env.reset(seed=3)
    actions = np.random.default_rng(1).uniform(-1, 1, (DECISIONS["umaze"], 2))
    ahead = env.peek(actions[:5])
    ends = []
    for number, action in enumerate(actions):
        seen, _, terminated, truncated, info = env.step(action)
        ends.append((terminated, truncated))
        if number < 5:
            np.testing.assert_array_equal(seen, ahead[number])
    assert ends == [(False, False)] * 299 + [(False, True)] and info["cost"] == 0.0
    assert np.ptp(env.render().reshape(-1, 3), 0).min() > 20
    env.close()


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"maze": "huge", "reward": "sparse"}, "maze2d: maze: must be one of umaze, medium, large, found 'huge'"),
        ({"maze": "umaze", "reward": "rich"}, "maze2d: reward: must be one of sparse, dense, found 'rich'"),
        ({"maze": "umaze"}, r"environment\.reward: is missing"),
    ],
)
def test_wrong_records(record: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make({"kind": "maze2d", **record})
    with pytest.raises(InputError, match="must be"):
        Maze2D().step(np.array([0.0, np.nan]))
