"""Latents of episodes from states: the vectors of the last observations and the actions between them."""

from dataclasses import replace

import numpy as np

from mpdiffuser.episodes import Episodes
from mpdiffuser.errors import InputError
from mpdiffuser.record import PROPRIOCEPTION, TRUE_STATE, Observation
from vision.data import Rows, encode
from vision.encoder import IdentityEncoder

STATES = (PROPRIOCEPTION, TRUE_STATE)


def state_encoder(episodes: Episodes, history: int = 1) -> IdentityEncoder:
    """Return the encoder of the episodes' vectors.

    Args:
        episodes: the dataset.
        history: number of observations in a latent.

    Raises:
        InputError: if the dataset has no vectors, or for a history below 1.
    """
    names = episodes.record.names(*STATES)
    if not names:
        raise InputError(f"{episodes.path}: holds only pictures; for pictures use train_vision.py")
    if history < 1:
        raise InputError(f"history: must be at least 1, found {history}")
    state_dim, action_dim = sum(episodes[name].shape[1] for name in names), episodes["actions"].shape[1]
    return IdentityEncoder(history * state_dim + (history - 1) * action_dim, action_dim, history)


def encode_states(encoder: IdentityEncoder, episodes: Episodes) -> Episodes:
    """Return the episodes with latents (M, d) as `observations`, and no other observations."""
    states = Rows([episodes[name] for name in episodes.record.names(*STATES)])
    return with_latents(episodes, states[:] if encoder.history == 1 else encode(encoder, episodes, states))


def with_latents(episodes: Episodes, latents: np.ndarray) -> Episodes:
    """Return the episodes with latents (M, d) as `observations`, and no other observations."""
    dropped = {*episodes.record.observations, "physics"}
    arrays = {key: array for key, array in episodes.arrays.items() if key not in dropped} | {"observations": latents}
    record = replace(episodes.record, observations={"observations": Observation(TRUE_STATE, latents.shape[1:])})
    return Episodes(arrays, episodes.offsets, episodes.info, episodes.path, episodes.numbers, record)
