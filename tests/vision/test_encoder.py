"""Encoders, their training, and that acting sees what training saw."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from mpdiffuser.controller import LatentHistory
from mpdiffuser.episodes import Episodes
from mpdiffuser.errors import InputError
from mpdiffuser.trainer import TrainConfig, Trainer
from vision.data import Pictures, Transitions, cached_features, encode, encode_frames, history_actions, history_rows
from vision.decoder import Decoder
from vision.encoder import IdentityEncoder, PixelEncoder, Representation, information

SMALL = dict(backbone="conv", stride=8, pool=2, action_dim=2, latent_dim=4, projection=16, hidden=16)
SIZE = 32


@pytest.fixture
def episodes(make_episodes) -> Episodes:
    return make_episodes([6, 4, 5], frame_size=SIZE)


def encoder_of(history: int = 3, seed: int = 0, **settings: Any) -> PixelEncoder:
    torch.manual_seed(seed)
    return PixelEncoder(**{**SMALL, "history": history, **settings}).eval()


def run(model: Any, data: Any, folder: Path, steps: int = 10, **settings: Any) -> Any:
    config = TrainConfig(**{"steps": steps, "batch_size": 8, "learning_rate": 3e-3, "warmup": 2, **settings})
    return Trainer("tiny", model, data, data, config, folder, Accelerator(cpu=True)).train()


# histories


def test_history_rows_stay_in_their_episode(episodes: Episodes) -> None:
    found = history_rows(episodes, np.array([0, 1, 5, 7, 8, 11, 12, 14]), 3)
    assert found.tolist() == [
        [0, 0, 0],
        [0, 0, 1],
        [3, 4, 5],
        [7, 7, 7],
        [7, 7, 8],
        [9, 10, 11],
        [12, 12, 12],
        [12, 13, 14],
    ]


def test_history_actions_lie_between_the_frames(episodes: Episodes) -> None:
    found = history_actions(episodes, history_rows(episodes, np.array([0, 1, 5, 7, 12]), 3))
    taken, none = episodes["actions"], np.zeros(2, np.float32)
    expected = [[none, none], [none, taken[0]], [taken[3], taken[4]], [none, none], [none, none]]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("history", [1, 2, 4])
def test_acting_sees_what_training_saw(episodes: Episodes, tmp_path: Path, history: int) -> None:
    """The stream of an episode, frame by frame, gives the latents that the models were trained on."""
    encoder = encoder_of(history)
    trained_on = encode(encoder, episodes, cached_features(encoder, episodes, tmp_path, batch=4), batch=5)
    np.testing.assert_allclose(trained_on, encode_frames(encoder, episodes), rtol=0, atol=1e-3)
    stream = LatentHistory(encoder)
    for e in range(len(episodes)):
        rows = episodes.rows(e)
        stream.reset()
        for row in range(rows.start, rows.stop):
            latent = stream(episodes["frames"][row][None])[0].numpy()
            stream.did(episodes["actions"][row][None])
            # the cache holds features in half precision
            np.testing.assert_allclose(latent, trained_on[row], rtol=0, atol=2e-3)
    spread = trained_on.std(0).min()
    assert spread > 0.02  # so that the tolerance means something


def test_a_batch_of_streams(episodes: Episodes) -> None:
    encoder, frames = encoder_of(), episodes["frames"]
    alone, together = [LatentHistory(encoder) for _ in range(2)], LatentHistory(encoder)
    for t in range(5):
        both = together(np.stack([frames[t], frames[7 + t]]))
        single = [stream(frames[row + t][None])[0] for stream, row in zip(alone, (0, 7))]
        torch.testing.assert_close(both, torch.stack(single), rtol=0, atol=1e-5)
        together.did(episodes["actions"][[t, 7 + t]])
        for stream, row in zip(alone, (0, 7)):
            stream.did(episodes["actions"][row + t][None])


@pytest.mark.parametrize("history", [1, 3])
def test_looking_ahead_is_streaming(episodes: Episodes, history: int) -> None:
    encoder = encoder_of(history)
    frames = np.stack([episodes["frames"][:4], episodes["frames"][7:11]])
    stream, other = LatentHistory(encoder), LatentHistory(encoder)
    actions = np.stack([episodes["actions"][:3], episodes["actions"][7:10]])
    for t in range(2):
        assert torch.equal(stream(frames[:, t]), other(frames[:, t]))
        for each in (stream, other):
            each.did(actions[:, t])
    ahead = stream.ahead(frames[:, 2:], actions[:, 1:])
    assert ahead.shape == (2, 2, 4)
    for k in range(2):
        torch.testing.assert_close(ahead[:, k], other(frames[:, 2 + k]), rtol=0, atol=1e-5)
        other.did(actions[:, min(2, 2 + k)])
    # and the stream stayed where it was
    torch.testing.assert_close(stream(frames[:, 2]), ahead[:, 0], rtol=0, atol=1e-5)


def test_order_and_actions_matter() -> None:
    encoder, generator = encoder_of(), torch.Generator().manual_seed(0)
    features, actions = (torch.randn(5, n, dim, generator=generator) for n, dim in ((3, encoder.frame_net.dim), (2, 2)))
    latents = encoder(features, actions)
    assert not torch.allclose(latents, encoder(features.flip(1), actions), atol=1e-3)
    assert not torch.allclose(latents, encoder(features, actions.flip(1)), atol=1e-3)


def test_the_action_to_tell_is_hidden_from_what_tells_it() -> None:
    """With frames that show nothing, it cannot be told: no gradient leads to it."""
    representation = Representation({**SMALL, "history": 3}, 0)
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


# saving


def test_saving_and_loading(tmp_path: Path) -> None:
    encoder = encoder_of(trainable=True)
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


def test_a_history_that_cannot_be() -> None:
    with pytest.raises(InputError, match=r"encoder\.history: must be at least 1.*0"):
        PixelEncoder(**SMALL, history=0)


def test_identity_encoder(tmp_path: Path) -> None:
    encoder = IdentityEncoder(4)
    states = np.random.default_rng(0).normal(size=(3, 2, 4))  # float64, as simulators give
    stream = LatentHistory(encoder)
    for state in states:
        np.testing.assert_array_equal(stream(state), state.astype(np.float32))
        stream.did(np.ones((2, 1)))
    encoder.save_pretrained(tmp_path)
    assert IdentityEncoder.from_pretrained(tmp_path).config["latent_dim"] == 4


# the cache


def counted(encoder: PixelEncoder) -> list[int]:
    """Frames that the backbone is shown from now on."""
    seen: list[int] = []
    encoder.frame_net.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    return seen


def test_features_are_computed_once(episodes: Episodes, tmp_path: Path, capsys) -> None:
    encoder = encoder_of()
    seen = counted(encoder)
    first = cached_features(encoder, episodes, tmp_path, batch=4)
    assert sum(seen) == len(episodes["frames"]) == 18
    expected = encoder.features(torch.from_numpy(episodes["frames"])).detach().numpy()
    np.testing.assert_allclose(first, expected, rtol=2e-3, atol=2e-3)
    again = cached_features(encoder, episodes, tmp_path)
    assert sum(seen) == 18 + 18  # only by this test's own call above
    np.testing.assert_array_equal(first, again)
    assert "reusing" in capsys.readouterr().out


@pytest.mark.parametrize("change", ["weights", "frames", "pool", "stride", "episodes"])
def test_whatever_features_depend_on_makes_another_file(
    episodes: Episodes, make_episodes, tmp_path: Path, change: str
) -> None:
    cached_features(encoder_of(), episodes, tmp_path)
    other, frames = encoder_of(), episodes
    if change == "weights":
        with torch.no_grad():
            next(other.frame_net.parameters())[0, 0, 0, 0] += 1e-3
    elif change in ("pool", "stride"):
        other = encoder_of(**{change: 4})
    elif change == "frames":
        frames = make_episodes([6, 4, 5], frame_size=SIZE, seed=1)
    else:
        frames = make_episodes([4, 6, 5], frame_size=SIZE)
    found = cached_features(other, frames, tmp_path)
    assert len(list(tmp_path.glob("*.npy"))) == 2
    expected = other.features(torch.from_numpy(frames["frames"])).detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-3)


def test_the_head_does_not_matter_to_the_cache(episodes: Episodes, tmp_path: Path) -> None:
    encoder = encoder_of()
    cached_features(encoder, episodes, tmp_path)
    torch.nn.init.zeros_(encoder.frame_head[0].weight)
    cached_features(encoder, episodes, tmp_path)
    assert len(list(tmp_path.glob("*.npy"))) == 1


def test_a_killed_write_leaves_nothing_that_is_used(episodes: Episodes, tmp_path: Path) -> None:
    encoder = encoder_of()

    def kill(module: Any, inputs: Any, output: Any) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt

    calls: list[int] = []
    handle = encoder.frame_net.register_forward_hook(kill)
    with pytest.raises(KeyboardInterrupt):
        cached_features(encoder, episodes, tmp_path, batch=4)
    handle.remove()
    assert not list(tmp_path.glob("*.npy"))
    found = cached_features(encoder, episodes, tmp_path, batch=4)
    expected = encoder.features(torch.from_numpy(episodes["frames"])).detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-3)
    assert sorted(file.suffix or file.name for file in tmp_path.iterdir()) == [".lock", ".npy"]


# training


def test_transitions_hold_consecutive_steps(episodes: Episodes) -> None:
    data = Transitions(episodes, np.array([0, 2]), 2, None)
    assert len(data) == 6 + 5
    batch = data.batch(torch.tensor([0, 5, 6]))
    rows = [0, 5, 12]
    for i, (before, row) in enumerate([(0, 0), (4, 5), (12, 12)]):
        np.testing.assert_array_equal(batch["frames"][i], episodes["frames"][[before, row, row + 1]])
    before = [np.zeros(2), episodes["actions"][4], np.zeros(2)]
    np.testing.assert_array_equal(batch["actions"], np.stack([before, episodes["actions"][rows]], 1).astype(np.float32))
    used = [*range(6), *range(12, 17)]
    for key, name in (("rewards", "rewards"), ("observations", "states")):
        mean, std = episodes[key][used].mean(0), episodes[key][used].std(0)
        np.testing.assert_allclose(batch[name], (episodes[key][rows] - mean) / std, rtol=1e-3, atol=1e-4)


def test_held_out_transitions_use_the_training_statistics(episodes: Episodes) -> None:
    train = Transitions(episodes, np.array([0, 1]), 2, None)
    held_out = Transitions(episodes, np.array([2]), 2, None, train.statistics)
    known = episodes["rewards"][[*range(6), *range(7, 11)]]
    expected = (episodes["rewards"][12:17] - known.mean()) / known.std()
    np.testing.assert_allclose(held_out.batch(torch.arange(5))["rewards"], expected, rtol=1e-3)


def test_a_frozen_backbone_stays_as_it_is(episodes: Episodes, tmp_path: Path) -> None:
    """Parameters and the statistics of its batch norms, though frames run through it in training."""
    settings = {**SMALL, "backbone": "torchvision:resnet18", "history": 2}
    representation = Representation(settings, 3)
    before = {key: value.clone() for key, value in representation.encoder.frame_net.state_dict().items()}
    head = representation.encoder.head[0].weight.detach().clone()
    trained = run(representation, Transitions(episodes, np.arange(3), 2, None), tmp_path, steps=3)
    after = trained.encoder.frame_net.state_dict()
    assert any("running_mean" in key for key in before)
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    assert not torch.equal(trained.encoder.head[0].weight, head)


def test_fine_tuning_moves_the_weights_and_not_the_statistics(episodes: Episodes, tmp_path: Path) -> None:
    settings = {**SMALL, "backbone": "torchvision:resnet18", "history": 1, "trainable": True}
    representation = Representation(settings, 3)
    before = {key: value.clone() for key, value in representation.encoder.frame_net.state_dict().items()}
    trained = run(representation, Transitions(episodes, np.arange(3), 1, None), tmp_path, steps=2)
    for key, value in trained.encoder.frame_net.state_dict().items():
        assert torch.equal(value, before[key]) == ("running" in key or "num_batches" in key)


def pointer_episodes(count: int = 6, steps: int = 12) -> Episodes:
    """A bright square whose place is the state; the action moves it."""
    random = np.random.default_rng(0)
    rows = count * (steps + 1)
    states, actions = np.zeros((rows, 2), np.float32), np.zeros((rows, 2), np.float32)
    frames, ends = np.zeros((rows, SIZE, SIZE, 3), np.uint8), np.zeros(rows, bool)
    for e in range(count):
        place = random.uniform(4, 24, 2)
        for t in range(steps + 1):
            row = e * (steps + 1) + t
            y, x = place.astype(int)
            frames[row, y : y + 5, x : x + 5] = 255
            states[row] = place
            if t < steps:
                actions[row] = random.uniform(-1, 1, 2)
                place = np.clip(place + 3 * actions[row], 0, SIZE - 6)
        ends[(e + 1) * (steps + 1) - 2] = True
    arrays = {"observations": states, "frames": frames, "actions": actions, "rewards": -states.sum(1) / 10}
    arrays |= {"terminations": np.zeros(rows, bool), "truncations": ends}
    return Episodes(arrays, np.arange(count + 1) * (steps + 1))


def test_a_small_net_learns_from_frames(tmp_path: Path) -> None:
    """Its latents come to tell where the square is, at first nothing."""
    data = pointer_episodes()
    torch.manual_seed(0)
    settings = {**SMALL, "pool": 4, "history": 1, "trainable": True}
    representation = Representation(settings, 2, hidden=32, shift=1)
    transitions = Transitions(data, np.arange(6), 1, None)
    batch = transitions.batch(torch.arange(len(transitions)))
    random = {"shift": torch.zeros(len(transitions), 2, dtype=torch.long), "noise": torch.zeros(len(transitions), 2, 4)}
    losses = [representation.loss(batch, random, None)["state"].item()]
    before = representation.encoder.frame_net.net[0].weight.detach().clone()
    trained = run(representation, transitions, tmp_path, steps=150, learning_rate=1e-3, ema_decay=0.9)
    with torch.no_grad():
        losses.append(trained.loss(batch, random, None)["state"].item())
    assert not torch.equal(before, trained.encoder.frame_net.net[0].weight)
    assert losses[1] < 0.2 * losses[0]


def test_shifts_are_small_and_repeat() -> None:
    representation = Representation({**SMALL, "history": 1}, shift=3)
    first, second = (representation.draw(1000, None, torch.Generator().manual_seed(0))["shift"] for _ in range(2))
    assert torch.equal(first, second)
    assert set(first.flatten().tolist()) == set(range(-3, 4))


def test_information() -> None:
    mean, log_noise = torch.randn(5, 3), torch.tensor([-2.0, 0.0, 0.5])
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(mean, log_noise.exp()), normal(0.0, 1.0)).sum(-1).mean()
    torch.testing.assert_close(information(mean, log_noise), expected)


# the decoder


@pytest.mark.parametrize("size", [8, 32, 64])
def test_decoder_draws_frames(size: int) -> None:
    decoder = Decoder(4, size).eval()
    frames = decoder.frames(10 * torch.randn(3, 4))
    assert frames.shape == (3, size, size, 3) and frames.dtype == torch.uint8


@pytest.mark.parametrize("size", [0, 4, 7, 24, 63, 65, 100])
def test_sizes_that_cannot_be_drawn(size: int) -> None:
    with pytest.raises(InputError, match=rf"decoder\.size: must be 8, 16, 32, 64.*found {size}"):
        Decoder(4, size)


def test_decoder_learns_pictures(tmp_path: Path) -> None:
    data = pointer_episodes(count=3)
    torch.manual_seed(0)
    decoder = Decoder(2, SIZE, width=8)
    decoder.latents.fit(data["observations"])
    pictures = Pictures(data, np.array([0, 2]), data["observations"])
    assert len(pictures) == 26
    batch = pictures.batch(torch.tensor([0, 13]))
    np.testing.assert_array_equal(batch["frames"], data["frames"][[0, 26]])
    np.testing.assert_array_equal(batch["latents"], data["observations"][[0, 26]])

    def error() -> float:
        drawn = decoder.frames(torch.from_numpy(data["observations"][:13])).numpy().astype(float)
        return np.abs(drawn - data["frames"][:13]).mean()

    before = error()
    decoder = run(decoder, pictures, tmp_path, steps=80, ema_decay=0.9)
    assert error() < 0.3 * before


def test_decoder_saving(tmp_path: Path) -> None:
    decoder = Decoder(3, 16).eval()
    decoder.latents.fit(np.random.default_rng(0).normal(5, 2, (30, 3)))
    decoder.save_pretrained(tmp_path)
    latents = torch.randn(2, 3)
    assert torch.equal(Decoder.from_pretrained(tmp_path).frames(latents), decoder.frames(latents))
