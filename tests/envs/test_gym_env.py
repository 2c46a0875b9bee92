"""Environments of gymnasium against gymnasium itself, and environments with all sorts of spaces."""

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit, TransformObservation

from envs.gym_env import GymEnv, make_own, make_registered
from envs.vector import VectorEnv
from mpdiffuser.errors import InputError

PICTURE = spaces.Box(0, 255, (4, 6, 3), np.uint8)


class Gauge(gymnasium.Env):
    """Adds up its actions; every observation is a sample of its space, whatever that is."""

    action_space = spaces.Box(np.array([0.0, -5.0], np.float32), np.array([2.0, 5.0], np.float32))
    decision_seconds = 0.1

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space | None = None) -> None:
        self.observation_space = observation_space
        self.action_space = action_space or Gauge.action_space  # type: ignore[assignment]
        self.taken: list[np.ndarray] = []

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict]:
        self.observation_space.seed(seed)
        self.seen = self.observation_space.sample()
        return self.seen, {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict]:
        assert self.action_space.contains(action)
        self.taken.append(action)
        self.seen = self.observation_space.sample()
        return self.seen, np.float32(1), np.bool_(len(self.taken) > 2), len(self.taken) > 1, {"cost": 0.5}


class Told(Gauge):
    """Its reset gives a goal."""

    def __init__(self, observation_space: spaces.Space, goal: Any) -> None:
        super().__init__(observation_space)
        self.goal = goal

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict]:
        return super().reset(seed=seed)[0], {"goal": self.goal, "other": 1}


def test_a_goal_is_an_observation() -> None:
    """Anything else in info["goal"] is none: the target's place, say, where an observation has more than places."""
    line = spaces.Box(-9, 9, (2,))
    both = spaces.Dict({"place": line, "frames": PICTURE})
    goal = {"place": np.array([3.0, 4.0]), "frames": np.full(PICTURE.shape, 7, np.uint8), "more": 1}
    np.testing.assert_array_equal(GymEnv(Told(line, np.array([1.0, 2.0])), "told").reset()[1]["goal"], [1, 2])
    np.testing.assert_array_equal(GymEnv(Told(both, goal), "told").reset()[1]["goal"], [3, 4])
    seen = GymEnv(Told(both, goal), "told", ("frames", "place")).reset()[1]["goal"]
    np.testing.assert_array_equal(seen["frames"], goal["frames"])
    np.testing.assert_array_equal(seen["place"], goal["place"])
    for space, other in ((line, np.zeros(3)), (line, None), (line, "north"), (both, {"place": np.zeros(2)}), (both, 1)):
        observation = "states" if space is line else "both"
        assert "goal" not in GymEnv(Told(space, other), "told", observation).reset()[1]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "env_id", ["Hopper-v4", "HalfCheetah-v4", "InvertedPendulum-v5", "Pendulum-v1", "MountainCarContinuous-v0"]
)
def test_it_is_gymnasiums(env_id: str) -> None:
    """In the environment's own units, and clipped to its bounds."""
    reference, env = gymnasium.make(env_id), make_registered(env_id)
    space: Any = reference.action_space
    assert env.action_space == space and env.observation_space.shape == reference.observation_space.shape
    random = np.random.default_rng(0)
    a, b = reference.reset(seed=5)[0], env.reset(seed=5)[0]
    np.testing.assert_array_equal(a.astype(np.float32), b)
    for _ in range(40):
        action = random.uniform(1.5 * space.low, 1.5 * space.high).astype(np.float32)
        expected, found = reference.step(np.clip(action, space.low, space.high)), env.step(action)
        np.testing.assert_array_equal(expected[0].astype(np.float32), found[0])
        assert found[1:4] == (pytest.approx(expected[1]), expected[2], expected[3])
        if expected[2]:
            break


def test_a_peek_is_what_happens_then_and_leaves_no_trace() -> None:
    env = make_registered("InvertedPendulum-v5")
    env.reset(seed=1)
    actions = np.random.default_rng(0).uniform(-3, 3, (5, 1)).astype(np.float32)
    before = env.get_physics()
    seen = env.peek(actions)
    np.testing.assert_array_equal(env.get_physics(), before)
    for action, expected in zip(actions, seen):
        np.testing.assert_array_equal(env.step(action)[0], expected)


