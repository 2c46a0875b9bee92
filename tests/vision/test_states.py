"""Latents from vectors: by a plain loop, and as acting sees them."""

from typing import Any

import numpy as np
import pytest

from mpdiffuser.episodes import Episodes
from mpdiffuser.errors import InputError
from mpdiffuser.history import LatentHistory
from mpdiffuser.record import PICTURE, PROPRIOCEPTION, TRUE_STATE, Actions, Observation, Record
from vision.encoder import IdentityEncoder
from vision.states import STATES, encode_states, state_encoder, with_latents


@pytest.fixture
def vectors(make_episodes: Any) -> Episodes:
    """Episodes with two vectors and pictures."""
    episodes = make_episodes([5, 3, 4], frame_size=8)
    episodes.arrays["touch"] = np.random.default_rng(1).normal(size=(15, 2)).astype(np.float32)
    episodes.arrays["physics"] = np.zeros((15, 4))
    seen = {
        "touch": Observation(PROPRIOCEPTION, (2,)),
        "frames": Observation(PICTURE, (8, 8, 3)),
        "observations": Observation(TRUE_STATE, (3,)),
    }
    episodes.record = Record(seen, Actions.unit(2))
    return episodes


def by_a_loop(episodes: Episodes, history: int) -> np.ndarray:
    """Latents (M, d): the states by name, oldest first, then the actions between them."""
    rows = []
    for e in range(len(episodes)):
        first, end = int(episodes.offsets[e]), int(episodes.offsets[e + 1])
        for row in range(first, end):
            parts = []
            for before in reversed(range(history)):
                at = max(first, row - before)
                parts += [episodes["observations"][at], episodes["touch"][at]]
            for before in reversed(range(1, history)):
                started = row - before >= first
                parts.append(episodes["actions"][row - before] if started else np.zeros(2, np.float32))
            rows.append(np.concatenate(parts))
    return np.stack(rows)


@pytest.mark.parametrize("history", [1, 2, 3, 7])
def test_latents_by_a_plain_loop(vectors: Episodes, history: int) -> None:
    encoder = state_encoder(vectors, history)
    encoded = encode_states(encoder, vectors)
    expected = by_a_loop(vectors, history)
    assert encoder.config["latent_dim"] == expected.shape[1] and encoder.history == history
    np.testing.assert_array_equal(encoded["observations"], expected)
    stream = LatentHistory(encoder, record=vectors.record.only(*STATES))
    for e in range(len(vectors)):
        stream.reset()
        for row in range(vectors.rows(e).start, vectors.rows(e).stop):
            seen = {name: vectors[name][row][None] for name in ("observations", "touch")}
            np.testing.assert_array_equal(stream(seen)[0], expected[row])
            stream.record_actions(vectors["actions"][row][None])


def test_latent_episodes_have_no_other_observations(vectors: Episodes) -> None:
    latents = np.ones((15, 6), np.float32)
    found = with_latents(vectors, latents)
    assert found["observations"] is latents and list(found.record.observations) == ["observations"]
    assert not {"touch", "frames", "physics"} & set(found.arrays)
    assert found.record.actions == vectors.record.actions
    for key in ("actions", "rewards", "terminations", "truncations"):
        assert found[key] is vectors[key]
    np.testing.assert_array_equal(found.offsets, vectors.offsets)


def test_what_is_refused(vectors: Episodes) -> None:
    with pytest.raises(InputError, match=r"^history: must be at least 1, found 0"):
        state_encoder(vectors, 0)
    vectors.record = vectors.record.only(PICTURE)
    with pytest.raises(InputError, match=r"holds only pictures; for pictures use train_vision\.py"):
        state_encoder(vectors)


def test_an_encoder_with_a_history_is_saved_with_it(tmp_path: Any) -> None:
    IdentityEncoder(3 * 4 + 2 * 2, 2, 3).save_pretrained(tmp_path)
    assert IdentityEncoder.from_pretrained(tmp_path).history == 3
