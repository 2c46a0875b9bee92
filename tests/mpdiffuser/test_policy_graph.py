"""The policy as one graph gives what the controller gives: with all compositions, histories, goals, and costs."""

import io
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from mpdiffuser.adaptation import ActionMap
from mpdiffuser.controller import Controller
from mpdiffuser.engines import graph
from mpdiffuser.errors import InputError
from mpdiffuser.models.denoisers import Dynamics, Planner
from mpdiffuser.pipeline import MPDiffuserPipeline
from mpdiffuser.policy_graph import PolicyGraph, described
from mpdiffuser.record import PROPRIOCEPTION, Actions, Observation, Record
from mpdiffuser.sampler import SamplerConfig
from vision.encoder import IdentityEncoder

ROBOTS, DECISIONS = 2, 3
RECORD = Record({"observations": Observation(PROPRIOCEPTION, (3,))}, Actions((-2.0, -1.0), (3.0, 1.0)))
SIZES: dict[str, Any] = {"action_dim": 2, "horizon": 8, "width": 8, "multipliers": (1, 2), "embedding": 16}
SETTINGS = {
    "fused": SamplerConfig(guidance=2.0),
    "noise between levels": SamplerConfig(solver="ddpm"),
    "second order": SamplerConfig(solver="dpmpp_2m", guidance=2.0, guidance_interval=(0.3, 0.9)),
    "release": SamplerConfig(composition="release", solver="ddpm"),
    "sequential": SamplerConfig(composition="sequential", solver="ddpm"),
    "planner, spread, best": SamplerConfig(composition="planner", target_spread=0.3, rank_temperature=0),
    "contrast": SamplerConfig(composition="contrast", dynamics_power=2.0),
}
GRAPHS = ("fused", "second order", "contrast")  # also in the runtimes

Run = Callable[[Mapping[str, np.ndarray]], list[np.ndarray]]


def eager(policy: PolicyGraph) -> Run:
    return lambda given: [part.numpy() for part in policy(*map(torch.from_numpy, given.values()))]


def onnx(policy: PolicyGraph) -> Run:
    import onnxruntime

    drawn = graph(policy, policy.example(), policy.outputs, any_batch=False)
    session = onnxruntime.InferenceSession(drawn, providers=["CPUExecutionProvider"])
    return lambda given: session.run(None, dict(given))


