"""Random episodes and untrained pipelines."""

import numpy as np
import torch

from experiments.untrained import random_episodes, small_pipeline


def test_random_episodes() -> None:
    episodes = random_episodes(3, 5, 4, 2, frame_size=8).check_finite()
    assert episodes.lengths.tolist() == [5, 5, 5]
    assert episodes["observations"].shape == (18, 4) and episodes["frames"].shape == (18, 8, 8, 3)
    assert np.flatnonzero(episodes["truncations"]).tolist() == [4, 10, 16] and not episodes["terminations"].any()
    assert random_episodes(3, 5, 4, 2, frame_size=8).checksum() == episodes.checksum()


def test_the_small_pipeline_plans() -> None:
    pipeline = small_pipeline()
    plan = pipeline(torch.zeros(1, 3), pipeline.sampler(pipeline.sampler_defaults), [torch.Generator()])
    assert plan.actions.shape == (1, 2, 8, 2)
