"""The pipeline folder and the controllers."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mpdiffuser.models.cloning import BehaviourCloning

from mpdiffuser.budget import Allowance, Budget
from mpdiffuser.controller import CloningController, Controller, RandomController
from mpdiffuser.errors import InputError
from mpdiffuser.models.denoisers import Dynamics, Planner
from mpdiffuser.models.normalizer import Marginals, Normalizer
from mpdiffuser.models.ranker import Ranker
from mpdiffuser.pipeline import MPDiffuserPipeline, Plan, choose
from mpdiffuser.sampler import COMPOSITIONS, SamplerConfig
from mpdiffuser.schedule import NoiseSchedule
from vision.encoder import IdentityEncoder

D, M, H = 3, 2, 8
SIZES = dict(latent_dim=D, action_dim=M, horizon=H, width=8, multipliers=(1, 2), embedding=16)
CONFIG = SamplerConfig(steps=4, candidates=3, rank_temperature=0)


@pytest.fixture
def pipeline(randomize) -> MPDiffuserPipeline:
    random = np.random.default_rng(0)
    latents = random.normal([0, 5, -1], [1, 2, 0.1], (200, D))
    ranker = randomize(Ranker(D, M, hidden=16), seed=4)
    ranker.latents.fit(latents)
    ranker.rewards.fit(random.normal(size=(50, 1)))
    ranker.returns.fit(random.normal(size=(200, 1)))
    return MPDiffuserPipeline(
        IdentityEncoder(D, M),
        Normalizer(D).fit(latents),
        Normalizer(M).fit(random.uniform(-0.9, 0.9, (200, M))),
        Marginals(1).fit(random.normal(size=(200, 1))),
        randomize(Planner(**SIZES), seed=1),
        randomize(Dynamics(**SIZES), seed=2),
        ranker,
        NoiseSchedule(50),
        info={"task": "none", "data": "abc"},
    )


def generators(count: int, first: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(first + i) for i in range(count)]


def latents_of(batch: int) -> torch.Tensor:
    return torch.randn(batch, D, generator=torch.Generator().manual_seed(9))


def assert_same_plan(a: Any, b: Any) -> None:
    for name in ("latents", "actions", "scores", "chosen"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


def test_a_loaded_pipeline_plans_bit_for_bit(pipeline: MPDiffuserPipeline, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path)
    loaded, again = (MPDiffuserPipeline.from_pretrained(tmp_path) for _ in range(2))
    plans = [p(latents_of(2), p.sampler(CONFIG), generators(2)) for p in (loaded, again, pipeline)]
    assert_same_plan(*plans[:2])
    for name in ("latents", "actions", "scores"):  # tensors that lie elsewhere in memory may be summed in another order
        np.testing.assert_allclose(getattr(plans[0], name), getattr(plans[2], name), rtol=1e-4, atol=1e-5)
    for name, component in pipeline.components.items():
        if isinstance(component, torch.nn.Module):
            theirs = getattr(loaded, name).state_dict()
            assert all(torch.equal(value, theirs[key]) for key, value in component.state_dict().items())
    assert loaded.config["info"] == {"task": "none", "data": "abc"}
    assert loaded.decoder is None
    assert loaded.schedule.config["num_levels"] == 50


def test_the_folder_holds_no_programs(pipeline: MPDiffuserPipeline, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path)
    assert {file.suffix for file in tmp_path.rglob("*") if file.is_file()} == {".json", ".safetensors"}


FRESH = """
import json, sys
import numpy as np, torch
import vision
from mpdiffuser.controller import Controller
from mpdiffuser.pipeline import MPDiffuserPipeline
from mpdiffuser.sampler import SamplerConfig
torch.set_num_threads(1)
pipeline = MPDiffuserPipeline.from_pretrained(sys.argv[1])
controller = Controller(pipeline, SamplerConfig(steps=4, candidates=3, rank_temperature=0, engine="torch"))
controller.reset([3, 4])
print(json.dumps([controller.act(np.full((2, 3), t, np.float32)).tolist() for t in range(3)]))
"""


def test_a_fresh_process_acts_the_same(pipeline: MPDiffuserPipeline, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path / "pipeline")
    controller = Controller(MPDiffuserPipeline.from_pretrained(tmp_path / "pipeline"), CONFIG)
    controller.reset([3, 4])
    expected = [controller.act(np.full((2, D), t, np.float32)).tolist() for t in range(3)]
    done = subprocess.run(
        [sys.executable, "-c", FRESH, str(tmp_path / "pipeline")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == expected


@pytest.mark.parametrize(
    ("composition", "solver"),
    [*((name, "ddpm") for name in COMPOSITIONS), *((name, "dpmpp_2m") for name in COMPOSITIONS if name != "release")],
)
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_a_plan_does_not_depend_on_its_neighbours(
    pipeline: MPDiffuserPipeline, composition: str, guidance: float, solver: str
) -> None:
    config = SamplerConfig(composition=composition, solver=solver, steps=4, candidates=3, guidance=guidance)
    sampler, latents = pipeline.sampler(config), latents_of(5)
    together = pipeline(latents, sampler, generators(5))
    for i in range(5):
        alone = pipeline(latents[i : i + 1], sampler, generators(1, first=i))
        np.testing.assert_allclose(alone.latents[0], together.latents[i], rtol=0, atol=1e-5)
        np.testing.assert_allclose(alone.actions[0], together.actions[i], rtol=0, atol=1e-5)
        np.testing.assert_allclose(alone.scores[0], together.scores[i], rtol=0, atol=1e-5)


def test_the_plan(pipeline: MPDiffuserPipeline) -> None:
    latents = latents_of(4)
    plan = pipeline(latents, pipeline.sampler(CONFIG), generators(4))
    assert plan.latents.shape == (4, 3, H, D)
    assert plan.actions.shape == (4, 3, H, M)
    np.testing.assert_allclose(plan.latents[:, :, 0], latents[:, None].expand(4, 3, D), rtol=0, atol=1e-5)
    assert np.abs(plan.actions).max() <= 1
    assert (plan.latents[:, 0] != plan.latents[:, 1]).any()
    with torch.no_grad():
        scores = pipeline.ranker.scores(torch.from_numpy(plan.latents), torch.from_numpy(plan.actions)).numpy()
    np.testing.assert_allclose(plan.scores, scores, rtol=1e-5, atol=1e-6)
    for i in range(4):
        best = int(np.argmax(scores[i]))
        assert plan.chosen[i] == best
        np.testing.assert_array_equal(plan.best_latents[i], plan.latents[i, best])
        np.testing.assert_array_equal(plan.best_actions[i], plan.actions[i, best])
    assert len(set(plan.chosen)) > 1


@pytest.mark.parametrize("level", [0.1, 0.5, 0.95])
def test_the_wish_is_what_the_best_got_from_there(pipeline: MPDiffuserPipeline, level: float) -> None:
    latents = latents_of(3)
    with torch.no_grad():
        wish = pipeline.condition.denormalize(pipeline.target(latents, level))
        expected = torch.stack([pipeline.ranker.expectile(row, level) for row in latents])
    low, high = pipeline.condition.points[0, 0], pipeline.condition.points[0, -1]
    torch.testing.assert_close(wish[:, 0], expected.clamp(low, high), rtol=1e-3, atol=1e-3)


def test_each_row_wishes_for_itself(pipeline: MPDiffuserPipeline) -> None:
    """Every candidate of a row is drawn with that row's wish, and the wish matters."""
    seen = []
    handle = pipeline.planner.register_forward_hook(lambda module, inputs, output: seen.append(inputs[2].clone()))
    latents, sampler = latents_of(2), pipeline.sampler(CONFIG)
    plan = pipeline(latents, sampler, generators(2))
    expected = pipeline.target(latents, CONFIG.target).repeat_interleave(3, 0)
    assert len(seen) == CONFIG.steps and all(torch.equal(condition, expected) for condition in seen)
    handle.remove()
    more = pipeline(latents, pipeline.sampler(SamplerConfig(steps=4, candidates=3, target=0.1)), generators(2))
    assert (more.actions != plan.actions).any()