def openvino(policy: PolicyGraph) -> Run:
    import openvino as ov

    core = ov.Core()
    drawn = graph(policy, policy.example(), policy.outputs, any_batch=False)
    model = core.compile_model(core.read_model(io.BytesIO(drawn)), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda given: [part.copy() for part in model(dict(given)).to_tuple()]


RUNTIMES = {"eager": eager, "onnx": onnx, "openvino": openvino}


@torch.no_grad()
def assert_acts_alike(pipeline: MPDiffuserPipeline, config: SamplerConfig, runtime: str) -> None:
    """Actions and plans of some decisions are those of a controller with eager torch."""
    config = replace(config, steps=2, candidates=3)
    policy = PolicyGraph(pipeline, config, ROBOTS)
    run, controller = RUNTIMES[runtime](policy), Controller(pipeline, replace(config, engine="torch"))
    seeds, random = range(ROBOTS), np.random.default_rng(1)
    controller.reset(seeds)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    given = {name: part.numpy() for name, part in policy.example().items()}
    goal = random.normal(size=(ROBOTS, 3)).astype(np.float32) if pipeline.takes_goals else None
    for _ in range(DECISIONS):
        seen = random.normal(size=(ROBOTS, 3)).astype(np.float32)
        action = controller.act(seen, goal=goal)
        shape, draws = pipeline.noise_shape(config), given["noise"].shape[1]
        rows = [
            torch.stack([torch.randn(shape, generator=generator) for _ in range(draws)]) for generator in generators
        ]
        given |= {"observations": seen, "noise": torch.stack(rows).numpy()}
        if goal is not None:
            given["goal_observations"] = goal
        found = dict(zip(policy.outputs, run(given), strict=True))
        close(found["action"], action)
        close(found["plan_actions"], controller.plan.executed_actions.numpy())
        close(found["plan_latents"], controller.plan.executed_latents.numpy())
        close(found["score"], (controller.plan.weights * controller.plan.scores).sum(1).numpy())
        assert found["sound"].all()
        if policy.remembers:
            given |= {name: found[f"next_{name}"] for name in ("features", "actions")}
            given["start"] = np.zeros(ROBOTS, bool)


def close(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.fixture
def make(make_pipeline) -> Callable[..., MPDiffuserPipeline]:
    def make(**options: Any) -> MPDiffuserPipeline:
        info = {"record": RECORD.to_json(), **options.pop("info", {})}
        return make_pipeline(info=info, **options)

    return make


@pytest.mark.parametrize(
    ("runtime", "name"),
    [*(("eager", name) for name in SETTINGS), *((graph, name) for graph in ("onnx", "openvino") for name in GRAPHS)],
)
def test_all_ways_to_sample(make, randomize, name: str, runtime: str) -> None:
    dynamics = randomize(Dynamics(latent_dim=3, **SIZES, hears=True), 2)
    assert_acts_alike(make(dynamics=dynamics) if name == "contrast" else make(), SETTINGS[name], runtime)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_histories_costs_and_changed_robots(make, runtime: str) -> None:
    wide, change = 3 * 3 + 2 * 2, ActionMap(((0.5, 0.1), (0.0, 1.5)), (0.1, 0.0))
    info = {"adaptation": {"map": change.to_json()}}
    assert_acts_alike(
        make(latent_dim=wide, encoder=IdentityEncoder(wide, 2, 3), costs=True, info=info), SamplerConfig(), runtime
    )


def test_goals(make, randomize) -> None:
    planner = randomize(Planner(latent_dim=3, **SIZES, goal_dim=3), 1)
    assert_acts_alike(make(planner=planner), SamplerConfig(), "openvino")


@torch.no_grad()
def test_without_a_plan_it_takes_the_safe_action(make) -> None:
    policy = PolicyGraph(make(), SamplerConfig(steps=2, safe_action=(1.5, -0.5)), 2)
    given = policy.example()
    given["observations"][1] = torch.nan
    action, sound, *_ = policy(*given.values())
    assert sound.tolist() == [True, False]
    assert action[1].tolist() == [1.5, -0.5] and action[0].isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_an_observation_with_which_the_networks_overflow(make, runtime: str) -> None:
    """A runtime's clamp makes a number of what is none."""
    policy = PolicyGraph(make(), SamplerConfig(steps=2, safe_action=(1.5, -0.5)), 1)
    given = policy.example()
    given["observations"] += 1e20
    action, sound, *_ = RUNTIMES[runtime](policy)({name: value.numpy() for name, value in given.items()})
    assert not sound.any() and action[0].tolist() == [1.5, -0.5]


def test_what_a_graph_cannot_do_is_refused(make, make_pipeline, randomize) -> None:
    for name, value in (("warm_start", 2), ("deadline_ms", 5.0)):
        with pytest.raises(InputError, match=rf"sampler.{name}: must be 0 in a graph, found {value}"):
            PolicyGraph(make(), SamplerConfig(**{name: value}))
    with pytest.raises(InputError, match="robots: must be a whole number from 1 on, found 0"):
        PolicyGraph(make(), SamplerConfig(), 0)
    with pytest.raises(InputError, match="does not say what its observations are"):
        PolicyGraph(make_pipeline(), SamplerConfig())
    with pytest.raises(InputError, match="holds no planner"):
        PolicyGraph(make(planner=None), SamplerConfig())
    bad = make()
    with torch.no_grad():
        next(bad.planner.parameters()).fill_(torch.nan)
    with pytest.raises(InputError, match="some weights are not finite"):
        PolicyGraph(bad, SamplerConfig())


def test_the_description(make) -> None:
    pipeline = make(info={"decision_seconds": 0.05})
    facts = described(PolicyGraph(pipeline, SamplerConfig(steps=4, candidates=5)))
    assert facts["inputs"]["noise"] == {"shape": [1, 1, 3, 8, 5], "dtype": "float32"}
    assert (facts["candidates"], facts["levels"], facts["decision_seconds"], facts["stride"]) == (5, 4, 0.05, 1)
    assert facts["observations"] == RECORD.to_json()["observations"]
