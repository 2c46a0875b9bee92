"""Behaviour cloning: its network, and the episodes within a limit on costs."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from mpdiffuser.errors import InputError
from mpdiffuser.methods.cloning import Cloning, CloningPolicy, within_limit
from mpdiffuser.schedule import NoiseSchedule

D, M = 3, 2


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_cloning_stays_in_range_and_scores_its_error(randomize) -> None:
    policy = randomize(CloningPolicy(D, M, hidden=16), scale=3.0)
    latents, actions = 10 * normal(50, D), normal(50, M, seed=1).tanh()
    with torch.no_grad():
        chosen = policy(latents)
        loss = policy.loss({"latents": latents, "actions": actions}, {}, NoiseSchedule())["loss"].item()
    assert chosen.abs().max() <= 1
    assert loss == pytest.approx(np.mean((chosen.numpy() - actions.numpy()) ** 2), rel=1e-5)


def test_the_episodes_within_a_cost_limit(make_episodes) -> None:
    """Those that cost no more, and where there are none the cheapest."""
    episodes = make_episodes([5, 3, 4], costs=True)
    totals = [episodes["costs"][episodes.rows(e)].sum() for e in range(3)]
    middle = sorted(totals)[1]
    (some,), (least,) = within_limit([episodes], middle + 1e-4), within_limit([episodes], 0.0)
    assert len(some) == 2 and len(least) == 1
    np.testing.assert_array_equal(least["costs"], episodes["costs"][episodes.rows(int(np.argmin(totals)))])


def test_it_has_a_network_for_each_limit(whole_folder, setup_of, randomize, tmp_path) -> None:
    """Cloned from the episodes within that limit."""
    names = [recipe.name for recipe in Cloning.recipes([20, 12.5])]
    assert names == ["cloning", "cloning_within_20", "cloning_within_12.5"]
    folder = shutil.copytree(whole_folder, tmp_path / "pipeline")
    within = randomize(CloningPolicy(D, M, hidden=16), seed=9)
    within.save_pretrained(folder / "cloning_within_20")
    observations = normal(4, D).numpy()
    for limit, network in ((None, CloningPolicy.from_pretrained(folder / "cloning")), (20.0, within)):
        policy = Cloning.policy(replace(setup_of("cloning"), folder=folder, limit=limit))
        policy.reset(range(4))
        with torch.no_grad():
            np.testing.assert_array_equal(policy.act(observations), network(torch.from_numpy(observations)))
    with pytest.raises(InputError, match=r"cloning_within_40: no such model; train the method that needs it"):
        Cloning.policy(replace(setup_of("cloning"), folder=folder, limit=40))