def test_candidates_may_have_targets_of_their_own(pipeline: MPDiffuserPipeline) -> None:
    seen = []
    handle = pipeline.planner.register_forward_hook(lambda module, inputs, output: seen.append(inputs[2].clone()))
    latents = latents_of(2)
    pipeline(latents, pipeline.sampler(replace(CONFIG, target=0.8, target_spread=0.4)), generators(2))
    handle.remove()
    expected = torch.stack([pipeline.target(latents, level) for level in (0.4, 0.8, 1.0)], 1).flatten(0, 1)
    torch.testing.assert_close(seen[0], expected)


def test_an_objective_ranks_in_place_of_the_ranker(pipeline: MPDiffuserPipeline) -> None:
    """The candidate whose second state is greatest; forbidden ones only if all are."""
    second = lambda latents, actions: latents[..., 0]  # noqa: E731
    sampler = pipeline.sampler(CONFIG)
    plan = pipeline(latents_of(4), sampler, generators(4), objective=second)
    np.testing.assert_array_equal(plan.chosen, plan.latents[:, :, :-1, 0].sum(-1).argmax(1))
    limit = np.sort(plan.latents[:, :, 1:-1, 0].max(-1), 1)[:, 0].max() + 1e-6  # at least one candidate stays below
    forbid = lambda latents, actions: torch.where(latents[..., 0] > limit, -torch.inf, latents[..., 0])  # noqa: E731
    there = pipeline(latents_of(4).clamp(max=float(limit)), sampler, generators(4), objective=forbid)
    chosen = there.best_latents[:, :-1, 0].max(1)
    assert (chosen <= limit).all()
    with pytest.raises(InputError, match=r"objective: must give a tensor of rewards \(12, 8\), found \(12,\)"):
        pipeline(latents_of(4), sampler, generators(4), objective=lambda latents, actions: latents[:, 0, 0])


