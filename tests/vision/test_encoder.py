"""Encoders: streams of frames, order, saving."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mpdiffuser.episodes import Episodes
from mpdiffuser.errors import InputError
from mpdiffuser.history import LatentHistory
from vision.encoder import IdentityEncoder, PixelEncoder

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
