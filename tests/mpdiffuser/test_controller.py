"""Controllers: what they draw with, when they plan, and what they do when no plan can be had."""

from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mpdiffuser.budget import Budget
from mpdiffuser.controller import Controller, NetworkPolicy, Policy
from mpdiffuser.errors import InputError
from mpdiffuser.methods.cloning import CloningPolicy
from mpdiffuser.models.ranker import Ranker
from mpdiffuser.pipeline import MPDiffuserPipeline
from mpdiffuser.plan import Plan
from mpdiffuser.record import PROPRIOCEPTION, Actions, Observation, Record
from mpdiffuser.sampler import SamplerConfig

D, M, H = 3, 2, 8
CONFIG = SamplerConfig(steps=4, candidates=3, rank_temperature=0)
JOINTS = {"record": Record({"joints": Observation(PROPRIOCEPTION, (D,))}, Actions.unit(M)).to_json()}


@pytest.fixture
def pipeline(tiny_pipeline: MPDiffuserPipeline) -> MPDiffuserPipeline:
    return tiny_pipeline


def generators(count: int, first: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(first + i) for i in range(count)]


def latents_of(batch: int) -> torch.Tensor:
    return torch.randn(batch, D, generator=torch.Generator().manual_seed(9))


def test_a_pipeline_of_a_baseline_alone_has_no_controller(make_pipeline) -> None:
    with pytest.raises(InputError, match="holds no planner of MPDiffuser"):
        Controller(make_pipeline(planner=None, dynamics=None, ranker=None))


def test_a_budget_needs_costs(pipeline: MPDiffuserPipeline) -> None:
    with pytest.raises(InputError, match="have no costs"):
        Controller(pipeline, CONFIG, budget=Budget(10, 100)).act(latents_of(1).numpy())


def test_episodes_that_are_over_are_not_planned_for(pipeline: MPDiffuserPipeline) -> None:
    """And the others act as if nothing had ended."""
    config = replace(CONFIG, warm_start=2)
    whole, some = Controller(pipeline, config), Controller(pipeline, config)
    for controller in (whole, some):
        controller.reset([0, 1, 2])
    active = np.array([True, True, True])
    looks: list[int] = []
    pipeline.planner.register_forward_pre_hook(lambda module, inputs: looks.append(len(inputs[0])))
    for step in range(4):
        active[1] &= step < 2
        observations = latents_of(3).numpy() + step
        actions = whole.act(observations)
        looks.clear()
        found = some.act(observations, active)
        assert set(looks) == {3 * int(active.sum())}
        np.testing.assert_allclose(found[active], actions[active], rtol=0, atol=1e-5)


