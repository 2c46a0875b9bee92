"""Untrained pipelines and random episodes, for drills and benchmarks, which need their shapes and not their content."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from mpdiffuser.episodes import Episodes
from mpdiffuser.models.denoisers import Dynamics, Planner
from mpdiffuser.models.forward import ForwardModel
from mpdiffuser.models.normalizer import Marginals, Normalizer
from mpdiffuser.models.ranker import Ranker
from mpdiffuser.pipeline import MPDiffuserPipeline
from mpdiffuser.record import PICTURE, TRUE_STATE, Actions, Observation, Record
from mpdiffuser.schedule import NoiseSchedule
from vision.encoder import IdentityEncoder


def untrained(
    encoder: Any,
    planner: Planner,
    dynamics: Dynamics,
    info: Mapping[str, Any],
    sampler: Mapping[str, Any] | None = None,
    hidden: int = 256,
    levels: int = 100,
) -> MPDiffuserPipeline:
    """A pipeline with untrained models.

    Args:
        sampler: settings that the pipeline draws with. levels: of the noise schedule.
        hidden: width of ranker and forward model.
    """
    d, m = (planner.config[key] for key in ("latent_dim", "action_dim"))
    parts: dict[str, Any] = {
        "encoder": encoder.eval(),
        "latents": Normalizer(d).fit(np.eye(d) * 3),
        "actions": Normalizer(m).fit(np.array([[-1.0] * m, [1.0] * m])),
        "condition": Marginals(1).fit(np.linspace(-1, 1, 9)[:, None]),
        "planner": planner.eval(),
        "dynamics": dynamics.eval(),
        "ranker": Ranker(d, m, hidden=hidden).eval(),
        "forward": ForwardModel(d, m, hidden=hidden).eval(),
        "schedule": NoiseSchedule(levels),
    }
    return MPDiffuserPipeline(**parts, sampler_defaults=dict(sampler or {}), info=dict(info))


def small_pipeline() -> MPDiffuserPipeline:
    """A pipeline on states as small as can be: latents of 3, actions of 2, plans of 2 levels and 2 candidates."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = dict(latent_dim=3, action_dim=2, horizon=8, width=8, multipliers=(1, 2), embedding=16)
    record = Record({"observations": Observation(TRUE_STATE, (3,))}, Actions.unit(2))
    info = {"task": "none", "data": "none", "record": record.to_json()}
    models = (IdentityEncoder(3, 2), Planner(**sizes), Dynamics(**sizes))
    return untrained(*models, info, {"steps": 2, "candidates": 2}, hidden=16, levels=20)


def random_episodes(
    count: int, steps: int, observation_dim: int = 3, action_dim: int = 2, frame_size: int = 0
) -> Episodes:
    """Episodes of random numbers, the same each time; all are truncated after `steps` steps.

    Args:
        frame_size: pixels a side of their frames; 0: they have no frames.
    """
    random, rows = np.random.default_rng(0), count * (steps + 1)
    offsets = np.arange(count + 1) * (steps + 1)
    arrays: dict[str, np.ndarray] = {
        "observations": random.standard_normal((rows, observation_dim), np.float32),
        "actions": random.uniform(-1, 1, (rows, action_dim)).astype(np.float32),
        "rewards": random.random(rows, np.float32),
        "terminations": np.zeros(rows, bool),
        "truncations": np.zeros(rows, bool),
    }
    arrays["truncations"][offsets[1:] - 2] = True
    if frame_size:
        arrays["frames"] = random.integers(0, 256, (rows, frame_size, frame_size, 3), np.uint8)
    observations = {"observations": Observation(TRUE_STATE, (observation_dim,))}
    if frame_size:
        observations["frames"] = Observation(PICTURE, (frame_size, frame_size, 3))
    return Episodes(arrays, offsets, record=Record(observations, Actions.unit(action_dim)))
