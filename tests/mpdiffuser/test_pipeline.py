"""The pipeline: its folder, its plans, and what is executed."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mpdiffuser.budget import Allowance
from mpdiffuser.controller import Controller
from mpdiffuser.errors import InputError
from mpdiffuser.models.denoisers import Dynamics, Planner
from mpdiffuser.pipeline import MPDiffuserPipeline
from mpdiffuser.sampler import COMPOSITIONS, DEFAULT_STEPS, HEARING, SamplerConfig

D, M, H = 3, 2, 8
CONFIG = SamplerConfig(steps=4, candidates=3, rank_temperature=0)


@pytest.fixture
def pipeline(tiny_pipeline: MPDiffuserPipeline) -> MPDiffuserPipeline:
    return tiny_pipeline


def generators(count: int, first: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(first + i) for i in range(count)]


def latents_of(batch: int) -> torch.Tensor:
    return torch.randn(batch, D, generator=torch.Generator().manual_seed(9))


def assert_same_plan(a: Any, b: Any) -> None:
    for name in ("latents", "actions", "scores", "weights"):
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
from mpdiffuser.controller import Controller
from mpdiffuser.pipeline import MPDiffuserPipeline
from mpdiffuser.sampler import DEFAULT_STEPS, SamplerConfig
torch.set_num_threads(1)
pipeline = MPDiffuserPipeline.from_pretrained(sys.argv[1])
controller = Controller(pipeline, SamplerConfig(steps=4, candidates=3, rank_temperature=0, engine="torch"))
controller.reset([3, 4])
assert not [name for name in sys.modules if name.split(".")[0] in ("envs", "evaluation")]
print(json.dumps([controller.act(np.full((2, 3), t, np.float32)).tolist() for t in range(3)]))
"""


@pytest.mark.slow
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


PLAIN = [name for name in COMPOSITIONS if name not in HEARING]