@pytest.fixture
def clock(pipeline: MPDiffuserPipeline, monkeypatch) -> SimpleNamespace:
    """A clock that only the networks move: 10 ms a look of the planner, 30 ms of the ranker."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("mpdiffuser.pipeline.time", SimpleNamespace(perf_counter=lambda: clock.now))
    monkeypatch.setattr(
        Ranker,
        "scores",
        lambda self, *x, rank=Ranker.scores: (clock.__dict__.update(now=clock.now + 0.03), rank(self, *x))[1],
    )
    pipeline.planner.register_forward_hook(lambda *_: clock.__dict__.update(now=clock.now + 0.01))
    return clock


@pytest.mark.parametrize(
    ("deadline", "steps", "expected"),
    [(0.0, 8, 8), (75.0, 8, 4), (109.0, 8, 7), (1e6, 8, 8), (40.5, 8, 1), (5.0, 8, 1), (75.0, 3, 3), (5.0, 1, 1)],
)
def test_the_most_levels_that_meet_the_deadline(
    pipeline: MPDiffuserPipeline, clock: SimpleNamespace, deadline: float, steps: int, expected: int
) -> None:
    controller = Controller(pipeline, SamplerConfig(steps=steps, candidates=2, deadline_ms=deadline, warm_start=1))
    for seed in range(2):
        controller.reset([seed, 7])
        for _ in range(2):
            actions = controller.act(latents_of(2).numpy())
            assert actions.shape == (2, M) and np.isfinite(actions).all()
    assert controller.sampler.config.steps == len(controller.sampler.moves) == expected
    before = clock.now
    pipeline(latents_of(2), controller.sampler, generators(2))
    spent = 1e3 * (clock.now - before)
    assert spent == pytest.approx(30 + 10 * expected)
    assert not deadline or spent <= deadline or expected == 1


def test_calibration_leaves_the_plans_alone(pipeline: MPDiffuserPipeline, clock: SimpleNamespace) -> None:
    config = SamplerConfig(steps=4, candidates=2, warm_start=3)
    timed, plain = Controller(pipeline, replace(config, deadline_ms=1e6)), Controller(pipeline, config)
    for controller in (timed, plain):
        controller.reset([3, 4])
    for t in range(3):
        observations = np.full((2, D), t, np.float32)
        np.testing.assert_array_equal(timed.act(observations), plain.act(observations))
    short = pipeline.within_deadline(replace(config, deadline_ms=55.0), latents_of(2))
    assert (short.steps, short.warm_start) == (2, 2)


def test_a_chunk_is_executed_before_planning_again(pipeline: MPDiffuserPipeline) -> None:
    controller = Controller(pipeline, replace(CONFIG, chunk=3))
    controller.reset([0])
    observation, plans = np.zeros((1, D), np.float32), []
    for t in range(7):
        action = controller.act(observation)
        plans.append(controller.plan)
        assert controller.planned_now == (t % 3 == 0)
        np.testing.assert_array_equal(action, plans[-1].executed_actions[:, t % 3])
    assert plans[0] is plans[2] and plans[2] is not plans[3] and plans[3] is plans[5] and plans[5] is not plans[6]


def test_resetting_repeats_an_episode(pipeline: MPDiffuserPipeline) -> None:
    controller = Controller(pipeline, SamplerConfig(steps=4, candidates=2, warm_start=2, chunk=2))
    stream = np.random.default_rng(0).normal(size=(6, 2, D)).astype(np.float32)
    runs = []
    for seeds in ([5, 6], [5, 6], [7, 6]):
        controller.reset(seeds)
        runs.append(np.stack([controller.act(observation) for observation in stream]))
    np.testing.assert_array_equal(runs[0], runs[1])
    assert (runs[0][:, 0] != runs[2][:, 0]).any()
    np.testing.assert_allclose(runs[0][:, 1], runs[2][:, 1], rtol=0, atol=1e-5)


def test_warm_start_shifts_the_last_plan(pipeline: MPDiffuserPipeline, monkeypatch) -> None:
    given = []
    call = MPDiffuserPipeline.__call__

    def spied(self: MPDiffuserPipeline, *inputs: Any, **more: Any) -> Any:
        given.append(more.get("last"))
        return call(self, *inputs, **more)

    monkeypatch.setattr(MPDiffuserPipeline, "__call__", spied)
    controller = Controller(pipeline, SamplerConfig(steps=4, candidates=2, warm_start=2, chunk=3))
    controller.reset([0])
    observation = np.zeros((1, D), np.float32)
    controller.act(observation)
    first = controller.plan
    for _ in range(3):
        controller.act(observation)
    assert given[0] is None
    order = [*range(3, H), H - 1, H - 1, H - 1]
    np.testing.assert_array_equal(given[1][0], first.executed_latents[:, order])
    np.testing.assert_array_equal(given[1][1], first.executed_actions[:, order])


@pytest.mark.parametrize("chunk", [H, H + 1])
def test_a_chunk_that_does_not_fit(pipeline: MPDiffuserPipeline, chunk: int) -> None:
    with pytest.raises(InputError, match=rf"sampler\.chunk: must lie in 1\.\.7.*found {chunk}"):
        Controller(pipeline, replace(CONFIG, chunk=chunk))


@pytest.mark.parametrize("warm_start", [0, 2])
@pytest.mark.parametrize("model", ["planner", "dynamics", "ranker"])
def test_a_network_gone_bad_still_gives_finite_actions(
    pipeline: MPDiffuserPipeline, model: str, warm_start: int
) -> None:
    controller = Controller(pipeline, SamplerConfig(steps=3, candidates=2, warm_start=warm_start))
    controller.reset([0, 1])
    observations = np.zeros((2, D), np.float32)
    healthy = controller.act(observations)
    broken = getattr(pipeline, model)
    parameter = next(p for p in broken.parameters() if p.requires_grad)
    kept = parameter.detach().clone()
    with torch.no_grad():
        parameter.fill_(torch.nan)
    for _ in range(2):
        actions = controller.act(observations)
        assert np.isfinite(actions).all() and np.abs(actions).max() <= 1
        assert controller.plan.scores.isneginf().all()
    with torch.no_grad():
        parameter.copy_(kept)
    controller.act(observations)
    assert controller.plan.latents.isfinite().all()  # and it recovers
    assert np.isfinite(healthy).all()


class Silent:
    """A planner that fails from plan to plan as told."""

    def __init__(self, pipeline: MPDiffuserPipeline, monkeypatch, fails: list[Any]) -> None:
        call = MPDiffuserPipeline.__call__

        def act(self: Any, *inputs: Any, **more: Any) -> Plan:
            fault = fails.pop(0)
            if isinstance(fault, Exception):
                raise fault
            plan = call(self, *inputs, **more)
            for row in fault:
                plan.scores[row] = -np.inf
                plan.actions[row] = np.nan
            return plan

        monkeypatch.setattr(MPDiffuserPipeline, "__call__", act)


@pytest.mark.filterwarnings("ignore:planning failed")
def test_what_is_done_when_no_plan_can_be_had(pipeline: MPDiffuserPipeline, monkeypatch) -> None:
    """Row 1 at decision 4, all rows at 6 and 8: the last plan goes on; where there is none, the safe action."""
    Silent(pipeline, monkeypatch, [[], [], [1], RuntimeError("out of memory"), ValueError("no")])
    controller = Controller(pipeline, replace(CONFIG, chunk=2, safe_action=[0.5, -0.25]))
    controller.reset([0, 1])
    taken, plans = [], []
    for _ in range(10):
        taken.append(controller.act(np.zeros((2, D), np.float32)))
        plans.append(controller.plan)
    second, third = plans[2].executed_actions, plans[4].executed_actions
    np.testing.assert_array_equal(np.stack(taken[4:6])[:, 0], third[0, :2])  # its plan was fine
    np.testing.assert_array_equal(np.stack(taken[4:])[:, 1], second[1, 2:8])
    np.testing.assert_array_equal(np.stack(taken[4:])[:, 0], third[0, :6])
    assert controller.fallbacks == 1 + 2 + 2
    controller.reset([0, 1])
    assert controller.fallbacks == 0


@pytest.mark.filterwarnings("ignore:planning failed")
def test_the_safe_action_where_nothing_else_is_known(pipeline: MPDiffuserPipeline, monkeypatch) -> None:
    Silent(pipeline, monkeypatch, [RuntimeError()] * 3 + [[]] + [RuntimeError()] * 10)
    controller = Controller(pipeline, replace(CONFIG, safe_action=[0.5, -0.25]))
    for _ in range(3):
        np.testing.assert_array_equal(controller.act(np.full((1, D), np.nan, np.float32)), [[0.5, -0.25]])
    controller.history.reset()
    controller.act(np.zeros((1, D), np.float32))
    taken = np.stack([controller.act(np.zeros((1, D), np.float32))[0] for _ in range(10)])
    assert (taken[: H - 1] != [0.5, -0.25]).any(1).all()  # the rest of the plan
    np.testing.assert_array_equal(taken[H - 1 :], [[0.5, -0.25]] * 3)
    assert controller.fallbacks == 13


def test_a_planning_failure_is_told(pipeline: MPDiffuserPipeline, monkeypatch) -> None:
    Silent(pipeline, monkeypatch, [RuntimeError("out of memory")])
    controller = Controller(pipeline, CONFIG)
    with pytest.warns(UserWarning, match="planning failed, falling back: RuntimeError: out of memory"):
        controller.act(np.zeros((1, D), np.float32))
    assert controller.fallbacks == 1


@pytest.mark.parametrize("safe", [[0.1], [0.1, 0.2, 0.3]])
def test_a_safe_action_that_is_none(pipeline: MPDiffuserPipeline, safe: list[float]) -> None:
    with pytest.raises(
        InputError, match=r"sampler\.safe_action: must be 2 numbers within \[-1\.0, -1\.0\] and \[1\.0, 1\.0\], found"
    ):
        Controller(pipeline, replace(CONFIG, safe_action=safe))


@pytest.mark.parametrize(
    ("observations", "words"),
    [
        (np.zeros((1, D), np.float32), r"must be one for each of the 2 seeds of reset, found 1"),
        (np.zeros((2, D + 1), np.float32), r"takes joints float32 \(B, 3\), found joints float32 \(2, 4\)"),
        (np.zeros((2, 64, 64, 3), np.uint8), r"takes joints float32 \(B, 3\), found joints uint8 \(2, 64, 64, 3\)"),
        (np.zeros((2, D), bool), r"takes joints float32 \(B, 3\), found joints bool \(2, 3\)"),
        ({"states": np.zeros((2, D))}, r"must be a dict of joints float32 \(B, 3\), found \['states'\]"),
    ],
)
def test_observations_of_another_kind(pipeline: MPDiffuserPipeline, observations: np.ndarray, words: str) -> None:
    pipeline.register_to_config(info=JOINTS)
    controller = Controller(pipeline, CONFIG)
    controller.reset([0, 1])
    for dtype in (np.float64, np.int64):  # numbers are numbers
        controller.act(np.zeros((2, D), dtype))
    with pytest.raises(InputError, match=words):
        controller.act(observations)


def test_one_robot_or_a_batch_an_array_or_a_dict(pipeline: MPDiffuserPipeline, randomize) -> None:
    """All give the same action; without the batch axis the action has none either."""
    pipeline.register_to_config(info=JOINTS)
    observation = latents_of(1).numpy()
    for make in (Controller, lambda given: NetworkPolicy(given, randomize(CloningPolicy(D, M, hidden=16)))):
        found = []
        for given in (observation, observation[0], {"joints": observation}, {"joints": observation[0]}):
            policy = make(pipeline)
            policy.reset([7])
            found.append(policy.act(given))
        assert [action.shape for action in found] == [(1, M), (M,), (1, M), (M,)]
        for action in found:
            np.testing.assert_array_equal(action.ravel(), found[0].ravel())


def test_a_robot_that_is_inactive_from_the_start_has_actions_too(pipeline: MPDiffuserPipeline) -> None:
    some, whole = Controller(pipeline, CONFIG), Controller(pipeline, CONFIG)
    for controller in (some, whole):
        controller.reset([0, 1, 2])
    observations = latents_of(3).numpy()
    for active in ([True, False, True], [False, False, False], [False, True, True]):
        found, expected = some.act(observations, np.array(active)), whole.act(observations)
        assert found.shape == (3, M) and np.isfinite(found).all()
    assert some.fallbacks == 0
    np.testing.assert_allclose(found[1:], expected[1:], rtol=0, atol=1e-5)


def test_a_network_of_an_observation_that_is_none(pipeline: MPDiffuserPipeline, randomize) -> None:
    controller = NetworkPolicy(pipeline, randomize(CloningPolicy(D, M, hidden=16)))
    controller.reset([0, 1])
    observations = latents_of(2).numpy()
    observations[0, 1] = np.nan
    found = controller.act(observations)
    assert found[0].tolist() == [0, 0] and found[1].any()


def test_a_network_acts_on_the_latents(pipeline: MPDiffuserPipeline, randomize) -> None:
    policy = randomize(CloningPolicy(D, M, hidden=16))
    controller = NetworkPolicy(pipeline, policy)
    controller.reset([0, 1])
    observations = latents_of(2).numpy()
    with torch.no_grad():
        np.testing.assert_allclose(controller.act(observations), policy(torch.from_numpy(observations)).clamp(-1, 1))


SAVED = {"solver": "ddpm", "steps": 5, "candidates": 2, "guidance": 1.5, "chunk": 2, "safe_action": [0.25, -0.5]}


def stream(controller: Policy, steps: int = 5) -> np.ndarray:
    """Actions (steps, 2, M) on the same observations."""
    controller.reset([3, 4])
    observations = np.random.default_rng(0).normal(size=(steps, 2, D)).astype(np.float32)
    return np.stack([controller.act(each) for each in observations])


def test_a_controller_draws_as_saved_with_the_pipeline(make_pipeline, tmp_path: Path) -> None:
    """Bit for bit, after saving and loading; in particular with the solver that was saved."""
    make_pipeline(sampler=SAVED).save_pretrained(tmp_path)
    loaded = MPDiffuserPipeline.from_pretrained(tmp_path)
    controller = Controller(loaded)
    found = stream(controller)
    np.testing.assert_array_equal(found, stream(Controller(loaded, SamplerConfig(**SAVED))))
    assert (found != stream(Controller(loaded, SamplerConfig(**SAVED | {"solver": "ddim"})))).any()
    assert (found != stream(Controller(loaded, SamplerConfig()))).any()
    used = asdict(controller.sampler.config)
    assert {key: used[key] for key in SAVED} == SAVED and controller.chunk == 2
    assert any(move.noise_std for move in controller.sampler.moves)  # what ddpm does, and ddim does not
    assert controller.safe.tolist() == SAVED["safe_action"]
    assert controller.planning_facts() == {"fallbacks": 0, "levels": 5, "engine": "torch"}


def test_a_budget_is_spent_by_the_costs_that_are_recorded(make_pipeline) -> None:
    controller = Controller(make_pipeline(costs=True), CONFIG, Budget(10, 100))
    controller.reset([0, 1])
    controller.act(latents_of(2).numpy())
    assert controller.plan is not None and controller.plan.costs is not None
    controller.record_costs(np.array([2.0, 0.5]))
    assert controller.budget is not None and controller.budget.spent.tolist() == [2.0, 0.5]
    controller.reset([0, 1])
    assert controller.budget.spent.tolist() == [0.0, 0.0]
    Controller(make_pipeline(), CONFIG).record_costs(np.array([1.0]))  # nothing without a budget


def test_a_controller_with_an_objective_of_ones_own(pipeline: MPDiffuserPipeline) -> None:
    controller = Controller(pipeline, CONFIG, objective=lambda latents, actions: actions[..., 0])
    controller.act(latents_of(1).numpy())
    plan = controller.plan
    assert plan is not None
    np.testing.assert_array_equal(plan.weights.argmax(1), plan.actions[:, :, :-1, 0].sum(-1).argmax(1))


@pytest.mark.parametrize(("delay", "chunk"), [(1, 1), (2, 1), (2, 3)])
def test_a_delayed_plan_begins_where_the_forward_model_expects_it(
    pipeline: MPDiffuserPipeline, delay: int, chunk: int
) -> None:
    config = SamplerConfig(steps=3, candidates=2, delay=delay, chunk=chunk)
    controller, random = Controller(pipeline, config), np.random.default_rng(0)
    controller.reset([0, 1])
    plans, followed, carried, seen = [], [], [], []
    for t in range(14):
        seen.append(random.normal(size=(2, D)).astype(np.float32))
        carried.append(controller.act(seen[-1]))
        assert controller.planned_now == (t == 0 or controller.plan is not plans[-1])
        if controller.planned_now:
            plans.append(controller.plan)
            followed.append(t)
        upcoming = controller.upcoming_latents()
        assert len(upcoming) == H - (controller.executed - 1)
    assert len(plans) >= 3
    for plan, t in zip(plans[1:], followed[1:]):
        expected = torch.from_numpy(seen[t - delay])  # it is the plan of an earlier observation
        for action in carried[t - delay : t]:  # and of what was done since then
            expected = pipeline.forward(expected, torch.from_numpy(action)).detach()
        np.testing.assert_allclose(plan.executed_latents[:, 0].numpy(), expected, atol=1e-5)
        np.testing.assert_allclose(plan.executed_actions[:, 0].numpy(), carried[t], atol=1e-6)
    gaps = np.diff(followed[1:])
    assert (gaps == max(chunk, delay)).all()  # the next one begins when the last one arrives


def test_a_goal_and_an_episode_begin_with_a_plan_at_once(pipeline: MPDiffuserPipeline) -> None:
    controller = Controller(pipeline, SamplerConfig(steps=2, candidates=2, delay=2))
    for _ in range(2):
        controller.reset([0])
        controller.act(np.zeros((1, D), np.float32))
        assert controller.planned_now and controller.executed == 1
        controller.act(np.ones((1, D), np.float32))
        assert not controller.planned_now and controller.coming is not None
    controller.act(np.zeros((1, D), np.float32), goal=np.ones((1, D), np.float32))
    assert controller.planned_now and controller.executed == 1
    assert controller.coming is not None and controller.coming[1] == 1  # a new one, from this observation
    with pytest.raises(InputError, match=r"sampler.delay: must lie in 0..7 \(below the horizon\), found 8"):
        Controller(pipeline, SamplerConfig(delay=8))
    pipeline.register_modules(forward=None)
    with pytest.raises(InputError, match=r"sampler\.delay: the pipeline has no forward model; train it with"):
        Controller(pipeline, SamplerConfig(delay=1))


def test_plan_errors_by_a_plain_loop(pipeline: MPDiffuserPipeline) -> None:
    """Squared distances of planned and real latents, in the data's variances, means over the dimensions."""
    controller = Controller(pipeline, CONFIG)
    controller.reset([0, 1])
    controller.act(latents_of(2).numpy())
    plan, asked = controller.plan, []
    real = np.random.default_rng(1).normal(size=(2, 4, D)).astype(np.float32)

    def peek(actions: np.ndarray) -> np.ndarray:
        asked.append(actions)
        return real

    found = controller.plan_errors(peek, 4)
    assert plan is not None
    np.testing.assert_array_equal(asked[0], plan.executed_actions[:, :4])
    std = pipeline.latents.std
    for row in range(2):
        for k in range(4):
            gaps = [(plan.executed_latents[row, k + 1, i] - real[row, k, i]) / std[i] for i in range(D)]
            assert found[row, k] == pytest.approx(float(sum(gap**2 for gap in gaps)) / D, rel=1e-4)
    assert controller.plan_errors(lambda actions: np.zeros((2, actions.shape[1], D), np.float32), 99).shape == (
        2,
        H - 1,
    )
    np.testing.assert_array_equal(controller.upcoming_latents(), plan.executed_latents[0])


