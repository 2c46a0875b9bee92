"""The plan of one latent as one graph is the plan of eager torch."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from mpdiffuser.action_scale import ActionMap
from mpdiffuser.models.denoisers import Dynamics, Planner
from mpdiffuser.pipeline import MPDiffuserPipeline
from mpdiffuser.plan import Plan
from mpdiffuser.plan_graph import PlanEngine
from mpdiffuser.sampler import SamplerConfig

D, M, H = 3, 2, 8
SIZES: dict[str, Any] = {"action_dim": M, "horizon": H, "width": 8, "multipliers": (1, 2), "embedding": 16}
CONFIG = SamplerConfig(steps=2, candidates=3, guidance=2.0)
SETTINGS = {
    "fused": CONFIG,
    "noise between levels": replace(CONFIG, solver="ddpm"),
    "second order": replace(CONFIG, solver="dpmpp_2m"),
    "release": replace(CONFIG, composition="release", solver="ddpm"),
    "sequential": replace(CONFIG, composition="sequential", solver="ddpm"),
    "joint, spread": replace(CONFIG, composition="joint", target_spread=0.3),
    "planner, the best": replace(CONFIG, composition="planner", rank_temperature=0.0),
}


def count_graphs(monkeypatch) -> list[PlanEngine]:
    """A list that gets each graph that is compiled."""
    found: list[PlanEngine] = []
    begin = PlanEngine.__init__

    def counted(self: PlanEngine, *arguments: Any) -> None:
        found.append(self)
        begin(self, *arguments)

    monkeypatch.setattr(PlanEngine, "__init__", counted)
    return found


def plans(pipeline: MPDiffuserPipeline, config: SamplerConfig, engine: str, **more: Any) -> Plan:
    latent = torch.randn(1, D, generator=torch.Generator().manual_seed(5))
    return pipeline(
        latent, pipeline.sampler(replace(config, engine=engine)), [torch.Generator().manual_seed(7)], **more
    )


def assert_alike(pipeline: MPDiffuserPipeline, config: SamplerConfig, engine: str, **more: Any) -> None:
    expected, found = (plans(pipeline, config, name, **more) for name in ("torch", engine))
    for name in ("latents", "actions", "scores", "weights"):
        one, other = getattr(found, name).numpy(), getattr(expected, name).numpy()
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4 * np.abs(other).max())


@pytest.fixture
def goals(make_pipeline, randomize) -> Callable[[], MPDiffuserPipeline]:
    return lambda: make_pipeline(planner=randomize(Planner(latent_dim=D, **SIZES, goal_dim=D), 1))


@pytest.mark.parametrize("name", SETTINGS)
def test_all_ways_to_sample(make_pipeline, monkeypatch, name: str) -> None:
    graphs = count_graphs(monkeypatch)
    assert_alike(make_pipeline(), SETTINGS[name], "openvino")
    assert len(graphs) == 1


def test_actions_that_hear_the_dynamics_model(make_pipeline, randomize) -> None:
    dynamics = randomize(Dynamics(latent_dim=D, **SIZES, hears=True), 2)
    assert_alike(make_pipeline(dynamics=dynamics), replace(CONFIG, composition="contrast"), "openvino")


@pytest.mark.parametrize("engine", ["onnx", "openvino"])
def test_goals_costs_and_given_actions(make_pipeline, goals, monkeypatch, engine: str) -> None:
    graphs = count_graphs(monkeypatch)
    assert_alike(make_pipeline(costs=True), CONFIG, engine)
    told, unaware = goals(), make_pipeline()
    goal, actions = torch.full((1, D), 0.5), torch.linspace(-0.8, 0.8, 3 * M).reshape(1, 3, M)
    assert_alike(told, CONFIG, engine, goal=goal)
    assert len(graphs) == 2
    given = plans(unaware, CONFIG, engine, committed=actions).actions[:, :, :3]  # without a graph
    torch.testing.assert_close(given, actions[:, None].expand_as(given), atol=1e-5, rtol=0)
    assert len(graphs) == 2


def test_where_there_is_no_graph(make_pipeline, monkeypatch) -> None:
    graphs = count_graphs(monkeypatch)
    pipeline = make_pipeline()
    plans(pipeline, CONFIG, "torch")
    plans(pipeline, replace(CONFIG, warm_start=1), "openvino")
    plans(pipeline, CONFIG, "openvino", objective=lambda states, actions: actions[..., 0])
    monkeypatch.setattr("mpdiffuser.pipeline.MOST_LEVELS", 1)
    plans(pipeline, CONFIG, "openvino")
    sampler = pipeline.sampler(replace(CONFIG, engine="openvino", steps=1))
    pipeline(torch.zeros(2, D), sampler, [torch.Generator().manual_seed(i) for i in range(2)])
    assert not graphs
    pipeline(torch.zeros(1, D), sampler, [torch.Generator().manual_seed(0)])
    assert len(graphs) == 1


def test_other_models_and_settings_have_other_graphs(make_pipeline, randomize, monkeypatch) -> None:
    graphs = count_graphs(monkeypatch)
    pipeline, few = make_pipeline(), replace(CONFIG, steps=1)
    for _ in range(2):
        assert_alike(pipeline, few, "onnx")
    assert len(graphs) == 1
    assert_alike(pipeline, replace(few, candidates=4), "onnx")
    assert len(graphs) == 2
    pipeline.planner = randomize(Planner(latent_dim=D, **SIZES), 9)
    assert_alike(pipeline, few, "onnx")
    assert len(graphs) == 3


def test_what_is_not_finite_is_not_hidden(make_pipeline, goals) -> None:
    """A runtime's clamp makes numbers of NaN, which eager torch does not."""
    sampler = (pipeline := make_pipeline()).sampler(replace(CONFIG, engine="openvino", steps=1))
    seeds = [torch.Generator().manual_seed(0)]
    for value in (torch.nan, torch.inf, 1e20):
        assert not pipeline(torch.full((1, D), value), sampler, seeds).sound.any()
    assert pipeline(torch.zeros(1, D), sampler, seeds).sound.all()
    with torch.no_grad():
        next(pipeline.planner.parameters()).fill_(torch.nan)
    fresh = make_pipeline(planner=pipeline.planner)
    assert not fresh(torch.zeros(1, D), fresh.sampler(sampler.config), seeds).sound.any()
    told = goals()
    sampler = told.sampler(replace(CONFIG, engine="openvino", steps=1))
    assert not told(torch.zeros(1, D), sampler, seeds, goal=torch.full((1, D), torch.nan)).sound.any()


def test_a_graph_does_not_outlive_what_it_was_made_from(make_pipeline, randomize) -> None:
    pipeline, few = make_pipeline(), replace(CONFIG, steps=1)
    assert_alike(pipeline, few, "onnx")
    pipeline.latents.fit(np.random.default_rng(0).normal(3, 2, (100, D)).astype(np.float32))
    assert_alike(pipeline, few, "onnx")
    change = ActionMap(((0.5, 0.1), (0.0, 1.5)), (0.1, 0.0))
    pipeline.register_to_config(info={**pipeline.config["info"], "adaptation": {"map": change.to_json()}})
    for name in ("action_map", "action_scale"):
        pipeline.__dict__.pop(name)
    assert_alike(pipeline, few, "onnx")
    sampler = pipeline.sampler(replace(few, engine="onnx"))
    assert pipeline.fits_graph(sampler)
    pipeline.planner = randomize(Planner(latent_dim=D, **SIZES), 9)
    assert not pipeline.fits_graph(sampler)  # it has the old planner
