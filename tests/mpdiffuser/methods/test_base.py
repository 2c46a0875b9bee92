"""What all methods share: settings, and policies from a pipeline folder."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mpdiffuser.budget import Allowance
from mpdiffuser.controller import Controller, Policy
from mpdiffuser.errors import InputError
from mpdiffuser.methods import METHODS, Baseline
from mpdiffuser.models.denoisers import Planner
from mpdiffuser.models.ranker import Ranker

D, M, H = 3, 2, 8
BASELINES = [name for name, method in METHODS.items() if issubclass(method, Baseline)]


@pytest.mark.parametrize("name", BASELINES)
def test_plans_of_each_baseline_from_its_folder(load_baseline, plan_of, name: str) -> None:
    """In the pipeline's own interface; the same from another load; another from another seed."""
    baselines = [load_baseline(name) for _ in range(2)]
    first, again, other = (plan_of(baselines[i], seed) for i, seed in ((0, 0), (1, 0), (0, 5)))
    assert first.latents.shape == (2, 4, H, D) and first.actions.shape == (2, 4, H, M)
    assert first.latents.isfinite().all() and (first.actions.abs() <= 1).all()
    np.testing.assert_array_equal(first.actions, again.actions)
    assert not torch.equal(first.actions, other.actions)
    np.testing.assert_array_equal(first.weights.argmax(1), first.scores.argmax(1))
    ranked = name in ("diffuser", "d_mpc", "sample_and_rank")
    assert bool((first.scores.std(1) > 0).all()) == ranked


@pytest.mark.parametrize("name", list(METHODS))
def test_every_method_acts_from_the_folder_with_its_own_settings(setup_of, name: str) -> None:
    own = {"chunk": 2} if "chunk" in METHODS[name].settings else {}  # below the horizon of 8
    setup = setup_of(name, expert=lambda states: np.zeros((len(states), M)), **own)
    policy = METHODS[name].policy(setup)
    assert isinstance(policy, Policy)
    policy.reset([0, 1])
    actions = policy.act(np.zeros((2, D), np.float32))
    assert actions.shape == (2, M) and np.isfinite(actions).all() and np.abs(actions).max() <= 1
    assert (policy.plan is not None) == isinstance(policy, Controller) == policy.planned_now
    if isinstance(policy, Controller) and issubclass(METHODS[name], Baseline):
        section = {key: value for key, value in setup.section.items() if key != "engine" and value is not None}
        assert {key: getattr(policy.sampler.config, key) for key in section} == section


@pytest.mark.parametrize("name", BASELINES)
def test_baselines_keep_to_no_budget(load_baseline, name: str) -> None:
    allowance = Allowance(torch.ones(1), torch.ones(1))
    with pytest.raises(InputError, match=rf"budget: {METHODS[name].label.split(' ')[0]}.* does not support a cost"):
        load_baseline(name).affordable(torch.zeros(1, D), allowance)


def test_settings_of_a_baseline() -> None:
    """Those of its section; the candidate of the best score; what belongs to the method is fixed."""
    d_mpc = METHODS["d_mpc"]
    config = d_mpc.sampler_config({**d_mpc.settings, "steps": 5})
    assert config is not None
    assert (config.steps, config.candidates, config.rank_temperature) == (5, 16, 0.0)
    assert (config.composition, config.guidance) == ("sequential", 0.0)
    with pytest.raises(InputError, match=r"baselines.d_mpc.candidates: must be at least 1, found 0"):
        d_mpc.sampler_config({"candidates": 0})
    assert METHODS["cloning"].sampler_config({}) is None


def test_a_model_that_does_not_fit_the_pipeline(setup_of, randomize, tmp_path) -> None:
    randomize(Ranker(D + 1, M, hidden=16)).save_pretrained(tmp_path / "critic")
    setup = replace(setup_of("d_mpc"), folder=tmp_path)
    with pytest.raises(InputError, match=r"critic: latent_dim must be 3, as in the pipeline, found 4"):
        setup.model("critic", Ranker)
    with pytest.raises(InputError, match=r"critic/config\.json: _class_name must be \w+, found 'Ranker'"):
        setup.model("critic", Planner)


@pytest.mark.parametrize("name", BASELINES)
def test_one_graph_plans_as_each_baseline_does(load_baseline, name: str) -> None:
    baseline = load_baseline(name)
    plans = []
    for engine in ("torch", "openvino"):
        config = baseline.sampler_config({"steps": 2, "candidates": 2, "engine": engine})
        sampler = baseline.sampler(config)
        assert baseline.fits_graph(sampler) == (engine == "openvino" and name != "diffuser")
        plans.append(baseline(torch.ones(1, D), sampler, [torch.Generator().manual_seed(3)]))
    for part in ("latents", "actions", "scores"):
        np.testing.assert_allclose(*(getattr(plan, part) for plan in plans), rtol=1e-4, atol=1e-4)
