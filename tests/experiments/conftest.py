"""A pipeline for an environment that falls over at once."""

from collections.abc import Callable

import numpy as np
import pytest

from mpdiffuser.models.denoisers import Dynamics, Planner
from mpdiffuser.models.normalizer import Marginals, Normalizer
from mpdiffuser.models.ranker import Ranker
from mpdiffuser.pipeline import MPDiffuserPipeline
from mpdiffuser.schedule import NoiseSchedule
from vision import IdentityEncoder

D, M, H = 11, 3, 8  # a hopper


def untrained(randomize, seed: int) -> MPDiffuserPipeline:
    sizes = dict(latent_dim=D, action_dim=M, horizon=H, width=8, multipliers=(1, 2), embedding=16)
    random = np.random.default_rng(seed)
    ranker = randomize(Ranker(D, M, hidden=8), seed=seed)
    ranker.returns.fit(random.normal(size=(50, 1)))
    info = {
        "task": "hopper",
        "environment": {"env_id": "Hopper-v4"},
        "file": "f.hdf5",
        "suite": "d4rl",
        "stand_in": True,
    }
    return MPDiffuserPipeline(
        IdentityEncoder(D, M),
        Normalizer(D).fit(random.normal(size=(50, D))),
        Normalizer(M).fit(random.uniform(-1, 1, (50, M))),
        Marginals(1).fit(random.normal(size=(50, 1))),
        randomize(Planner(**sizes), seed=seed),
        randomize(Dynamics(**sizes), seed=seed + 1),
        ranker,
        NoiseSchedule(100),
        info=info,
    )


@pytest.fixture
def hopper(randomize) -> Callable[[int], MPDiffuserPipeline]:
    """Seed -> an untrained pipeline for Hopper."""
    return lambda seed: untrained(randomize, seed)
