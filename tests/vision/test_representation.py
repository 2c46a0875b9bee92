"""The training of encoders: world models, estimates of true states, frozen and trained backbones."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mpdiffuser.episodes import Episodes
from vision.data import FrameSteps, cached_features, encode, picture_targets
from vision.representation import StateEstimator, WorldModel, information


def test_a_latent_is_unrolled_over_the_actions_that_are_known(small) -> None:
    """Pictures and rewards of unrolled latents, by hand; what comes after the end of an episode does not count."""
    torch.manual_seed(0)
    model = WorldModel({**small, "history": 2}, targets=3, unroll_steps=2)
    batch = {
        "features": torch.randn(4, 2, model.encoder.picture_dim),
        "actions": torch.rand(4, 1, 2),
        "following": torch.randn(4, 2, 2),
        "known": torch.tensor([[1, 1], [1, 1], [1, 0], [1, 1]]).bool(),
        "rewards": torch.randn(4, 2),
        "targets": torch.randn(4, 3, 3),
    }
    random = {"noise": torch.randn(4, 4)}
    parts = model.loss(batch, random, None)
    mean = model.encoder(batch["features"], batch["actions"])
    latents = [mean + torch.exp(torch.tensor(-2.0)) * random["noise"]]
    for j in range(2):
        latents.append(latents[-1] + model.change(torch.cat([latents[-1], batch["following"][:, j]], -1)))
    pictures, rewards = [], []
    for i in range(4):
        for j in range(3):
            if j == 0 or batch["known"][i, j - 1]:
                error = (model.picture(latents[j][i]) - batch["targets"][i, j]).abs()
                pictures.append(torch.where(error < 0.1, error.square() / 0.2, error - 0.05).mean())
            if j < 2 and batch["known"][i, j]:
                reward = model.reward(torch.cat([latents[j][i], batch["following"][i, j]]))
                rewards.append((reward - batch["rewards"][i, j]).square())
    torch.testing.assert_close(parts["picture"], 4 * torch.stack(pictures).mean())
    torch.testing.assert_close(parts["reward"], torch.cat(rewards).mean())
    total = parts["picture"] + parts["reward"] + 1e-4 * information(mean, torch.full((4,), -2.0))
    torch.testing.assert_close(parts["loss"], total)


def demonstrations(small, **settings) -> tuple[WorldModel, dict[str, torch.Tensor]]:
    """A representation of demonstrations with two measured values, and a batch of four steps."""
    torch.manual_seed(0)
    config = {**small, "history": 2, "latent_dim": 6, "proprioception": 2, **settings}
    representation = WorldModel(config, targets=5, unroll_steps=2, ahead=3)
    assert representation.future == 3
    features = torch.randn(4, 2, representation.encoder.picture_dim + 2)
    known = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 1]]).bool()
    batch = {"features": features, "actions": torch.rand(4, 1, 2), "rewards": torch.zeros(4, 3)}
    return representation, batch | {"following": torch.randn(4, 3, 2), "known": known, "targets": torch.randn(4, 4, 5)}


def test_following_actions_that_are_not_known_do_not_count(small) -> None:
    representation, batch = demonstrations(small)
    batch["following"].requires_grad_()
    quiet = {"noise": torch.zeros(4, 6)}
    loss = representation.loss(batch, quiet, None)["following"]
    (gradient,) = torch.autograd.grad(loss, batch["following"])
    latents = representation.encoder(batch["features"], batch["actions"])
    error = batch["following"] - representation.following(latents).view(4, 3, 2)
    weight = batch["known"] / 9 + torch.tensor([1 / 4, 0, 0])
    torch.testing.assert_close(gradient, error * weight[..., None])


def test_fewer_following_actions_than_unroll_steps(small) -> None:
    """The linear layer predicts the first of them."""
    _, batch = demonstrations(small)
    config = {**small, "history": 2, "latent_dim": 6, "proprioception": 2}
    model = WorldModel(config, targets=5, unroll_steps=3, ahead=1)
    assert model.future == 3
    found = model.loss(batch, {"noise": torch.zeros(4, 6)}, None)["following"]
    error = model.following(model.encoder(batch["features"], batch["actions"])) - batch["following"][:, 0]
    torch.testing.assert_close(found, 2 * error.square().mean())


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
    assert set(WorldModel(small, 3).draw(2, None, torch.Generator())) == drawn
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
def test_a_world_model_finds_the_state_in_pictures(small, fit, make_pointer_episodes, tmp_path: Path) -> None:
    """A linear map from its latents tells the square's place on held-out episodes, better than before the training."""
    data, train = make_pointer_episodes(count=60), 45
    torch.manual_seed(0)
    model = WorldModel({**small, "pool": 4, "history": 2, "projection": 32, "hidden": 64}, targets=8, unroll_steps=3)
    features = cached_features(model.encoder, data, tmp_path / "cache")
    model.encoder.standard.fit(features[:])
    targets = picture_targets(features, model.encoder.picture_dim, 8)
    steps = FrameSteps(data, np.arange(train), 2, features, targets=targets, future=3)

    def error() -> float:
        latents, states = encode(model.encoder, data, features), data["observations"]
        design = np.concatenate([latents, np.ones((len(latents), 1))], 1)
        chosen = data.episode_of_row < train
        weights = np.linalg.lstsq(design[chosen], states[chosen], rcond=None)[0]
        wrong = design[~chosen] @ weights - states[~chosen]
        return float(wrong.var() / states[~chosen].var(0).mean())

    before = error()
    model = fit(model, steps, tmp_path / "run", steps=400, batch_size=32, learning_rate=3e-3, ema_decay=0.9)
    assert error() < 0.1 < before


@pytest.mark.slow
def test_a_small_net_learns_from_frames(small, fit, make_pointer_episodes, tmp_path: Path) -> None:
    """Its latents become estimates of the square's place."""
    data = make_pointer_episodes()
    torch.manual_seed(0)
    settings = {**small, "pool": 4, "history": 1, "trainable": True, "latent_dim": 2, "hidden": 32}
    representation = StateEstimator(settings, shift=1)
    transitions = FrameSteps(data, np.arange(6), 1, None, True)
    representation.states.fit(transitions.states)
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
    representation = WorldModel({**small, "history": 1}, 3, shift=3)
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
    features, actions = torch.randn(3, 2, estimator.encoder.picture_dim + 2), torch.rand(3, 1, 2)
    now = estimator.encoder(features, actions)[:, :4]
    batch = {"features": features, "actions": actions, "states": estimator.states.denormalize(now.detach() + 1)}
    random = estimator.draw(3, None, torch.Generator().manual_seed(0))
    torch.testing.assert_close(estimator.loss(batch, random, None)["loss"], torch.tensor(1 - 0.05 / 2))