def test_a_policy_that_does_not_plan_has_no_plans(pipeline: MPDiffuserPipeline, randomize) -> None:
    policy = NetworkPolicy(pipeline, randomize(CloningPolicy(D, M, hidden=16)))
    policy.reset([0])
    assert policy.plan is None and not policy.planned_now and policy.planning_facts() == {}
    assert policy.upcoming_latents().size == policy.plan_errors(lambda actions: actions, 8).size == 0
    policy.record_costs(np.ones(1))


def test_of_plans_with_a_stride_only_the_first_action_is_executed(make_pipeline, monkeypatch) -> None:
    pipeline = make_pipeline(info={"stride": 5})
    for changed, words in (
        ({"chunk": 2}, "sampler.chunk: must be 1 in plans of stride=5, found 2"),
        ({"delay": 1}, "sampler.delay: must be 0 in plans of stride=5, found 1"),
        ({"warm_start": 1}, "sampler.warm_start: must be 0 in plans of stride=5, found 1"),
    ):
        with pytest.raises(InputError, match=words):
            Controller(pipeline, replace(CONFIG, **changed))
    controller = Controller(pipeline, replace(CONFIG, safe_action=(0.5, -0.5)))
    controller.reset([0])
    for t in range(3):
        action = controller.act(latents_of(1).numpy() + t)
        np.testing.assert_array_equal(action, controller.plan.executed_actions[:, 0])
        assert controller.planned_now
    assert controller.plan_errors(lambda actions: pytest.fail("looks ahead"), 4).shape == (1, 0)

    def fails(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("no plan")

    monkeypatch.setattr(MPDiffuserPipeline, "__call__", fails)
    with pytest.warns(UserWarning, match="planning failed"):
        np.testing.assert_allclose(controller.act(latents_of(1).numpy()), [[0.5, -0.5]])
