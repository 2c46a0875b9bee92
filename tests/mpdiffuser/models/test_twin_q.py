"""What IQL and TD3+BC share is fitted to the data."""

import numpy as np
import pytest
import torch

from mpdiffuser.episodes import Episodes
from mpdiffuser.models.twin_q import TwinQ


@pytest.mark.parametrize(("each", "scale"), [(2.0, 1000 / 4), (0.0, 1.0)])
def test_episodes_of_one_return(make_episodes, each: float, scale: float) -> None:
    """Such as demonstrations that all succeed: the span is 0."""
    episodes = make_episodes([5, 3])
    episodes["rewards"][:] = 0
    episodes["rewards"][episodes.offsets[:-1]] = each
    episodes["rewards"][episodes.offsets[:-1] + 1] = each
    model = TwinQ(3, 2, 8, 0.005)
    model.fit_to(episodes)
    assert model.reward_scale.item() == pytest.approx(scale)


def test_states_are_normalised_and_rewards_span_a_thousand() -> None:
    random = np.random.default_rng(0)
    rewards = np.array([1, 2, 0, 5, 5, 5, 0], np.float32)  # returns 3 and 15
    observations = random.normal(3, 2, (7, 2)).astype(np.float32)
    flags = {name: np.zeros(7, bool) for name in ("terminations", "truncations")}
    arrays = {"observations": observations, "actions": np.zeros((7, 1), np.float32), "rewards": rewards, **flags}
    model = TwinQ(2, 1, 8, 0.005)
    model.fit_to(Episodes(arrays, np.array([0, 3, 7]), {}))
    assert model.reward_scale.item() == np.float32(1000 / 12)
    normal = model.latents.normalize(torch.from_numpy(observations))
    torch.testing.assert_close(normal.mean(0), torch.zeros(2), atol=1e-5, rtol=0)
    actions = torch.zeros(7, 1)
    values = model.action_values(model.q, torch.from_numpy(observations), actions)
    torch.testing.assert_close(values[1], model.q[1](torch.cat([normal, actions], 1))[:, 0])