def test_only_what_can_be_restored_is_peeked_at() -> None:
    assert make_registered("Hopper-v4").can_peek and not make_registered("Pendulum-v1").can_peek

    class Peeking(Gauge):
        def peek(self, actions: np.ndarray) -> list[np.ndarray]:
            return [self.seen + action.sum() for action in actions]

    box = spaces.Box(-1, 1, (3,))
    assert not GymEnv(Gauge(box), "gauge").can_peek
    env = GymEnv(Peeking(box), "gauge")
    first = env.reset(seed=0)[0]
    assert env.can_peek
    np.testing.assert_array_equal(env.peek(np.array([[1, 1], [9, 9]])), first + np.array([[2], [7]], np.float32))
    limited = GymEnv(TimeLimit(Peeking(box), 9), "gauge")
    assert limited.can_peek and limited.decision_seconds == 0.1
    first = limited.reset(seed=0)[0]
    np.testing.assert_array_equal(limited.peek(np.array([[1, 1]])), first[None] + 2)
    doubled = GymEnv(TransformObservation(Peeking(box), lambda seen: 2 * seen, box), "gauge")
    assert not doubled.can_peek  # its peek is not what it shows


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("env_id", "planar"), [("HalfCheetah-v4", False), ("Ant-v4", True)])
def test_a_step_too_fast_costs(env_id: str, planar: bool) -> None:
    reference = gymnasium.make(env_id)
    random, limit = np.random.default_rng(0), 0.3
    reference.reset(seed=2)
    vector = VectorEnv({"kind": "gymnasium", "env_id": env_id, "speed_limit": limit}, 1, 1)
    try:
        vector.reset(seed=[2])
        paid = []
        for _ in range(30):
            action = random.uniform(-1, 1, reference.action_space.shape).astype(np.float32)
            info = reference.step(action)[4]
            speed = np.hypot(info["x_velocity"], info["y_velocity"]) if planar else info["x_velocity"]
            paid.append(vector.step(action[None])[4]["cost"][0])
            assert paid[-1] == float(speed > limit)
        assert 0 < sum(paid) < 30
    finally:
        vector.close()


def test_an_environment_without_a_speed_has_no_limit() -> None:
    with pytest.raises(InputError, match=r"'Pendulum-v1': speed_limit: only gymnasium's MuJoCo .* found 0\.3"):
        make_registered("Pendulum-v1", 0.3)
    env = make_registered("Reacher-v5", 0.3)
    env.reset(seed=0)
    with pytest.raises(InputError, match=r"'Reacher-v5': speed_limit: this environment does not tell its speed"):
        env.step(np.zeros(2))


def test_states_and_pictures_of_a_dict_come_in_its_order() -> None:
    inner = {"velocity": spaces.Box(-9, 9, (2,)), "gear": spaces.Discrete(3), "frames": PICTURE}
    space = spaces.Dict({"body": spaces.Dict(inner | {"frames": spaces.Box(-1, 1, (2, 2))}), **inner})
    assert list(space.spaces) == ["body", "frames", "gear", "velocity"]
    env = GymEnv(Gauge(space), "gauge", "both")
    found, info = env.reset(seed=3)
    seen, body = env.unwrapped.seen, env.unwrapped.seen["body"]  # type: ignore[attr-defined]
    gears = np.eye(3)[[body["gear"], seen["gear"]]]
    states = [body["frames"].ravel(), gears[0], body["velocity"], gears[1], seen["velocity"]]
    np.testing.assert_array_equal(found["states"], np.concatenate(states).astype(np.float32))  # type: ignore[call-overload]
    np.testing.assert_array_equal(found["frames"], seen["frames"])  # type: ignore[call-overload]
    assert env.observation_space.contains(found) and info == {"physics": pytest.approx(np.zeros(0)), "cost": 0.0}
    for observation, shape in (("states", (14,)), ("frames", (4, 6, 3))):
        assert GymEnv(Gauge(space), "gauge", observation).observation_space.shape == shape


def test_observations_by_their_names() -> None:
    space = spaces.Dict(
        {"top": PICTURE, "joints": spaces.Box(-1, 1, (2, 2)), "wrist": PICTURE, "gear": spaces.Discrete(3)}
    )
    env = GymEnv(Gauge(space), "gauge", ("wrist", "joints"))
    found, _ = env.reset(seed=3)
    seen = env.unwrapped.seen  # type: ignore[attr-defined]
    assert list(found) == ["wrist", "joints"] and env.observation_space.contains(found)
    np.testing.assert_array_equal(found["wrist"], seen["wrist"])  # type: ignore[call-overload]
    np.testing.assert_array_equal(found["joints"], seen["joints"].ravel())  # type: ignore[call-overload]
    with pytest.raises(InputError, match=r"gauge: gives no observation hand; it gives Dict"):
        GymEnv(Gauge(space), "gauge", ("wrist", "hand"))
    single = spaces.Box(-1, 1, (3,))
    assert list(GymEnv(Gauge(single), "gauge", ("joints",)).reset(seed=0)[0]) == ["joints"]  # there is but one
    with pytest.raises(InputError, match=r"gauge: gives no observation joints; it gives Box"):
        GymEnv(Gauge(single), "gauge", ("joints", "top"))


