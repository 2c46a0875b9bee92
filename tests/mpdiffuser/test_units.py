"""Actions in the data's units, from the dataset to the robot, and data without rewards."""

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from omegaconf import DictConfig, OmegaConf

from mpdiffuser.budget import Budget
from mpdiffuser.config import load
from mpdiffuser.controller import Controller
from mpdiffuser.episodes import Episodes
from mpdiffuser.errors import InputError
from mpdiffuser.history import LatentHistory
from mpdiffuser.launch import Clock
from mpdiffuser.methods import METHODS, Setup
from mpdiffuser.methods.planner import planner_windows
from mpdiffuser.pipeline import MPDiffuserPipeline
from mpdiffuser.preparation import goal_entries, imitates, unit_actions
from mpdiffuser.record import DECLARED, PROPRIOCEPTION, SEEN, Actions, Observation, Record
from mpdiffuser.sampler import SamplerConfig
from mpdiffuser.training import identities, train_pipeline, trained_methods, training_data
from vision.states import encode_states, state_encoder

STEPS, H = 14, 8
DEGREES = Actions((10.0, -4.0), (70.0, 4.0), DECLARED, ("hip", "knee"))
METHODS_TRAINED = ["cloning", "planner", "mpdiffuser"]
TINY = ["debug=true", "trackers=[]", f"horizon={H}", "rounds=1", "ranker.hidden=8"]
TINY += [f"{model}.{size}" for model in ("planner", "dynamics") for size in ("width=8", "embedding=16")]
TINY += [
    f"train.{name}.{key}" for name in ("planner", "dynamics", "forward", "ranker", "cloning") for key in ("steps=4",)
]


@functools.cache
def options() -> DictConfig:
    return load("state", TINY)


def tiny(output: Path, *more: str) -> DictConfig:
    cfg = OmegaConf.merge(options(), OmegaConf.from_dotlist([f"output_dir={output}", *more]))
    assert isinstance(cfg, DictConfig)
    return cfg


def arm(count: int = 5, actions: Actions = DEGREES, info: Any = None) -> Episodes:
    """Two joints that follow the actions, which are uniform within the bounds. Final rows have actions beyond them."""
    random, rows = np.random.default_rng(3), count * (STEPS + 1)
    offsets = np.arange(count + 1) * (STEPS + 1)
    unit = random.uniform(-1, 1, (rows, 2)).astype(np.float32)
    joints = np.zeros((rows, 3), np.float32)
    for row in range(1, rows):
        joints[row, :2] = 0.8 * joints[row - 1, :2] + 0.5 * unit[row - 1]
    joints[:, 2] = joints[:, 0] * joints[:, 1]
    taken = actions.scale().to_data(unit)
    taken[offsets[1:] - 1] = 1e3
    arrays = {
        "joints": joints,
        "actions": taken,
        "rewards": -np.square(joints).sum(1),
        "terminations": np.zeros(rows, bool),
        "truncations": np.isin(np.arange(rows), offsets[1:] - 2),
    }
    record = Record({"joints": Observation(PROPRIOCEPTION, (3,), ("a", "b", "c"))}, actions)
    return Episodes(arrays, offsets, info or {}, record=record)


def train(episodes: Episodes, output: Path, *more: str, history: int = 1) -> tuple[MPDiffuserPipeline, Episodes]:
    """As train_state.py. Returns the pipeline, saved and loaded, and its latent episodes."""
    cfg, encoder = tiny(output, *more), state_encoder(episodes, history)
    unit, bounds = unit_actions(episodes, cfg.out_of_bounds)
    info = {"task": "none", "data": unit.checksum(), "record": unit.record.with_actions(bounds).to_json()}
    encoded = encode_states(encoder, unit)
    train_pipeline(cfg, encoded, encoder, None, Accelerator(cpu=True), Clock(), info, METHODS_TRAINED)
    return MPDiffuserPipeline.from_pretrained(output / "pipeline"), encoded


@pytest.fixture(scope="module")
def degrees(tmp_path_factory) -> tuple[MPDiffuserPipeline, Episodes]:
    """A pipeline of actions in degrees, with a history of two observations."""
    return train(arm(), tmp_path_factory.mktemp("degrees"), history=2)


@pytest.fixture(scope="module")
def by_hand(tmp_path_factory) -> tuple[MPDiffuserPipeline, Episodes]:
    """The same data scaled to [-1, 1] by hand."""
    episodes = arm()
    unit = (episodes["actions"] - np.float32([40, 0])) / np.float32([30, 4])
    unit[episodes.offsets[1:] - 1] = 0
    record = episodes.record.with_actions(Actions.unit(2))
    scaled = Episodes(episodes.arrays | {"actions": unit}, episodes.offsets, record=record)
    assert unit_actions(scaled, "refuse")[0] is scaled  # nothing to do
    return train(scaled, tmp_path_factory.mktemp("by_hand"), history=2)