def test_an_objective_pulls_at_the_plans(pipeline: MPDiffuserPipeline) -> None:
    """The more the more, up to the data's range; the present state stays."""
    low = lambda latents, actions: -latents[..., 1] - actions[..., 0]  # noqa: E731
    means = []
    for pull in (0.0, 0.01, 0.1, 100.0):
        config = replace(CONFIG, pull=pull)
        plan = pipeline(latents_of(3), pipeline.sampler(config), generators(3), objective=low)
        np.testing.assert_allclose(plan.latents[:, :, 0], latents_of(3)[:, None].expand(3, 3, D), rtol=0, atol=1e-5)
        means.append((plan.latents[:, :, 1:-1, 1].mean(), plan.actions[:, :, :-1, 0].mean()))
    for part in zip(*means):
        assert (np.diff(part) < 0).all()
    assert means[-1][0] == pytest.approx(float(pipeline.latents.low[1]), abs=1e-3)


def test_choosing_under_a_budget() -> None:
    scores = np.array([[3.0, 2, 1], [3, 2, 1], [np.nan, 2, 1], [-np.inf, -np.inf, -np.inf]])
    costs = np.array([[9.0, 4, 1], [9, 7, 6], [0, 5, 4], [3, 1, 2]])
    actions = np.zeros((4, 3, 1))
    assert choose(scores, actions, 0).tolist() == [0, 0, 1, 0]
    for temperature in (0, 1):
        assert choose(scores, actions, temperature, costs, np.array([5.0, 5, 3, 5])).tolist() == [1, 2, 2, 0]


