"""The training of encoders: what hides from what, estimates of true states, frozen and trained backbones."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mpdiffuser.episodes import Episodes
from vision.data import FrameSteps
from vision.representation import Representation, StateEstimator, information


def test_the_action_to_tell_is_hidden_from_what_tells_it(small) -> None:
    """With frames that show nothing, it cannot be told: no gradient leads to it."""
    representation = Representation({**small, "history": 3}, 0)
    actions = torch.rand(4, 3, 2, requires_grad=True)
    batch = {"features": torch.zeros(4, 4, representation.encoder.frame_net.dim), "actions": actions}
    quiet = {"noise": torch.zeros(4, 2, 4)}
    inverse = representation.loss(batch | {"rewards": torch.zeros(4)}, quiet, None)["inverse"]
    (gradient,) = torch.autograd.grad(inverse, actions)
    assert gradient[:, :2].abs().sum() > 0  # earlier actions are seen
    hidden = torch.stack([actions[:, 1], torch.zeros(4, 2)], 1)
    now = representation.encoder(batch["features"][:, :3], actions[:, :2])
    told = representation.inverse(torch.cat([now, representation.encoder(batch["features"][:, 1:], hidden)], -1))
    torch.testing.assert_close(gradient[:, 2], 2 * (actions[:, 2] - told) / 8)  # only as the target


def demonstrations(small, **settings) -> tuple[Representation, dict[str, torch.Tensor]]:
    """A representation of demonstrations with two measured values, and a batch of four steps."""
    torch.manual_seed(0)
    config = {**small, "history": 2, "latent_dim": 6, "proprioception": 2, **settings}
    representation = Representation(config, ahead=3)
    features = torch.randn(4, 3, representation.encoder.picture_dim + 2)
    known = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 1]]).bool()
    batch = {"features": features, "actions": torch.rand(4, 2, 2), "rewards": torch.zeros(4)}
    return representation, batch | {"following": torch.randn(4, 3, 2), "known": known}


def test_following_actions_that_are_not_known_do_not_count(small) -> None:
    representation, batch = demonstrations(small)
    batch["following"].requires_grad_()
    quiet = {"noise": torch.zeros(4, 2, 6)}
    loss = representation.loss(batch, quiet, None)["following"]
    (gradient,) = torch.autograd.grad(loss, batch["following"])
    latents = representation.encoder(batch["features"][:, :2], batch["actions"][:, :1])
    error = batch["following"] - representation.following(latents).view(4, 3, 2)
    weight = batch["known"] / 9 + torch.tensor([1 / 4, 0, 0])
    torch.testing.assert_close(gradient, error * weight[..., None])


def test_noise_on_features_is_of_the_training_and_of_the_pictures_alone(small) -> None:
    """It is the same in all frames of a step, so the difference of two frames has none."""
    representation, batch = demonstrations(small)
    representation.encoder.standard.std.data[:] = 3
    random = representation.draw(4, None, torch.Generator().manual_seed(0))
    seen = []
    normalize = representation.encoder.standard.normalize
    representation.encoder.standard.normalize = lambda features: seen.append(features) or normalize(features)
    for training in (True, False):
        representation.train(training).loss(batch, random, None)
    n = representation.encoder.picture_dim
    expected = batch["features"].clone()
    expected[..., :n] += 3.5 * 3 * random["features"][:, None]
    torch.testing.assert_close(seen[0], expected)
    assert torch.equal(seen[1], batch["features"])


def test_no_noise_on_features_without_demonstrations_or_with_a_trained_backbone(small) -> None:
    drawn = {"shift", "noise"}
    assert set(Representation(small).draw(2, None, torch.Generator())) == drawn
    trained, _ = demonstrations(small, trainable=True)
    assert set(trained.draw(2, None, torch.Generator())) == drawn


def test_a_frozen_backbone_stays_as_it_is(small, fit, episodes: Episodes, tmp_path: Path) -> None:
    """Parameters and the statistics of its batch norms, though frames run through it in training."""
    settings = {**small, "backbone": "torchvision:resnet18", "history": 2}
    representation = StateEstimator({**settings, "latent_dim": 3})
    before = {key: value.clone() for key, value in representation.encoder.frame_net.state_dict().items()}
    head = representation.encoder.head[0].weight.detach().clone()
    trained = fit(representation, FrameSteps(episodes, np.arange(3), 2, None, True), tmp_path, steps=3)
    after = trained.encoder.frame_net.state_dict()
    assert any("running_mean" in key for key in before)
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    assert not torch.equal(trained.encoder.head[0].weight, head)


def test_fine_tuning_moves_the_weights_and_not_the_statistics(small, fit, episodes: Episodes, tmp_path: Path) -> None:
    settings = {**small, "backbone": "torchvision:resnet18", "history": 1, "trainable": True}
    representation = StateEstimator({**settings, "latent_dim": 3})
    before = {key: value.clone() for key, value in representation.encoder.frame_net.state_dict().items()}
    trained = fit(representation, FrameSteps(episodes, np.arange(3), 1, None, True), tmp_path, steps=2)
    for key, value in trained.encoder.frame_net.state_dict().items():
        assert torch.equal(value, before[key]) == ("running" in key or "num_batches" in key)


@pytest.mark.slow
def test_a_small_net_learns_from_frames(small, fit, make_pointer_episodes, tmp_path: Path) -> None:
    """Its latents become estimates of the square's place."""
    data = make_pointer_episodes()
    torch.manual_seed(0)
    settings = {**small, "pool": 4, "history": 1, "trainable": True, "latent_dim": 2, "hidden": 32}
    representation = StateEstimator(settings, shift=1)
    transitions = FrameSteps(data, np.arange(6), 1, None, True)
    representation.states.fit(transitions.targets["states"])
    batch = transitions.batch(torch.arange(len(transitions)))
    random = {"shift": torch.zeros(len(transitions), 2, dtype=torch.long)}
    losses = [representation.loss(batch, random, None)["loss"].item()]
    before = representation.encoder.frame_net.net[0].weight.detach().clone()
    trained = fit(representation, transitions, tmp_path, steps=150, learning_rate=1e-3, ema_decay=0.9)
    with torch.no_grad():
        losses.append(trained.loss(batch, random, None)["loss"].item())
    assert not torch.equal(before, trained.encoder.frame_net.net[0].weight)
    assert losses[1] < 0.2 * losses[0]