def generators() -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in (3, 4)]


def test_plans_and_actions_are_in_degrees_within_the_bounds(degrees) -> None:
    pipeline, encoded = degrees
    low, high = (torch.tensor(end) for end in (DEGREES.low, DEGREES.high))
    latents = torch.from_numpy(encoded["observations"][[3, 9]])
    plan = pipeline(latents, pipeline.sampler(SamplerConfig(steps=3, candidates=6, temperature=9)), generators())
    assert (plan.actions >= low - 1e-5).all() and (plan.actions <= high + 1e-5).all()
    assert plan.actions[..., 0].std() > 1 and abs(plan.actions[..., 0].mean() - 40) < 25
    for method in ("mpdiffuser", "cloning", "random"):
        folder = Path(pipeline.config._name_or_path)
        policy = METHODS[method].policy(Setup(pipeline, folder, pipeline.sampler_defaults, {}))
        policy.reset([0, 1])
        for step in range(4):
            actions = policy.act({"joints": 9.0 * np.float32([[step, 1, 2], [3, 4, -step]])})
            assert actions.dtype == np.float32
            assert (actions >= np.float32(DEGREES.low)).all() and (actions <= np.float32(DEGREES.high)).all()


def test_the_same_data_scaled_by_hand_give_the_same_plans_up_to_scale(degrees, by_hand) -> None:
    """Also with a warm start, with given first actions, and through a controller with a history of actions."""
    np.testing.assert_array_equal(degrees[1]["actions"], by_hand[1]["actions"])
    latents = torch.from_numpy(by_hand[1]["observations"][[3, 9]])
    config = SamplerConfig(steps=3, candidates=4, warm_start=2)
    scale, found = degrees[0].action_scale, []
    for pipeline, to_its in ((degrees[0], scale.to_data), (by_hand[0], lambda unit: unit)):
        first = pipeline(latents, pipeline.sampler(config), generators())
        last = (first.executed_latents, first.executed_actions)
        committed = to_its(torch.tensor([[[0.5, -0.25]], [[-0.75, 0.0]]]))
        second = pipeline(latents, pipeline.sampler(config), generators(), last, committed=committed)
        controller = Controller(pipeline, config)
        controller.reset([5, 6])
        taken = np.stack([controller.act(joints) for joints in by_hand[1]["observations"][:12, :3].reshape(6, 2, 3)])
        found.append((first.actions, second.actions, torch.from_numpy(taken), first.scores, second.latents))
    for mine, other in zip(found[0][:3], found[1][:3]):
        torch.testing.assert_close(mine, scale.to_data(other), rtol=0, atol=3e-3)  # of a range of 60
        assert (mine - other).abs().max() > 5
    for mine, other in zip(found[0][3:], found[1][3:]):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[0][1][:, 0, 0], torch.tensor([[55.0, -1.0], [17.5, 0.0]]), rtol=0, atol=1e-3)


def test_acting_gives_the_encoder_the_history_of_training(degrees) -> None:
    """Actions are recorded in degrees, and the latents have them in [-1, 1]."""
    pipeline, encoded = degrees
    episodes, history = arm(), LatentHistory.of(pipeline)
    assert encoded["observations"].shape[1] == 3 + 3 + 2
    for e in range(2):
        rows = episodes.rows(e)
        history.reset()
        for row in range(rows.start, rows.stop):
            latent = history({"joints": episodes["joints"][row][None]})[0].numpy()
            np.testing.assert_allclose(latent, encoded["observations"][row], rtol=0, atol=1e-6)
            if row + 2 < rows.stop:
                after = episodes["joints"][None, row + 1 : row + 3]
                ahead = history.encode_future({"joints": after}, episodes["actions"][None, row : row + 2])
                np.testing.assert_allclose(ahead[0], encoded["observations"][row + 1 : row + 3], rtol=0, atol=1e-6)
            history.record_actions(episodes["actions"][row][None])


