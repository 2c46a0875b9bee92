"""What an evaluation refuses before any episode."""

import sys
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest

from evaluation.check import check_evaluation, check_simulator, require_models, with_environment
from mpdiffuser.config import load
from mpdiffuser.episodes import Episodes
from mpdiffuser.errors import InputError
from mpdiffuser.methods import METHODS
from mpdiffuser.record import PROPRIOCEPTION

pytestmark = pytest.mark.slow  # evaluates in simulators


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("evaluation.methods=[mpdiffuser,magic]", r"evaluation\.methods: must be of random, cloning.*magic"),
        ("evaluation.episodes=0", r"evaluation\.episodes: must be at least 1, found 0"),
        ("evaluation.first_seed=-1", r"evaluation\.first_seed: must be at least 0, found -1"),
        ("evaluation.first_seed=4294967296", r"evaluation\.first_seed: must be at most 42949672\d\d, found 4294967296"),
        ("evaluation.probe_every=-1", r"evaluation\.probe_every: must be at least 0, found -1"),
        ("evaluation.parallel_controllers=0", r"evaluation\.parallel_controllers: must be at least 1, found 0"),
        ("evaluation.safety_probability=1", r"evaluation\.safety_probability: .* below 1, found 1"),
        ("evaluation.safety_probability=-0.5", r"evaluation\.safety_probability: must be at least 0 .* -0\.5"),
    ],
)
def test_settings_that_no_evaluation_can_have(stage: SimpleNamespace, option: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        check_evaluation(stage.configuration(option))


def test_settings_at_the_edge(stage: SimpleNamespace) -> None:
    every = f"evaluation.methods=[{','.join(METHODS)}]"
    edges = ["evaluation.episodes=1", "evaluation.first_seed=0", "evaluation.probe_every=0"]
    check_evaluation(stage.configuration(every, *edges, "evaluation.safety_probability=0"))


def test_models_that_a_folder_does_not_hold(stage: SimpleNamespace) -> None:
    for name in ("random", "cloning", "planner", "mpdiffuser", "expert"):
        require_models(name, stage.folder)
    words = (
        r"evaluation\.methods: decision_diffuser needs .*; give evaluation\.methods=\[cloning,planner,mpdiffuser\], "
        r"whose models it holds, or train with method=decision_diffuser"
    )
    with pytest.raises(InputError, match=words):
        require_models("decision_diffuser", stage.folder)
    with pytest.raises(InputError, match=r"evaluation\.methods: iql needs "):
        stage.compare(stage.configuration("evaluation.methods=[random,iql]"))
    assert not stage.asked


@pytest.mark.parametrize(
    ("info", "words"),
    [
        ({"decision_seconds": 0.02}, r"environment: decision_seconds 0\.04, but .* trained with 0\.02"),
        (
            {"environment": {"env_id": "x"}},
            r"info\.environment\.kind: must be one of dm_control, gymnasium, go2, .*, user, found None",
        ),
        (
            {"environment": {"kind": "gymnasium", "env_id": "x", "command": "y"}},
            r"info\.environment: no field 'command'",
        ),
        ({"environment": {"kind": "dm_control", "task": "x"}}, r"info\.environment\.action_repeat: is missing"),
        ({"environment": None}, r"the pipeline's info: environment is missing: it cannot be evaluated; give env"),
        (
            {"environment": {"kind": "user", "factory": "own_crane:make"}},
            r"info\.environment: is the user's own, 'own_crane:make'; .* give environment=package\.module:factory",
        ),
        ({"data": None}, r"the pipeline's info: data is missing"),
    ],
)
def test_what_does_not_fit_the_record(stage: SimpleNamespace, info: dict[str, Any], words: str) -> None:
    stage.edit_info(stage.folder, **info)
    with pytest.raises(InputError, match=words):
        stage.compare(stage.configuration())
    assert not set(stage.asked) & {"cloning", "planner", "mpdiffuser"}


@pytest.mark.parametrize(
    ("low", "high", "dimension", "words"),
    [
        (-0.5, 1, 2, r"actions\[0\] lies in \[-0\.5, 1\], but the pipeline was trained with \[-1, 1\]"),
        (-1, 0.5, 2, r"actions\[0\] lies in \[-1, 0\.5\], but"),
        (-1, 1, 3, r"actions \(3,\), but the pipeline was trained with \(2,\)"),
    ],
)
def test_an_environment_with_other_actions(
    stage: SimpleNamespace, low: float, high: float, dimension: int, words: str
) -> None:
    class Other(stage.Stub):  # type: ignore[name-defined, misc]
        def __init__(self, *inputs: Any, **options: Any) -> None:
            super().__init__(*inputs, **options)
            self.single_action_space = gymnasium.spaces.Box(low, high, (dimension,))

    stage.Stub = Other
    with pytest.raises(InputError, match=rf"environment: {words}"):
        stage.compare(stage.configuration())


@pytest.mark.parametrize(
    ("space", "words"),
    [
        (gymnasium.spaces.Box(-1, 1, (4,)), r"observations float32 \(4,\), but .* trained with float32 \(3,\)"),
        (gymnasium.spaces.Box(-1, 1, (3,), np.float64), r"observations float64 \(3,\), but .* float32 \(3,\)"),
        (gymnasium.spaces.Dict({"hand": gymnasium.spaces.Box(-1, 1, (3,))}), r"observations not among \['hand'\]"),
    ],
)
def test_an_environment_with_other_observations(
    stage: SimpleNamespace, space: gymnasium.spaces.Space, words: str
) -> None:
    class Other(stage.Stub):  # type: ignore[name-defined, misc]
        def __init__(self, *inputs: Any, **options: Any) -> None:
            super().__init__(*inputs, **options)
            self.single_observation_space = space

    stage.Stub = Other
    with pytest.raises(InputError, match=rf"environment: {words}"):
        stage.compare(stage.configuration("evaluation.methods=[cloning]"))
    assert not stage.asked


def test_another_back_end_is_only_noted(stage: SimpleNamespace, capsys: Any) -> None:
    stage.edit_info(stage.folder, back_end="magic: of another machine")
    stage.compare(stage.configuration())
    assert "note: rendering with " in capsys.readouterr().out and stage.asked == stage.methods


PENDULUM = {"kind": "gymnasium", "env_id": "Pendulum-v1"}


def swings(reach: float, columns: int = 3, **info: Any) -> Episodes:
    """Three episodes with the shapes of Pendulum, whose largest action is `reach`."""
    random = np.random.default_rng(0)
    arrays = {
        "observations": random.normal(size=(12, columns)).astype(np.float32),
        "actions": np.resize([0.1, -0.2, reach, 99.0], (12, 1)).astype(np.float32),  # the last rows are no steps
        "rewards": np.ones(12, np.float32),
        "terminations": np.zeros(12, bool),
        "truncations": np.zeros(12, bool),
    }
    return Episodes(arrays, np.arange(4) * 4, info)


def test_the_environment_of_the_data_is_checked_before_a_training(capsys: Any) -> None:
    own = with_environment(swings(1.9, environment=PENDULUM, task="swing"), None)
    given = with_environment(swings(1.9, task="swing", decision_seconds=0.05), "Pendulum-v1")
    assert own.info == {"task": "swing", "environment": PENDULUM}
    assert given.info == own.info | {"decision_seconds": 0.05}  # Pendulum does not tell its own
    none = swings(9.0)
    assert with_environment(none, None) is none and not capsys.readouterr().out
    with_environment(swings(-1.0), "Pendulum-v1")
    assert "note: the data's actions lie in [-1, 1], the environment's in Box(-2.0, 2.0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("episodes", "given", "words"),
    [
        (swings(1.0, 4), "Pendulum-v1", r"environment: observations float32 \(3,\), but the data have float32 \(4,\)"),
        (swings(2.1), "Pendulum-v1", r"actions\[0\] lies in \[-2, 2\], but the data have \[-0\.2, 2\.1\]; give"),
        (swings(1.0, 11), "Hopper-v4", r"environment: actions \(3,\), but the data have \(1,\)"),
        (
            swings(1.0, 4, decision_seconds=0.1),
            "InvertedPendulum-v5",
            r"environment: decision_seconds 0\.04, but the data have 0\.1",
        ),
        (swings(1.0), "MountainCar-v0", r"environment 'MountainCar-v0': actions must be real numbers.*Discrete\(3\)"),
        (swings(1.0), "no_such_module:make", r"environment=no_such_module:make: cannot import no_such_module"),
        (swings(1.0, environment=PENDULUM | {"command": "ls"}), None, r"environment: no field 'command'"),
        (swings(1.0, environment={"kind": "user", "factory": "os:abort"}), None, r"environment: is the user's own"),
    ],
)
def test_an_environment_that_does_not_fit_the_data(episodes: Episodes, given: str | None, words: str) -> None:
    with pytest.raises(InputError, match=words):
        with_environment(episodes, given, PROPRIOCEPTION)