def test_pictures_alone() -> None:
    for space in (PICTURE, spaces.Dict({"frames": PICTURE})):
        env = GymEnv(Gauge(space), "gauge", "frames")
        assert env.observation_space == PICTURE and PICTURE.contains(env.reset(seed=0)[0])
        states = GymEnv(Gauge(space), "gauge")
        assert states.observation_space.shape == (0,) and states.reset(seed=0)[0].shape == (0,)


def test_actions_costs_and_ends_are_the_environments_own() -> None:
    env = GymEnv(Gauge(spaces.Box(-1, 1, (3,), np.float64)), "gauge")
    assert env.reset(seed=0)[0].dtype == np.float32 and env.decision_seconds == 0.1
    steps = [env.step(np.array([3.0, -7.0])) for _ in range(3)]
    assert [step[1:4] for step in steps] == [(1.0, False, False), (1.0, False, True), (1.0, True, False)]
    assert {type(value) for step in steps for value in step[1:4]} == {float, bool}
    assert [step[4]["cost"] for step in steps] == [0.5] * 3
    np.testing.assert_array_equal(env.unwrapped.taken, [[2.0, -5.0]] * 3)  # type: ignore[attr-defined]
    for action in (np.zeros(3), np.array([0, np.nan])):
        with pytest.raises(InputError, match=r"must be \(2,\) finite numbers"):
            env.step(action)


@pytest.mark.parametrize(
    ("seen", "actions", "words"),
    [
        (spaces.Box(-1, 1, (3,)), spaces.Discrete(4), r"actions must be real numbers, a Box of one .*Discrete\(4\)"),
        (spaces.Box(-1, 1, (3,)), spaces.Box(-1, 1, (2, 2)), r"actions must be real numbers, a Box of one dimension"),
        (spaces.Box(-1, 1, (3,)), spaces.Box(0, 9, (2,), np.int64), r"actions must be real numbers"),
        (spaces.Box(-1, 1, (3, 3)), None, r"gauge: observations must be a Box of one dimension, or a Dict; found Box"),
        (spaces.Discrete(5), None, r"gauge: observations must be a Box of one dimension, .*Discrete\(5\)"),
        (spaces.Dict({"a": spaces.Sequence(spaces.Discrete(2))}), None, r"observations must be a Box .*Sequence"),
    ],
)
def test_spaces_that_do_not_fit(seen: spaces.Space, actions: spaces.Space | None, words: str) -> None:
    with pytest.raises(InputError, match=words):
        GymEnv(Gauge(seen, actions), "gauge")


@pytest.mark.parametrize("env_id", ["Hoper-v4", "CartPole-v1", "phys2d/Pendulum-v0"])
def test_environments_that_do_not_fit(env_id: str) -> None:
    with pytest.raises(InputError, match=f"environment '{env_id}': ."):
        make_registered(env_id)


def test_a_registered_environment_names_no_module() -> None:
    with pytest.raises(InputError, match=r"environment 'os:Hopper-v4': must be a name such as"):
        make_registered("os:Hopper-v4")


def test_pictures_that_are_not_there() -> None:
    for space in (spaces.Box(-1, 1, (3,)), spaces.Dict({"image": PICTURE}), spaces.Box(0, 255, (4, 6, 1), np.uint8)):
        with pytest.raises(InputError, match=r"gauge: gives no pictures: no Box .* named frames in"):
            GymEnv(Gauge(space), "gauge", "frames")


@pytest.mark.parametrize(
    ("factory", "words"),
    [
        (
            "no_such_package.module:make",
            r"cannot import no_such_package\.module \(ModuleNotFoundError: No module named",
        ),
        ("own_spoilt:make", r"cannot import own_spoilt \(ZeroDivisionError: division by zero\)"),
        ("own_rooms:make_rom", r"own_rooms has no make_rom; nearest: make_room"),
        ("own_rooms:Rooms.attic", r"own_rooms has no Rooms\.attic"),
        ("own_rooms:size", r"must be callable and return a gymnasium\.Env, found int"),
        ("own_rooms:make_text", r"must return a gymnasium\.Env, found builtins\.str"),
    ],
)
def test_a_factory_that_is_wrong(factory: str, words: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_spoilt.py").write_text("1 / 0")
    (tmp_path / "own_rooms.py").write_text(
        "size = 3\nmake_text = str\nclass Rooms: pass\ndef make_room(): raise AssertionError\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("somewhere")  # sys.path is restored afterwards
    with pytest.raises(InputError, match=f"environment={factory}: {words}"):
        make_own(factory)