@pytest.mark.parametrize("composition", HEARING)
@pytest.mark.parametrize("engine", ["onnx", "openvino"])
def test_hearing_through_an_engine(make_pipeline, randomize, composition: str, engine: str) -> None:
    pipeline = make_pipeline(dynamics=randomize(Dynamics(3, 2, 8, width=8, embedding=16, hears=True), seed=2))
    config = SamplerConfig(composition=composition, steps=3, candidates=2)
    plans = [
        pipeline(latents_of(4), pipeline.sampler(replace(config, engine=name)), generators(4))
        for name in ("torch", engine)
    ]
    np.testing.assert_allclose(plans[0].latents, plans[1].latents, rtol=0, atol=1e-3)
    np.testing.assert_allclose(plans[0].actions, plans[1].actions, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("composition", "solver"),
    [*((name, "ddpm") for name in PLAIN), *((name, "dpmpp_2m") for name in PLAIN if name != "release")],
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
    assert plan.actions.abs().max() <= 1
    assert (plan.latents[:, 0] != plan.latents[:, 1]).any()
    with torch.no_grad():
        scores = pipeline.ranker.scores(plan.latents, plan.actions).numpy()
    np.testing.assert_allclose(plan.scores, scores, rtol=1e-5, atol=1e-6)
    for i in range(4):
        best = int(scores[i].argmax())
        assert plan.weights[i].argmax() == best
        np.testing.assert_array_equal(plan.executed_latents[i], plan.latents[i, best])
        np.testing.assert_array_equal(plan.executed_actions[i], plan.actions[i, best])
    assert len(set(plan.weights.argmax(1).tolist())) > 1


@pytest.mark.parametrize("level", [0.1, 0.5, 0.95])
def test_the_target_is_an_expectile_of_the_returns_from_there(pipeline: MPDiffuserPipeline, level: float) -> None:
    latents = latents_of(3)
    with torch.no_grad():
        target = pipeline.condition.denormalize(pipeline.target(latents, level))
        expected = torch.stack([pipeline.ranker.expectile(row, level) for row in latents])
    low, high = pipeline.condition.points[0, 0], pipeline.condition.points[0, -1]
    torch.testing.assert_close(target[:, 0], expected.clamp(low, high), rtol=1e-3, atol=1e-3)


def test_each_row_has_a_target_of_its_own(pipeline: MPDiffuserPipeline) -> None:
    """Every candidate of a row is drawn with that row's target, and the target matters."""
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
    np.testing.assert_array_equal(plan.weights.argmax(1), plan.latents[:, :, :-1, 0].sum(-1).argmax(1))
    limit = plan.latents[:, :, 1:-1, 0].amax(-1).amin(1).max() + 1e-6  # at least one candidate stays below

    def forbid(latents: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        rewards = latents[..., 0].clone()
        rewards[:, 1:][rewards[:, 1:] > limit] = -torch.inf  # the first state is given
        return rewards

    there = pipeline(latents_of(4), sampler, generators(4), objective=forbid)
    assert (there.executed_latents[:, 1:-1, 0].amax(1) <= limit).all()
    with pytest.raises(InputError, match=r"objective: must return a tensor of rewards \(12, 8\), found \(12,\)"):
        pipeline(latents_of(4), sampler, generators(4), objective=lambda latents, actions: latents[:, 0, 0])


def test_the_gradient_of_an_objective_moves_the_plans(pipeline: MPDiffuserPipeline) -> None:
    """The more the more, up to the data's range; the present state stays."""
    low = lambda latents, actions: -latents[..., 1] - actions[..., 0]  # noqa: E731
    means = []
    for scale in (0.0, 0.01, 0.1, 100.0):
        config = replace(CONFIG, objective_scale=scale)
        plan = pipeline(latents_of(3), pipeline.sampler(config), generators(3), objective=low)
        np.testing.assert_allclose(plan.latents[:, :, 0], latents_of(3)[:, None].expand(3, 3, D), rtol=0, atol=1e-5)
        means.append((plan.latents[:, :, 1:-1, 1].mean(), plan.actions[:, :, :-1, 0].mean()))
    for part in zip(*means):
        assert (np.diff(part) < 0).all()
    assert means[-1][0] == pytest.approx(float(pipeline.latents.low[1]), abs=1e-3)


def test_a_budget_is_asked_for_and_kept_to(make_pipeline) -> None:
    """The planner is asked for the rate that is left; what does not fit has no weight."""
    pipeline, seen = make_pipeline(costs=True), []
    handle = pipeline.planner.register_forward_hook(lambda module, inputs, output: seen.append(inputs[2].clone()))
    latents, sampler = latents_of(3), pipeline.sampler(replace(CONFIG, candidates=8))
    allowance = Allowance(torch.tensor([2.0, -1.0, 50.0]), torch.tensor([10.0, 4.0, 100.0]))
    plan = pipeline(latents, sampler, generators(3), allowance=allowance)
    handle.remove()
    asked = pipeline.condition.denormalize(seen[0])[::8, 1]
    least = pipeline.ranker.cost_scale.points[0, 0].item()
    np.testing.assert_allclose(asked, [0.2, least, 0.5], atol=0.01)
    with torch.no_grad():
        wide = (part[:, None].expand(3, 8) for part in (allowance.steps, allowance.rate))
        costs = pipeline.ranker.expected_cost(plan.latents, plan.actions, *wide).numpy()
    np.testing.assert_allclose(plan.costs, costs, rtol=1e-4, atol=1e-5)
    for row, left in enumerate(allowance.cost.tolist()):
        fits = np.flatnonzero(costs[row] <= left)
        best = fits[plan.scores[row, fits].argmax()] if len(fits) else costs[row].argmin()
        assert plan.weights[row].argmax() == best


@pytest.mark.slow
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
    assert (plan.actions[:, :, 3:] - free.actions[:, :, 3:]).abs().max() > 1e-3  # and the rest of the plan answers


# controllers


def test_a_candidate_gone_bad_has_no_weight(pipeline: MPDiffuserPipeline) -> None:
    def spoil(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        output = output.clone()
        output[0] = torch.nan  # of 3 candidates the first
        return output

    handle = pipeline.planner.register_forward_hook(spoil)
    for seed in range(5):
        plan = pipeline(latents_of(1), pipeline.sampler(CONFIG), generators(1, seed))
        assert plan.scores[0, 0] == -torch.inf and plan.scores[0, 1:].isfinite().all()
        assert plan.weights[0, 0] == 0
    handle.remove()


def test_settings_are_saved_with_the_pipeline(make_pipeline, tmp_path: Path) -> None:
    """All of them; those that are not given are the defaults."""
    pipeline = make_pipeline(sampler={"solver": "ddpm", "steps": 7, "safe_action": [0.5, -0.5]})
    pipeline.save_pretrained(tmp_path)
    loaded = MPDiffuserPipeline.from_pretrained(tmp_path)
    expected = SamplerConfig(solver="ddpm", steps=7, safe_action=[0.5, -0.5])
    assert pipeline.sampler_defaults == expected
    assert replace(loaded.sampler_defaults, guidance_interval=(0.0, 1.0)) == expected
    assert make_pipeline().sampler_defaults == SamplerConfig()
    with pytest.raises(InputError, match=r"sampler\.steps: must be at least 1, found 0"):
        make_pipeline(sampler={"steps": 0})


def test_the_number_of_levels_unless_it_is_given(make_pipeline) -> None:
    assert make_pipeline().sampler(SamplerConfig()).config.steps == DEFAULT_STEPS
    chosen = make_pipeline(sampler={"steps": 5})
    assert chosen.sampler(SamplerConfig()).config.steps == 5
    assert chosen.sampler(SamplerConfig(steps=2)).config.steps == 2


def test_a_composition_that_needs_a_dynamics_model(make_pipeline) -> None:
    pipeline = make_pipeline(dynamics=None)
    with pytest.raises(InputError, match=r"sampler\.composition: 'fused' needs a dynamics model"):
        pipeline.sampler(CONFIG)
    assert pipeline.sampler(replace(CONFIG, composition="planner")).dynamics is None
