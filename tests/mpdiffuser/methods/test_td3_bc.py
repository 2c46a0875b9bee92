"""TD3+BC on problems whose values are known."""

import numpy as np
import pytest
import torch
from scipy.optimize import brentq

from mpdiffuser.errors import InputError
from mpdiffuser.methods.td3_bc import TD3BC, TD3BCPolicy
from mpdiffuser.schedule import NoiseSchedule

SCHEDULE = NoiseSchedule(100)
SETTINGS = {"discount": 0.5, "alpha": 1.0, "policy_noise": 0.2, "noise_clip": 0.5, "target_rate": 0.1}


def trained(model: TD3BCPolicy, batch: dict[str, torch.Tensor], steps: int = 400) -> TD3BCPolicy:
    optimizer = torch.optim.Adam([q for q in model.parameters() if q.requires_grad], 1e-2)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        optimizer.zero_grad()
        model.loss(batch, model.draw(len(batch["actions"]), SCHEDULE, generator), SCHEDULE)["loss"].backward()
        optimizer.step()
        model.after_step()
    return model


def one_step(actions: torch.Tensor, rewards: torch.Tensor) -> dict[str, torch.Tensor]:
    """Episodes of one decision, in one state."""
    zeros = torch.zeros(len(actions), 1)
    batch = {"latents": zeros, "next_latents": zeros, "actions": actions, "rewards": rewards}
    return batch | {"continuations": torch.zeros(len(actions))}


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_the_policy_weighs_q_against_the_datas_actions(alpha: float) -> None:
    """Actions around 0 with the reward Q = 1 - (a - 0.5)^2: the policy's gradient 2 a - alpha Q'(a) / |Q(a)| is 0."""
    torch.manual_seed(0)
    actions = torch.linspace(-1, 1, 256)[:, None]
    batch = one_step(actions, 1 - (actions[:, 0] - 0.5).square())
    model = trained(TD3BCPolicy(1, 1, 32, **{**SETTINGS, "alpha": alpha}), batch)
    expected = brentq(lambda a: 2 * a + 2 * alpha * (a - 0.5) / (1 - (a - 0.5) ** 2), 0, 0.5)
    assert model(torch.zeros(1, 1)).item() == pytest.approx(expected, abs=0.03)
    with torch.no_grad():
        values = model.action_values(model.q, torch.zeros(256, 1), actions)
    np.testing.assert_allclose(values.mean(0), batch["rewards"], atol=0.1)


def test_it_bootstraps_and_its_targets_follow_slowly() -> None:
    """The value of a reward of 1 for ever is 1 / (1 - g)."""
    torch.manual_seed(0)
    model = TD3BCPolicy(1, 1, 16, **SETTINGS)
    pairs = [(model.target, model.q), (model.target_policy, model.policy)]
    before = [[weight.clone() for weight in target.parameters()] for target, _ in pairs]
    with torch.no_grad():
        for _, online in pairs:
            for weight in online.parameters():
                weight.add_(1)
    model.after_step()
    for old, (target, online) in zip(before, pairs):
        for was, fast, slow in zip(old, online.parameters(), target.parameters()):
            torch.testing.assert_close(slow, was + 0.1 * (fast - was))
    batch = one_step(torch.zeros(32, 1), torch.ones(32)) | {"continuations": torch.ones(32)}
    model = trained(TD3BCPolicy(1, 1, 16, **SETTINGS), batch, 300)
    assert model.action_values(model.q, torch.zeros(1, 1), torch.zeros(1, 1)).mean().item() == pytest.approx(2, abs=0.1)


def test_the_policys_loss_does_not_move_q() -> None:
    batch = one_step(torch.rand(8, 1), torch.rand(8))
    gradients = []
    for alpha in (0.0, 5.0):
        torch.manual_seed(0)
        model = TD3BCPolicy(1, 1, 16, **{**SETTINGS, "alpha": alpha})
        model.loss(batch, {"noise": torch.zeros(8, 1)}, SCHEDULE)["loss"].backward()
        gradients.append([[weight.grad for weight in part.parameters()] for part in (model.q, model.policy)])
    (q, policy), (same, other) = gradients
    torch.testing.assert_close(q, same, rtol=0, atol=0)
    assert any((one - two).abs().max() > 1e-6 for one, two in zip(policy, other))


def test_the_targets_actions_have_clipped_noise_and_stay_within_the_bounds() -> None:
    """Noise of 3 is clipped to 0.5, and 0.9 + 0.5 to 1, so the two losses are those of the actions 0.5 and 1."""
    torch.manual_seed(0)
    model = TD3BCPolicy(1, 1, 16, **{**SETTINGS, "policy_noise": 1.0})
    batch = one_step(torch.zeros(4, 1), torch.zeros(4)) | {"continuations": torch.ones(4)}
    for mean, action in ((0.0, 0.5), (0.9, 1.0)):
        with torch.no_grad():
            for weight in model.target_policy[-1].parameters():
                weight.zero_()
            model.target_policy[-1].bias.fill_(np.arctanh(mean))
            target = 0.5 * model.action_values(model.target, torch.zeros(4, 1), torch.full((4, 1), action)).amin(0)
            values = model.action_values(model.q, torch.zeros(4, 1), torch.zeros(4, 1))
            found = model.loss(batch, {"noise": torch.full((4, 1), 3.0)}, SCHEDULE)["q_loss"]
        torch.testing.assert_close(found, (values - target).square().mean(1).sum())


@pytest.mark.parametrize("name", ["alpha", "policy_noise", "noise_clip"])
def test_a_setting_that_cannot_be(name: str) -> None:
    with pytest.raises(InputError, match=rf"baselines\.td3_bc\.{name}: must be at least 0, found -1"):
        TD3BC.check_settings({"hidden": 8, **{k: v for k, v in SETTINGS.items() if k != "discount"}, name: -1})
