"""The end-to-end policy: what trains its encoder, and that acting sees the latents of training."""

import numpy as np
import torch

from experiments.end_to_end import HISTORY, PixelPolicy, controlling
from mpdiffuser.controller import NetworkPolicy
from mpdiffuser.schedule import NoiseSchedule

FRAMES = np.random.default_rng(0).integers(0, 256, (2, HISTORY + 1, 64, 64, 3), np.uint8)


def example() -> tuple[PixelPolicy, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    policy = PixelPolicy(2)
    generator = torch.Generator().manual_seed(0)
    batch = {"frames_0": torch.from_numpy(FRAMES), "rewards": torch.tensor([0.5, -1.0])}
    batch["measured"] = torch.zeros(2, HISTORY + 1, 0)
    batch["actions"] = 2 * torch.rand(2, HISTORY, 2, generator=generator) - 1
    return policy, batch, policy.draw(2, NoiseSchedule(), generator)


def test_only_the_loss_of_q_trains_the_encoder() -> None:
    policy, batch, random = example()
    found = policy.loss(batch, random, NoiseSchedule())
    (found["loss"] - found["q_loss"]).backward(retain_graph=True)
    assert all(not each.grad.any() for each in policy.encoder.parameters() if each.grad is not None)
    assert all(each.grad.any() for each in policy.policy.parameters())
    found["q_loss"].backward()
    assert all(each.grad.any() for name, each in policy.encoder.named_parameters() if each.requires_grad)


def test_acting_sees_what_the_training_sees_and_no_actions() -> None:
    policy, batch, _ = example()
    with torch.no_grad():
        features = policy.encoder.features(batch["frames_0"].flatten(0, 1)).unflatten(0, (2, -1))
        wanted = policy(policy.encoder(features[:, 1:], batch["actions"][:, 1:])).numpy()
    controller = NetworkPolicy(controlling(policy.eval(), {}), policy)
    controller.reset([0, 1])
    acted = [controller.act(FRAMES[:, t]) for t in range(HISTORY + 1)]
    np.testing.assert_allclose(acted[-1], wanted, atol=1e-5)
