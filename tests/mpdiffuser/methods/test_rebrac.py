"""ReBRAC on problems whose values are known."""

import numpy as np
import pytest
import torch
from scipy.optimize import brentq

from mpdiffuser.errors import InputError
from mpdiffuser.methods.rebrac import ReBRAC, ReBRACPolicy
from mpdiffuser.schedule import NoiseSchedule

SCHEDULE = NoiseSchedule(100)
SETTINGS = {"discount": 0.5, "actor_penalty": 1.0, "critic_penalty": 2.0, "policy_noise": 0.1, "noise_clip": 0.5}
SETTINGS |= {"target_rate": 0.1}


def batch_of(actions: torch.Tensor, rewards: torch.Tensor, **more: torch.Tensor) -> dict[str, torch.Tensor]:
    """Episodes of one decision, in one state, unless `more` says otherwise."""
    zeros, count = torch.zeros(len(actions), 1), len(actions)
    batch = {"latents": zeros, "next_latents": zeros, "actions": actions, "rewards": rewards}
    batch |= {"continuations": torch.zeros(count), "next_actions": torch.zeros_like(actions)}
    return batch | {"next_known": torch.ones(count)} | more


@pytest.mark.parametrize("penalty", [0.2, 2.0])
def test_the_policy_weighs_q_against_the_datas_actions(penalty: float) -> None:
    """Two equal actions in [-1, 1]; the reward is Q = 2 - sum (a - 0.5)^2, so the gradient p 2 a - Q'(a) / |Q| is 0."""
    torch.manual_seed(0)
    actions = 2 * torch.rand(512, 2) - 1
    actions = torch.cat([actions, -actions])  # their mean is 0
    batch = batch_of(actions, 2 - (actions - 0.5).square().sum(1))
    model = ReBRACPolicy(1, 2, 48, **{**SETTINGS, "actor_penalty": penalty})
    optimizer = torch.optim.Adam([weight for weight in model.parameters() if weight.requires_grad], 1e-2)
    for _ in range(500):
        optimizer.zero_grad()
        model.loss(batch, {"noise": torch.zeros(1024, 2)}, SCHEDULE)["loss"].backward()
        optimizer.step()
        model.after_step()
    expected = brentq(lambda a: 2 * penalty * a + 2 * (a - 0.5) / (2 - 2 * (a - 0.5) ** 2), 0, 0.5)
    np.testing.assert_allclose(model(torch.zeros(1, 1)).detach()[0], [expected] * 2, atol=0.05)


def test_the_next_value_has_the_penalty_where_the_next_action_is_known() -> None:
    torch.manual_seed(0)
    model = ReBRACPolicy(1, 2, 16, **SETTINGS)
    with torch.no_grad():
        for weight in model.target_policy[-1].parameters():
            weight.zero_()
        model.target_policy[-1].bias.copy_(torch.tensor([0.3, -0.2]).atanh())
    actions, known = torch.tensor([[0.1, 0.4], [0.1, 0.4]]), torch.tensor([1.0, 0.0])
    batch = batch_of(torch.zeros(2, 2), torch.zeros(2), next_actions=actions, next_known=known)
    with torch.no_grad():
        found = model.next_value(batch, {"noise": torch.tensor([[1.0, -1.0]] * 2)})  # times 0.1
        plain = model.action_values(model.target, torch.zeros(2, 1), torch.tensor([[0.4, -0.3]] * 2)).amin(0)
    torch.testing.assert_close(plain - found, torch.tensor([2 * (0.3**2 + 0.7**2), 0.0]))


def test_the_policy_maximises_the_smaller_value() -> None:
    torch.manual_seed(0)
    model, inputs = ReBRACPolicy(1, 2, 16, **SETTINGS), torch.randn(64, 3)
    with torch.no_grad():
        values = model.action_values(model.q, inputs[:, :1], inputs[:, 1:])
        torch.testing.assert_close(model.worth(inputs), values.amin(0))
    assert (values[0] < values[1]).any() and (values[0] > values[1]).any()


@pytest.mark.parametrize("name", ["actor_penalty", "critic_penalty", "policy_noise", "noise_clip"])
def test_a_setting_that_cannot_be(name: str) -> None:
    with pytest.raises(InputError, match=rf"baselines\.rebrac\.{name}: must be at least 0, found -1"):
        ReBRAC.check_settings({"hidden": 8, **{k: v for k, v in SETTINGS.items() if k != "discount"}, name: -1})