def test_shifts_are_small_and_repeat(small) -> None:
    representation = Representation({**small, "history": 1}, shift=3)
    first, second = (representation.draw(1000, None, torch.Generator().manual_seed(0))["shift"] for _ in range(2))
    assert torch.equal(first, second)
    assert set(first.flatten().tolist()) == set(range(-3, 4))


def test_information() -> None:
    mean, log_noise = torch.randn(5, 3), torch.tensor([-2.0, 0.0, 0.5])
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(mean, log_noise.exp()), normal(0.0, 1.0)).sum(-1).mean()
    torch.testing.assert_close(information(mean, log_noise), expected)


def test_latents_are_estimates_of_the_true_states(small) -> None:
    torch.manual_seed(0)
    estimator = StateEstimator({**small, "history": 2, "latent_dim": 6, "proprioception": 2})
    states = 3 * np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32) + 1
    estimator.states.fit(states)
    latents = np.random.default_rng(1).normal(size=(20, 6)).astype(np.float32)
    exact = estimator.exact(latents, states)
    np.testing.assert_allclose(exact[:, :4], (states - states.mean(0)) / states.std(0), atol=1e-5)
    np.testing.assert_array_equal(exact[:, 4:], latents[:, 4:])  # measured values
    features, actions = torch.randn(3, 3, estimator.encoder.picture_dim + 2), torch.rand(3, 2, 2)
    now = estimator.encoder(features[:, :2], actions[:, :1])[:, :4]
    batch = {"features": features, "actions": actions, "states": estimator.states.denormalize(now.detach() + 1)}
    random = estimator.draw(3, None, torch.Generator().manual_seed(0))
    torch.testing.assert_close(estimator.loss(batch, random, None)["loss"], torch.tensor(1 - 0.05 / 2))