@given(st.integers(0, 2**31), st.integers(1, 7), st.sampled_from([0.1, 1.0, 5.0]))
def test_the_candidate_that_the_good_ones_agree_on(seed: int, n: int, temperature: float) -> None:
    """Against the definition, a candidate at a time."""
    random = np.random.default_rng(seed)
    scores, actions = random.normal(size=(3, n)), random.normal(size=(3, n, 2))
    scores[0, 0] = -np.inf
    costs, budget = random.uniform(0, 2, (3, n)), np.array([3.0, 3.0, 1.0])
    chosen = choose(scores, actions, temperature, costs, budget)
    for row in range(3):
        able = [i for i in range(n) if np.isfinite(scores[row, i]) and costs[row, i] <= budget[row]]
        if not able:
            continue
        known = scores[row, able]
        weights = np.exp((known - known.max()) / (temperature * max(known.std(), 1e-12)))
        risk = [sum(w * np.linalg.norm(actions[row, i] - actions[row, j]) for w, j in zip(weights, able)) for i in able]
        assert risk[able.index(chosen[row])] == pytest.approx(min(risk))


def test_agreement_between_the_best_and_the_most() -> None:
    """Three alike and a fourth, better by a little or by a lot of the ranker's own spread."""
    actions = np.array([[[0.0], [0.1], [0.2], [0.9]]])
    scores = np.array([[1.0, 1.1, 1.0, 1.5]])
    assert choose(scores, actions, 0).tolist() == [3]
    assert choose(scores, actions, 0.1).tolist() == [3]
    assert choose(scores, actions, 1e6)[0] in (1, 2)  # the medians of four


def test_a_budget_is_asked_for_and_kept_to(pipeline: MPDiffuserPipeline, randomize) -> None:
    """The planner is asked for the rate that is left; what does not fit is not chosen."""
    random = np.random.default_rng(3)
    pipeline.ranker = randomize(Ranker(D, M, hidden=16, costs=True), seed=4)
    targets = random.uniform(0, 1, (200, 2))  # return_to_go, cost_to_go
    pipeline.ranker.prices.fit(targets[:, 1])
    pipeline.condition = Marginals(2).fit(targets)
    pipeline.planner = randomize(Planner(**SIZES, condition_dim=2), seed=1)
    seen = []
    handle = pipeline.planner.register_forward_hook(lambda module, inputs, output: seen.append(inputs[2].clone()))
    latents, sampler = latents_of(3), pipeline.sampler(replace(CONFIG, candidates=8))
    allowance = Allowance(torch.tensor([2.0, -1.0, 50.0]), torch.tensor([10.0, 4.0, 100.0]))
    plan = pipeline(latents, sampler, generators(3), allowance=allowance)
    handle.remove()
    asked = pipeline.condition.denormalize(seen[0])[::8, 1]
    least = pipeline.ranker.prices.points[0, 0].item()
    np.testing.assert_allclose(asked, [0.2, least, 0.5], atol=0.01)
    with torch.no_grad():
        tensors = [torch.from_numpy(part) for part in (plan.latents, plan.actions)]
        wide = (part[:, None].expand(3, 8) for part in (allowance.steps, allowance.rate))
        costs = pipeline.ranker.expense(*tensors, *wide).numpy()
    np.testing.assert_allclose(plan.costs, costs, rtol=1e-4, atol=1e-5)
    for row, left in enumerate(allowance.cost.tolist()):
        fits = np.flatnonzero(costs[row] <= left)
        best = fits[plan.scores[row, fits].argmax()] if len(fits) else costs[row].argmin()
        assert plan.chosen[row] == best


def test_a_budget_needs_costs(pipeline: MPDiffuserPipeline) -> None:
    with pytest.raises(InputError, match="had no costs"):
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


