"""OGBench's environments: pairs of start and goal, rewards and ends, against the package itself."""

from typing import Any

import gymnasium
import numpy as np
import pytest

from envs import make
from envs.ogbench import import_package, make_ogbench
from envs.record import environment_of
from mpdiffuser.errors import InputError


def test_the_seed_chooses_the_pair_and_all_that_is_random() -> None:
    env: Any = make(environment_of("ogbench/pointmaze-medium-v0", None) or {})
    world, found = env.unwrapped, []
    np.random.seed(3)
    before = np.random.get_state()[1].copy()  # type: ignore[index]
    for seed in (1000, 1001, 1002, 1003, 1004, 1001):
        seen, info = env.reset(seed=seed)
        pair = world.task_infos[seed % 5]
        assert np.abs(seen - pair["init_xy"]).max() <= 1 and np.abs(info["goal"] - pair["goal_xy"]).max() <= 1
        np.testing.assert_allclose(info["goal"], world.cur_goal_xy, rtol=1e-6)
        found.append((*seen, *info["goal"]))
    assert found[1] == found[5] and len(set(found)) == 5
    np.testing.assert_array_equal(before, np.random.get_state()[1])  # type: ignore[index]
    assert env.decision_seconds > 0


def test_reaching_the_goal_pays_1_and_ends_the_episode() -> None:
    env: Any = make_ogbench("antmaze-medium-v0")
    env.reset(seed=0)
    assert env.step(np.zeros(8))[1:4] == (0.0, False, False)
    env.unwrapped.set_xy(np.array(env.unwrapped.cur_goal_xy))
    assert env.step(np.zeros(8))[1:4] == (1.0, True, False)


@pytest.mark.filterwarnings("ignore:.*precision lowered")
def test_an_arm_does_what_the_package_does() -> None:
    import_package()
    ours, theirs = make_ogbench("cube-single-v0"), gymnasium.make("cube-single-v0")
    seen, info = ours.reset(seed=2)
    np.testing.assert_allclose(seen, theirs.reset(seed=2, options={"task_id": 3})[0], rtol=1e-5)
    for action in np.random.default_rng(0).uniform(-1, 1, (10, 5)).astype(np.float32):
        seen, reward, *_ = ours.step(action)
        expected, paid, *_ = theirs.step(action)
        np.testing.assert_allclose(seen, expected, atol=1e-5)
        assert reward == paid == 0
    told = ours.reset(seed=2)[1]
    np.testing.assert_array_equal(told["goal"], info["goal"])  # the package's own differ: they are not seeded
    ours.close()
    theirs.close()


def test_a_film_of_an_arm() -> None:
    """The package draws its cubes, but does not say so in its render_mode."""
    env = make({"kind": "ogbench", "env_id": "cube-single-v0"})
    env.reset(seed=0)
    picture = env.render()
    assert picture is not None and picture.shape == (200, 200, 3) and picture.std() > 10
    env.close()


def test_pictures() -> None:
    env = make_ogbench("visual-cube-single-v0", "frames")
    seen, info = env.reset(seed=1)
    assert seen.shape == info["goal"].shape == (64, 64, 3) and seen.dtype == np.uint8  # type: ignore[union-attr]
    env.close()


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong in ("pointmaze-tiny-v0", "CartPole-v1", "cube-single-singletask-v0", "powderworld-easy-v0"):
        with pytest.raises(InputError, match=f"ogbench/{wrong}: no such environment; allowed: .*pointmaze-medium-v0"):
            make({"kind": "ogbench", "env_id": wrong})
    monkeypatch.setitem(__import__("sys").modules, "ogbench", None)
    with pytest.raises(InputError, match=r"pip install 'mpdiffuser\[ogbench\]'"):
        make_ogbench("pointmaze-medium-v0")
