"""Evaluation in real time: the simulator waits for the clock, and a plan is used as soon as it is finished."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from envs.observations import Observed
from envs.record import whole_episodes
from envs.vector import VectorEnv
from evaluation.closed_loop import Outcome, evaluate_in_turn
from mpdiffuser.controller import Policy
from mpdiffuser.errors import InputError
from mpdiffuser.history import Observations
from mpdiffuser.methods import Planning, Setup
from mpdiffuser.pipeline import MPDiffuserPipeline
from mpdiffuser.realtime import Runner, Tick, summarized
from mpdiffuser.sampler import SamplerConfig


class RealTime(Policy):
    """One robot controlled by a `Runner`, at the rate of the pipeline's data. `act` returns when the time has come.

    Args:
        pipeline, config: of the runner.

    Raises:
        InputError: as `Runner`.
    """

    def __init__(self, pipeline: MPDiffuserPipeline, config: SamplerConfig) -> None:
        self.runner = Runner(pipeline, config=config)
        self.ticks: list[Tick] = []
        self.goal: Observations | None = None
        self.begun, self.failed = False, 0

    def reset(self, seeds: Sequence[int]) -> None:
        """Start a new episode. The counts go on.

        Raises:
            InputError: for more than one robot.
        """
        if len(seeds) != 1:
            raise InputError(f"real time: is for one robot, found {len(seeds)}")
        self._keep()
        self.runner.seed, self.goal, self.begun = int(seeds[0]), None, False

    def aim(self, goal: Observations) -> None:
        """Set the goal of the episode, observations (1, ...)."""
        if self.runner.controller.pipeline.takes_goals:
            self.goal = goal

    def act(self, observations: Observations, active: np.ndarray | None = None) -> np.ndarray:
        """Observations (1, ...) -> action (1, m)."""
        if self.begun:
            self.runner.wait()
        else:
            self.runner.start(observations, self.goal)
            self.begun = True
        return self.runner.tick(observations)[None]

    def planning_facts(self) -> dict[str, Any]:
        """Return the counts of all episodes."""
        ticks = [*self.ticks, *self.runner.log]
        failed = self.failed + self.runner.controller.fallbacks
        config = self.runner.controller.sampler.config
        found = summarized(ticks, self.runner.period, self.runner.deadline_ms)
        found = {key: value for key, value in found.items() if math.isfinite(value)}  # without plans no times of plans
        return {"fallbacks": failed, "levels": config.steps, "engine": config.engine, "real_time": found}

    def close(self) -> None:
        """End the planning thread."""
        self.runner.close()

    def _keep(self) -> None:
        self.ticks += self.runner.log
        self.failed += self.runner.controller.fallbacks
        self.runner.log.clear()
        self.runner.controller.fallbacks = 0


def in_real_time(
    method: type[Planning],
    setup: Setup,
    record: Mapping[str, Any],
    observation: Observed,
    seeds: Sequence[int],
    label: str,
    max_decisions: int | None = None,
) -> Outcome:
    """Run one episode for each seed, one after the other, in real time.

    Args:
        method, setup: of the policy.
        record, observation: of the environment.
        seeds, label, max_decisions: as in `evaluation.closed_loop.evaluate`.

    Raises:
        InputError: as `Runner`.
    """
    policy, environment = RealTime(*method.prepare(setup)), VectorEnv(whole_episodes(record), 1, 1, observation)
    try:
        return evaluate_in_turn(policy, environment, seeds, label, max_decisions)
    finally:
        environment.close()
        policy.close()