@pytest.mark.parametrize("engine", ["openvino", "onnx"])
def test_the_plan_of_another_engine_is_the_same(pipeline: MPDiffuserPipeline, engine: str) -> None:
    """Within 1e-3 of a deviation of the data; also after other weights took the place of the compiled ones."""
    for _ in range(2):
        plans = [
            pipeline(latents_of(3), pipeline.sampler(replace(CONFIG, engine=name, guidance=2.0)), generators(3))
            for name in ("torch", engine)
        ]
        np.testing.assert_allclose(plans[0].latents, plans[1].latents, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(plans[0].actions, plans[1].actions, rtol=1e-3, atol=1e-3)
        pipeline.planner = Planner.from_config(pipeline.planner.config).eval()


def test_what_is_known_is_in_its_place(pipeline: MPDiffuserPipeline) -> None:
    goal, committed = latents_of(2) + 1, torch.linspace(-0.8, 0.8, 2 * 3 * M).reshape(2, 3, M)
    sampler = pipeline.sampler(CONFIG)
    plan = pipeline(latents_of(2), sampler, generators(2), goal=goal, committed=committed)
    free = pipeline(latents_of(2), sampler, generators(2))
    for candidate in range(CONFIG.candidates):
        np.testing.assert_allclose(plan.latents[:, candidate, -1], goal, rtol=0, atol=1e-5)
        np.testing.assert_allclose(plan.actions[:, candidate, :3], committed, rtol=0, atol=1e-5)
    assert np.abs(plan.actions[:, :, 3:] - free.actions[:, :, 3:]).max() > 1e-3  # and the rest of the plan answers


# controllers


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
    controller = Controller(pipeline, CONFIG, chunk=3)
    controller.reset([0])
    observation, plans = np.zeros((1, D), np.float32), []
    for t in range(7):
        action = controller.act(observation)
        plans.append(controller.plan)
        assert controller.planned_now == (t % 3 == 0)
        np.testing.assert_array_equal(action, plans[-1].best_actions[:, t % 3])
    assert plans[0] is plans[2] and plans[2] is not plans[3] and plans[3] is plans[5] and plans[5] is not plans[6]


def test_resetting_repeats_an_episode(pipeline: MPDiffuserPipeline) -> None:
    controller = Controller(pipeline, SamplerConfig(steps=4, candidates=2, warm_start=2), chunk=2)
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
    monkeypatch.setattr(
        MPDiffuserPipeline, "__call__", lambda self, *inputs: (given.append(inputs[3]), call(self, *inputs))[1]
    )
    controller = Controller(pipeline, SamplerConfig(steps=4, candidates=2, warm_start=2), chunk=3)
    controller.reset([0])
    observation = np.zeros((1, D), np.float32)
    controller.act(observation)
    first = controller.plan
    for _ in range(3):
        controller.act(observation)
    assert given[0] is None
    order = [*range(3, H), H - 1, H - 1, H - 1]
    np.testing.assert_array_equal(given[1][0], first.best_latents[:, order])
    np.testing.assert_array_equal(given[1][1], first.best_actions[:, order])


@pytest.mark.parametrize("chunk", [0, -1, H, H + 1])
def test_a_chunk_that_does_not_fit(pipeline: MPDiffuserPipeline, chunk: int) -> None:
    with pytest.raises(InputError, match=rf"sampler\.chunk: must lie in 1\.\.7.*found {chunk}"):
        Controller(pipeline, CONFIG, chunk)


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
        assert np.isneginf(controller.plan.scores).all()
    with torch.no_grad():
        parameter.copy_(kept)
    controller.act(observations)
    assert np.isfinite(controller.plan.latents).all()  # and it recovers
    assert np.isfinite(healthy).all()


class Silent:
    """A planner that fails from plan to plan as told."""

    def __init__(self, pipeline: MPDiffuserPipeline, monkeypatch, fails: list[Any]) -> None:
        call = MPDiffuserPipeline.__call__

        def act(self: Any, *inputs: Any) -> Plan:
            fault = fails.pop(0)
            if isinstance(fault, Exception):
                raise fault
            plan = call(self, *inputs)
            for row in fault:
                plan.scores[row] = -np.inf
                plan.actions[row] = np.nan
            return plan

        monkeypatch.setattr(MPDiffuserPipeline, "__call__", act)


@pytest.mark.filterwarnings("ignore:planning failed")
def test_what_is_done_when_no_plan_can_be_had(pipeline: MPDiffuserPipeline, monkeypatch) -> None:
    """Row 1 at decision 4, all rows at 6 and 8: the last plan goes on; where there is none, the safe action."""
    Silent(pipeline, monkeypatch, [[], [], [1], RuntimeError("out of memory"), ValueError("no")])
    controller = Controller(pipeline, CONFIG, chunk=2, safe_action=[0.5, -0.25])
    controller.reset([0, 1])
    taken, plans = [], []
    for _ in range(10):
        taken.append(controller.act(np.zeros((2, D), np.float32)))
        plans.append(controller.plan)
    second, third = plans[2].best_actions, plans[4].best_actions
    np.testing.assert_array_equal(np.stack(taken[4:6])[:, 0], third[0, :2])  # its plan was fine
    np.testing.assert_array_equal(np.stack(taken[4:])[:, 1], second[1, 2:8])
    np.testing.assert_array_equal(np.stack(taken[4:])[:, 0], third[0, :6])
    assert controller.fallbacks == 1 + 2 + 2
    controller.reset([0, 1])
    assert controller.fallbacks == 0


@pytest.mark.filterwarnings("ignore:planning failed")
def test_the_safe_action_where_nothing_else_is_known(pipeline: MPDiffuserPipeline, monkeypatch) -> None:
    Silent(pipeline, monkeypatch, [RuntimeError()] * 3 + [[]] + [RuntimeError()] * 10)
    controller = Controller(pipeline, CONFIG, safe_action=[0.5, -0.25])
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


@pytest.mark.parametrize("safe", [[0.1], [0.0, 1.5], [0.0, float("nan")]])
def test_a_safe_action_that_is_none(pipeline: MPDiffuserPipeline, safe: list[float]) -> None:
    with pytest.raises(InputError, match=r"sampler\.safe_action: must be 2 numbers in -1\.\.1, found"):
        Controller(pipeline, CONFIG, safe_action=safe)


@pytest.mark.parametrize(
    ("observations", "words"),
    [
        (np.zeros((1, D), np.float32), r"one for each of the 2 seeds of reset needed, found 1"),
        (np.zeros((2, D + 1), np.float32), r"float32 of shape \(3,\), found float32 of shape \(4,\)"),
        (np.zeros((2, 64, 64, 3), np.uint8), r"float32 of shape \(3,\), found uint8 of shape \(64, 64, 3\)"),
        (np.zeros((2, D), np.int64), r"trained on float32 .* found int64"),
    ],
)
def test_observations_of_another_kind(pipeline: MPDiffuserPipeline, observations: np.ndarray, words: str) -> None:
    pipeline.register_to_config(info={"observation": {"shape": [D], "dtype": "float32"}})
    controller = Controller(pipeline, CONFIG)
    controller.reset([0, 1])
    controller.act(np.zeros((2, D)))  # float64 is float enough
    with pytest.raises(InputError, match=words):
        controller.act(observations)


def test_a_candidate_gone_bad_is_never_chosen(pipeline: MPDiffuserPipeline) -> None:
    def spoil(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        output = output.clone()
        output[0] = torch.nan  # of 3 candidates the first
        return output

    handle = pipeline.planner.register_forward_hook(spoil)
    for seed in range(5):
        plan = pipeline(latents_of(1), pipeline.sampler(CONFIG), generators(1, seed))
        assert np.isneginf(plan.scores[0, 0]) and np.isfinite(plan.scores[0, 1:]).all()
        assert plan.chosen[0] != 0
    handle.remove()


def test_cloning_controller_is_the_policy(randomize) -> None:
    policy = randomize(BehaviourCloning(D, M, hidden=16))
    controller = CloningController(IdentityEncoder(D, M), policy)
    controller.reset([0, 1])
    observations = latents_of(2).numpy()
    with torch.no_grad():
        np.testing.assert_allclose(controller.act(observations), policy(torch.from_numpy(observations)))


def test_random_controller() -> None:
    controller = RandomController(M)
    controller.reset(range(4))
    first = np.stack([controller.act(np.zeros((4, D))) for _ in range(500)])
    assert first.shape == (500, 4, M) and np.abs(first).max() <= 1
    assert abs(first.mean()) < 0.05 and first.std() == pytest.approx(3**-0.5, rel=0.05)
    controller.reset([3])
    alone = np.stack([controller.act(np.zeros((1, D))) for _ in range(500)])
    np.testing.assert_array_equal(alone[:, 0], first[:, 3])
