"""Sample and rank: unguided plans of the states, of which the critic chooses."""

import numpy as np
import torch

from mpdiffuser.models.ranker import Ranker


def test_its_critic_ranks(load_baseline, plan_of, whole_folder) -> None:
    plan = plan_of(load_baseline("sample_and_rank"))
    critic = Ranker.from_pretrained(whole_folder / "critic")
    with torch.no_grad():
        np.testing.assert_allclose(plan.scores, critic.scores(plan.latents, plan.actions), rtol=1e-4, atol=1e-5)


def test_it_asks_for_no_return(load_baseline, plan_of) -> None:
    baseline = load_baseline("sample_and_rank")
    plans = [plan_of(baseline, target=target) for target in (0.1, 0.9)]
    assert torch.equal(plans[0].latents, plans[1].latents)