def test_an_objective_and_the_safe_action_are_in_degrees(degrees, monkeypatch) -> None:
    pipeline, seen = degrees[0], []

    def objective(latents: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        seen.append(actions)
        return -(actions[..., 0] - 55).square()

    config = SamplerConfig(steps=3, candidates=4, objective_scale=0.1, safe_action=[69.5, -3.5])
    controller = Controller(pipeline, config, objective=objective)
    controller.act(np.zeros(3, np.float32))
    assert min(part[..., 0].min() for part in seen) >= 9.9 and max(part[..., 0].max() for part in seen) > 15
    with pytest.raises(InputError, match=r"safe_action: must be 2 numbers within \[10\.0, -4\.0\] and \[70\.0, 4\.0\]"):
        Controller(pipeline, SamplerConfig(safe_action=[0.0, 0.0]))
    monkeypatch.setattr(MPDiffuserPipeline, "__call__", lambda *_, **__: 1 / 0)
    for safe, expected in (([69.5, -3.5], [69.5, -3.5]), ([], [10.0, 0.0])):  # the nearest to zeros within the bounds
        with pytest.warns(UserWarning, match="planning failed"):
            action = Controller(pipeline, SamplerConfig(safe_action=safe)).act(np.zeros(3, np.float32))
        np.testing.assert_array_equal(action, expected)


def spoilt() -> Episodes:
    """Three of the actions are beyond the bounds, of the knee more."""
    episodes = arm(2)
    episodes["actions"][[1, 4], 1] = [-5.0, 4.5]
    episodes["actions"][4, 0] = 71.0
    episodes["actions"][20, 0] = 10 - 3e-4  # a rounding error of the range
    return episodes


def test_actions_beyond_the_bounds_are_refused_clipped_or_widen_them(capsys) -> None:
    episodes, last = spoilt(), np.array([STEPS, 2 * STEPS + 1])
    words = (
        r"^dataset: 2 of 28 actions are beyond the declared bounds; action 0 \(hip\) lies in 9\.9997\.\.71, its bounds "
        r"are 10\.\.70; set out_of_bounds=clip to clip them, or out_of_bounds=widen if the bounds are wrong$"
    )
    with pytest.raises(InputError, match=words):
        unit_actions(episodes, "refuse")
    with pytest.raises(InputError, match=r"out_of_bounds: must be refuse, clip or widen, found 'cut'"):
        unit_actions(arm(), "cut")
    clipped, bounds = unit_actions(episodes, "clip")
    assert bounds == DEGREES and "out_of_bounds=clip" in capsys.readouterr().out
    assert clipped["actions"][1, 1] == -1 and (clipped["actions"][4] == 1).all() and clipped["actions"][20, 0] == -1
    assert (clipped["actions"][last] == 0).all() and clipped.record.actions == Actions.unit(2)
    widened, bounds = unit_actions(episodes, "widen")
    least = float(episodes["actions"][20, 0])
    assert bounds == Actions((least, -5.0), (71.0, 4.5), SEEN, ("hip", "knee"))
    np.testing.assert_allclose(widened["actions"][[1, 4, 4], [1, 0, 1]], [-1, 1, 1], rtol=1e-6)
    assert (widened["actions"][last] == 0).all()
    for unit, scale in ((clipped, DEGREES.scale()), (widened, bounds.scale())):
        kept = np.setdiff1d(np.arange(28), [1, 4, *last])
        np.testing.assert_allclose(scale.to_data(unit["actions"][kept]), episodes["actions"][kept], atol=4e-4)
    np.testing.assert_array_equal(episodes["actions"], spoilt()["actions"])  # the data stay as they are
    assert not capsys.readouterr().err and unit_actions(arm(), "refuse")[1] == DEGREES


def test_unit_bounds_leave_the_data_alone_and_are_kept_too() -> None:
    episodes = arm(2, Actions.unit(2))
    assert unit_actions(episodes, "refuse") == (episodes, Actions.unit(2))
    episodes["actions"][3, 0] = 1.5
    with pytest.raises(InputError, match=r"1 of 28 actions .* action 0 lies in .*1\.5, its bounds are -1\.\.1"):
        unit_actions(episodes, "refuse")
    assert unit_actions(episodes, "clip")[0]["actions"][3, 0] == 1


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory) -> tuple[Path, Episodes]:
    """A run on data without rewards: its folder and its data."""
    episodes, output = arm(info={"missing": ["rewards"]}), tmp_path_factory.mktemp("demonstrations") / "out"
    episodes["rewards"][:] = 0
    train(episodes, output)
    return output, episodes


def test_without_rewards_there_is_no_ranker_and_planning_works(demonstrations) -> None:
    output, episodes = demonstrations
    assert not list(output.glob("**/ranker"))
    pipeline = MPDiffuserPipeline.from_pretrained(output / "pipeline")
    assert pipeline.ranker is None and pipeline.planner is not None and pipeline.dynamics is not None
    controller = Controller(pipeline)
    controller.reset([0, 1])
    actions = controller.act({"joints": episodes["joints"][:2]})
    assert (actions >= np.float32(DEGREES.low)).all() and (actions <= np.float32(DEGREES.high)).all()
    plan = controller.plan
    assert plan is not None and (plan.scores == 0).all() and controller.fallbacks == 0
    torch.testing.assert_close(plan.weights, torch.full_like(plan.weights, 1 / plan.weights.shape[1]))
    with pytest.raises(InputError, match="budget: the pipeline's data have no costs"):
        Controller(pipeline, budget=Budget(1, 10)).act(np.zeros(3, np.float32))