REACHER = {
    "kind": "dm_control",
    "task": "reacher_hard",
    "action_repeat": 4,
    "size": 20,
    "camera": 0,
    "rendering": "fast",
}


def test_a_simulator_that_works() -> None:
    check_simulator(load("vision", []), REACHER)


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"camera": 7}, "camera=7: this model has cameras 0 to 1"), ({"task": "reacher_mild"}, "no such dm_control task")],
)
def test_a_simulator_that_cannot_be_made(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        check_simulator(load("vision", []), REACHER | changes)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="egl is Linux's")
def test_rendering_is_needed_only_by_methods_that_see_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "egl")
    monkeypatch.setenv("MUJOCO_EGL_DEVICE_ID", "first")
    with pytest.raises(InputError, match=r"MUJOCO_GL='egl', MUJOCO_EGL_DEVICE_ID='first': no rendering"):
        check_simulator(load("vision", ["method=iql"]), REACHER)
    check_simulator(load("vision", ["evaluation.methods=[random]"]), REACHER)


def test_the_datas_own_environment_needs_a_package_that_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr("envs.robotics.PACKAGE", "not_installed_here")
    pen = {"kind": "adroit", "task": "pen"}
    found = with_environment(swings(1.0, environment=pen), None, PROPRIOCEPTION)
    assert "environment" not in found.info
    assert "note: not evaluated in an environment: gymnasium-robotics is not installed" in capsys.readouterr().out
    monkeypatch.setitem(__import__("sys").modules, "ogbench", None)
    with pytest.raises(InputError, match="ogbench is not installed"):
        with_environment(swings(1.0), "ogbench/pointmaze-medium-v0")
