"""Episodes shared out over threads, on a real simulator."""

import threading
from collections.abc import Sequence

import numpy as np
import pytest

from envs.vector import VectorEnv
from evaluation.closed_loop import Outcome, evaluate
from mpdiffuser.controller import Controller
from mpdiffuser.methods.random_actions import RandomPolicy
from mpdiffuser.sampler import SamplerConfig
from vision.encoder import IdentityEncoder

SEEDS = [5, 6, 7, 8, 9]
HOPPER = {"kind": "gymnasium", "env_id": "Hopper-v4", "speed_limit": None}


class Noted(RandomPolicy):
    """Random actions, which depend on the seed; notes who asks, and fails after some."""

    def __init__(self, lasts: int = 10**6) -> None:
        super().__init__(np.full(3, -1), np.ones(3))
        self.lasts = lasts
        self.threads: set[int] = set()

    def reset(self, seeds: Sequence[int]) -> None:
        super().reset(seeds)
        self.seeds = list(seeds)

    def act(self, observations: np.ndarray, active: np.ndarray | None = None) -> np.ndarray:
        self.threads.add(threading.get_ident())
        self.lasts -= 1
        if self.lasts < 0:
            raise ArithmeticError("no more")
        return super().act(observations, active)


def run(counts: list[int], policies: list[Noted]) -> Outcome:
    environments = [VectorEnv(HOPPER, count, 1) for count in counts]
    try:
        return evaluate(policies, environments, SEEDS)
    finally:
        for batch in environments:
            batch.close()


@pytest.mark.slow
def test_counts_give_what_one_batch_gives() -> None:
    whole = run([5], [Noted()])
    pair = [Noted(), Noted()]
    parts = run([3, 2], pair)
    assert [policy.seeds for policy in pair] == [[5, 6, 7], [8, 9]]
    assert not pair[0].threads & pair[1].threads  # side by side
    assert len(set(whole.returns.tolist())) == 5
    np.testing.assert_array_equal(parts.returns, whole.returns)
    np.testing.assert_array_equal(parts.lengths, whole.lengths)
    assert (whole.batch, parts.batch) == (5, 3)


def test_a_share_that_fails_ends_the_others_and_their_simulators() -> None:
    environments = [VectorEnv(HOPPER, count, 1) for count in (3, 2)]
    with pytest.raises(ArithmeticError, match="no more"):
        evaluate([Noted(), Noted(lasts=2)], environments, SEEDS)
    assert all(batch.closed for batch in environments)


def test_probes_of_one_episode_are_not_independent() -> None:
    """Thrice the same probes tell no more; one episode alone has no error."""

    def found(distances: list[list[float]]) -> dict[str, float]:
        outcome = Outcome(np.zeros(2), np.zeros(2, int), np.zeros(2), 0.0, 2, distances={4: distances})
        return outcome.metrics()["feasibility"]["4"]

    once = found([[1.0], [3.0], [8.0]])
    assert once["mean"] == 4.0 and once["standard_error"] == pytest.approx(np.std([1, 3, 8], ddof=1) / 3**0.5)
    assert found([3 * [1.0], 3 * [3.0], 3 * [8.0]]) == pytest.approx(once)
    assert found([[1.0, 2.0, 6.0], []]) == {"mean": 3.0}


def test_controllers_in_threads_plan_as_one_after_the_other(make_pipeline) -> None:
    """Engines compile before the threads begin: torch's exporter belongs to the whole process."""
    config = SamplerConfig(engine="openvino", steps=1, candidates=2)
    found = []
    for counts in ([1, 1, 2], [4]):
        pipeline = make_pipeline(latent_dim=11, action_dim=3, encoder=IdentityEncoder(11, 3))
        environments = [VectorEnv(HOPPER, count, 1) for count in counts]
        try:
            policies = [Controller(pipeline, config) for _ in counts]
            found.append(evaluate(policies, environments, SEEDS[:4], max_decisions=8))
        finally:
            for batch in environments:
                batch.close()
    assert [outcome.facts["fallbacks"] for outcome in found] == [0, 0]
    np.testing.assert_allclose(found[0].returns, found[1].returns, rtol=1e-3)