def test_without_rewards_the_target_of_acting_is_that_of_training(demonstrations) -> None:
    """The mean rank: nothing is wished for."""
    output, episodes = demonstrations
    pipeline = MPDiffuserPipeline.from_pretrained(output / "pipeline")
    unit, _ = unit_actions(episodes, "refuse")
    data = training_data(tiny(output), encode_states(state_encoder(unit), unit))
    trained_on = data.windows(0, data.targets[0], data.condition).condition
    assert torch.equal(pipeline.target(torch.zeros(4, 3), 0.9), torch.zeros(4, 1))
    torch.testing.assert_close(trained_on, torch.zeros_like(trained_on))


def test_with_goals_rewards_are_no_target(tmp_path: Path) -> None:
    """Acting has none, so a planner that saw returns in training would be asked for a mean return beside its goal."""
    unit, _ = unit_actions(arm(), "clip")
    cfg, data = OmegaConf.merge(tiny(tmp_path), {"goals": True}), {}
    for goals in (True, False):
        cfg.goals = goals
        data[goals] = training_data(cfg, encode_states(state_encoder(unit), unit))
    told = planner_windows(data[True], 0)
    assert told.goal_steps is not None and not told.condition.any()
    assert data[False].windows(0, data[False].targets[0], data[False].condition).condition.std() > 0.5


def test_methods_that_need_rewards_are_refused_by_name(demonstrations, capsys) -> None:
    output, episodes = demonstrations
    cfg = tiny(output)

    def evaluating(*methods: str) -> Any:
        return OmegaConf.merge(cfg, {"evaluation": {"methods": list(methods)}})

    with pytest.raises(InputError, match=r"evaluation\.methods: iql, sample_and_rank need rewards\. the data: no rew"):
        trained_methods(evaluating("cloning", "iql", "mpdiffuser", "sample_and_rank"), episodes)
    assert trained_methods(evaluating(*METHODS_TRAINED), episodes) == list(METHODS_TRAINED)
    assert trained_methods(evaluating(), episodes) == ["cloning", "planner", "mpdiffuser"]
    assert trained_methods(evaluating("random", "expert"), episodes) == ["cloning", "planner", "mpdiffuser"]
    assert "note: the data: no rewards: the planner imitates the data" in capsys.readouterr().out
    assert trained_methods(evaluating(*METHODS), arm()) == list(METHODS)
    assert not capsys.readouterr().out and not imitates(cfg, arm())
    arrays = episodes.arrays | {"costs": np.ones_like(episodes["rewards"])}
    costly = Episodes(arrays, episodes.offsets, episodes.info, record=episodes.record)
    assert not imitates(cfg, costly)  # its ranker tells costs
    found = identities(cfg, {"data": "abc"}, METHODS_TRAINED, imitating=True)
    assert set(found) == {"planner", "dynamics", "forward", "cloning"} and not any(
        each["after"] for each in found.values()
    )


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["goals=true", "goal_entries=[1,0]"], [1, 0]),
        (["goals=true", "goal_entries=[x,2]"], [0, 2]),
        (["goals=true"], None),
        (["goal_entries=[0]"], r"goal_entries: is for goals=true from states, with history=1"),
        (["goals=true", "history=2", "goal_entries=[0]"], r"goal_entries: is for goals=true from states"),
        (["goals=true", "goal_entries=[3]"], r"numbers in 0\.\.2, or a name: x, y; found 3"),
        (["goals=true", "goal_entries=[z]"], r"found 'z'"),
        (["goals=true", "goal_entries=[true]"], r"found True"),
        (["goals=true", "goal_entries=[0,x]"], r"each once, found \[0, 'x'\]"),
        (["goals=true", "goal_entries=[]"], r"one or more entries"),
    ],
)
def test_entries_of_a_goal(words: list[str], expected: Any) -> None:
    rows = {"place": np.zeros((4, 2), np.float32), "speed": np.zeros((4, 1), np.float32)}
    seen = {"place": Observation(PROPRIOCEPTION, (2,), ("x", "y")), "speed": Observation(PROPRIOCEPTION, (1,))}
    arrays = rows | {"actions": np.zeros((4, 1), np.float32), "rewards": np.zeros(4, np.float32)}
    arrays |= {
        key: np.array([False, False, end, False]) for key, end in (("terminations", False), ("truncations", True))
    }
    episodes = Episodes(arrays, np.array([0, 4]), {}, record=Record(seen, Actions.unit(1)))
    cfg = load("state", words)
    if not isinstance(expected, str):
        assert goal_entries(cfg, episodes, (PROPRIOCEPTION,)) == expected
        return
    with pytest.raises(InputError, match=expected):
        goal_entries(cfg, episodes, (PROPRIOCEPTION,))
