"""Encoders: streams of frames, what hides from what, saving, training."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mpdiffuser.episodes import Episodes
from mpdiffuser.errors import InputError
from mpdiffuser.history import LatentHistory
from vision.data import FrameSteps
from vision.encoder import IdentityEncoder, PixelEncoder, Representation, information

SIZE = 32


def test_a_batch_of_streams(make_encoder, episodes: Episodes) -> None:
    encoder, frames = make_encoder(), episodes["frames"]
    alone, together = [LatentHistory(encoder) for _ in range(2)], LatentHistory(encoder)
    for t in range(5):
        both = together(np.stack([frames[t], frames[7 + t]]))
        single = [stream(frames[row + t][None])[0] for stream, row in zip(alone, (0, 7))]
        torch.testing.assert_close(both, torch.stack(single), rtol=0, atol=1e-5)
        together.record_actions(episodes["actions"][[t, 7 + t]])
        for stream, row in zip(alone, (0, 7)):
            stream.record_actions(episodes["actions"][row + t][None])


@pytest.mark.parametrize("history", [1, 3])
def test_looking_ahead_is_streaming(make_encoder, episodes: Episodes, history: int) -> None:
    encoder = make_encoder(history)
    frames = np.stack([episodes["frames"][:4], episodes["frames"][7:11]])
    stream, other = LatentHistory(encoder), LatentHistory(encoder)
    actions = np.stack([episodes["actions"][:3], episodes["actions"][7:10]])
    for t in range(2):
        assert torch.equal(stream(frames[:, t]), other(frames[:, t]))
        for each in (stream, other):
            each.record_actions(actions[:, t])
    ahead = stream.encode_future(frames[:, 2:], actions[:, 1:])
    assert ahead.shape == (2, 2, 4)
    for k in range(2):
        torch.testing.assert_close(ahead[:, k], other(frames[:, 2 + k]), rtol=0, atol=1e-5)
        other.record_actions(actions[:, min(2, 2 + k)])
    # and the stream stayed where it was
    torch.testing.assert_close(stream(frames[:, 2]), ahead[:, 0], rtol=0, atol=1e-5)


def test_order_and_actions_matter(make_encoder) -> None:
    encoder, generator = make_encoder(), torch.Generator().manual_seed(0)
    features, actions = (torch.randn(5, n, dim, generator=generator) for n, dim in ((3, encoder.frame_net.dim), (2, 2)))
    latents = encoder(features, actions)
    assert not torch.allclose(latents, encoder(features.flip(1), actions), atol=1e-3)
    assert not torch.allclose(latents, encoder(features, actions.flip(1)), atol=1e-3)


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


def test_saving_and_loading(make_encoder, tmp_path: Path) -> None:
    encoder = make_encoder(trainable=True)
    encoder.save_pretrained(tmp_path)
    loaded = PixelEncoder.from_pretrained(tmp_path)
    frames = torch.randint(0, 256, (3, SIZE, SIZE, 3), dtype=torch.uint8)
    features = encoder.features(frames)
    assert torch.equal(loaded.features(frames), features)
    actions = torch.rand(1, 2, 2)
    torch.testing.assert_close(loaded(features[None], actions), encoder(features[None], actions))
    assert loaded.history == 3


def test_a_pretrained_backbone_is_saved_with_the_encoder(tmp_path: Path) -> None:
    """Loading must not look for the ImageNet weights again."""
    encoder = PixelEncoder.pretrained(pool=2, latent_dim=4, projection=8, hidden=8)
    encoder.save_pretrained(tmp_path)
    frames = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    loaded = PixelEncoder.from_pretrained(tmp_path)
    assert torch.equal(loaded.features(frames), encoder.features(frames))
    fresh = PixelEncoder(pool=2, latent_dim=4, projection=8, hidden=8).eval()
    assert not torch.allclose(fresh.features(frames), encoder.features(frames), atol=0.1)


def test_a_history_that_cannot_be(small) -> None:
    with pytest.raises(InputError, match=r"encoder\.history: must be at least 1.*0"):
        PixelEncoder(**small, history=0)


def test_identity_encoder(tmp_path: Path) -> None:
    encoder = IdentityEncoder(4)
    states = np.random.default_rng(0).normal(size=(3, 2, 4))  # float64, as simulators give
    stream = LatentHistory(encoder)
    for state in states:
        np.testing.assert_array_equal(stream(state), state.astype(np.float32))
        stream.record_actions(np.ones((2, 1)))
    encoder.save_pretrained(tmp_path)
    assert IdentityEncoder.from_pretrained(tmp_path).config["latent_dim"] == 4


def test_a_frozen_backbone_stays_as_it_is(small, fit, episodes: Episodes, tmp_path: Path) -> None:
    """Parameters and the statistics of its batch norms, though frames run through it in training."""
    settings = {**small, "backbone": "torchvision:resnet18", "history": 2}
    representation = Representation(settings, 3)
    before = {key: value.clone() for key, value in representation.encoder.frame_net.state_dict().items()}
    head = representation.encoder.head[0].weight.detach().clone()
    trained = fit(representation, FrameSteps(episodes, np.arange(3), 2, None, True), tmp_path, steps=3)
    after = trained.encoder.frame_net.state_dict()
    assert any("running_mean" in key for key in before)
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    assert not torch.equal(trained.encoder.head[0].weight, head)


def test_fine_tuning_moves_the_weights_and_not_the_statistics(small, fit, episodes: Episodes, tmp_path: Path) -> None:
    settings = {**small, "backbone": "torchvision:resnet18", "history": 1, "trainable": True}
    representation = Representation(settings, 3)
    before = {key: value.clone() for key, value in representation.encoder.frame_net.state_dict().items()}
    trained = fit(representation, FrameSteps(episodes, np.arange(3), 1, None, True), tmp_path, steps=2)
    for key, value in trained.encoder.frame_net.state_dict().items():
        assert torch.equal(value, before[key]) == ("running" in key or "num_batches" in key)


@pytest.mark.slow
def test_a_small_net_learns_from_frames(small, fit, make_pointer_episodes, tmp_path: Path) -> None:
    """Its latents come to tell where the square is, at first nothing."""
    data = make_pointer_episodes()
    torch.manual_seed(0)
    settings = {**small, "pool": 4, "history": 1, "trainable": True}
    representation = Representation(settings, 2, hidden=32, shift=1)
    transitions = FrameSteps(data, np.arange(6), 1, None, True)
    batch = transitions.batch(torch.arange(len(transitions)))
    random = {"shift": torch.zeros(len(transitions), 2, dtype=torch.long), "noise": torch.zeros(len(transitions), 2, 4)}
    losses = [representation.loss(batch, random, None)["state"].item()]
    before = representation.encoder.frame_net.net[0].weight.detach().clone()
    trained = fit(representation, transitions, tmp_path, steps=150, learning_rate=1e-3, ema_decay=0.9)
    with torch.no_grad():
        losses.append(trained.loss(batch, random, None)["state"].item())
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
