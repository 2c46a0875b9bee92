"""Closed-loop evaluation in many environments with fixed seeds, and comparison of plans with the simulator."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from envs.observations import Observation, first, picture
from envs.protocol import Environments
from evaluation.statistics import summary
from mpdiffuser.console import progress
from mpdiffuser.controller import Policy
from mpdiffuser.tuning import clustered_error

STEPS_AHEAD = (1, 2, 4, 8)


@dataclass
class Outcome:
    """Results of B episodes.

    Attributes:
        returns, lengths, costs: (B,), undiscounted.
        seconds: time of all episodes.
        batch: number of episodes of one policy, which step together.
        plan_ms: milliseconds of each plan for a whole batch.
        plan_ms_single: milliseconds of each plan for one environment.
        action_ms_single: milliseconds from an observation to its action, for one environment.
        distances: steps ahead -> for each episode the squared distances of planned and real latents, one for each
            probe. A distance is the mean over dimensions, in variances of the data.
        facts: `Policy.planning_facts`.
        film: frames, plans and returns of the first episode, for the video.
        film_every: number of decisions between two entries of the film; 0: no film.
    """

    returns: np.ndarray
    lengths: np.ndarray
    costs: np.ndarray
    seconds: float
    batch: int
    plan_ms: list[float] = field(default_factory=list)
    plan_ms_single: list[float] = field(default_factory=list)
    action_ms_single: list[float] = field(default_factory=list)
    distances: dict[int, list[list[float]]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    film: list[dict[str, Any]] = field(default_factory=list)
    film_every: int = 0

    def metrics(self) -> dict[str, Any]:
        """Return the results as a JSON object."""
        result = {
            **summary(self.returns),
            "returns": [round(float(r), 3) for r in self.returns],
            "lengths": [int(n) for n in self.lengths],
            "costs": [round(float(c), 3) for c in self.costs],
            "seconds": round(self.seconds, 1),
        }
        result |= self.facts
        for name, batch in (("plan_ms", self.batch), ("plan_ms_single", 1), ("action_ms_single", 1)):
            times = getattr(self, name)
            if times:
                result[name] = {
                    "median": round(float(np.median(times)), 2),
                    "p95": round(float(np.percentile(times, 95)), 2),
                    "batch": batch,
                }
        if self.distances:
            result["feasibility"] = {str(k): _mean_and_error(found) for k, found in self.distances.items()}
        return result


def _mean_and_error(found: Sequence[Sequence[float]]) -> dict[str, float]:
    """Return the mean of the values of all episodes, and its standard error; of one episode the mean alone."""
    values, owners = np.concatenate(found), np.repeat(np.arange(len(found)), [len(each) for each in found])
    error = clustered_error(values, owners)
    return {"mean": float(values.mean()), **({"standard_error": error} if np.isfinite(error) else {})}


def evaluate(
    policies: Sequence[Policy],
    environments: Sequence[Environments],
    seeds: Sequence[int],
    probe_every: int = 0,
    film_every: int = 0,
    label: str = "evaluate",
    max_decisions: int | None = None,
) -> Outcome:
    """Run one episode for each seed, with policies of one method in parallel threads.

    Args:
        policies: the policies, all of the same method.
        environments: a batch of environments for each policy; in total one environment for each seed.
        seeds: one for each environment, in this order. They also seed the policies.
        probe_every: number of decisions between two probes of the plans; 0: no probes. In a probe the simulator
            executes the first steps of a plan and then restores its state. So a probe measures the plan without
            replanning. Environments whose state cannot be restored (`can_peek`) are not probed.
        film_every: number of decisions between two entries of the film of the first episode; 0: no film. With a film
            the time of a single decision is not measured.
        label: title of the progress bar.
        max_decisions: largest number of decisions in an episode; None: until the environment ends it.
    """
    ends = np.cumsum([batch.num_envs for batch in environments])
    parts = [[int(seed) for seed in part] for part in np.split(np.asarray(seeds), ends[:-1])]
    threads = torch.get_num_threads()
    for policy, batch in zip(policies, environments):
        policy.prepare(batch.num_envs)

    def run_part(index: int) -> tuple[Outcome, Any, Any]:
        torch.set_num_threads(threads)  # the setting applies only to this thread
        first = index == 0
        pair = (policies[index], environments[index])
        return _episodes(*pair, parts[index], probe_every, film_every * first, label if first else None, max_decisions)

    with ThreadPoolExecutor(len(parts)) as pool:
        try:
            outcomes, observations, goals = zip(*pool.map(run_part, range(len(parts))))
        except BaseException:  # a part failed, or Ctrl-C: closed environments end the other parts at their next step
            for batch in environments:
                batch.close()
            raise
    outcome = _joined(outcomes)
    if policies[0].plan is not None and not film_every:
        outcome.plan_ms_single, outcome.action_ms_single = _single_latency(policies[0], observations[0], goals[0])
    return outcome


def evaluate_in_turn(
    policy: Policy, environment: Environments, seeds: Sequence[int], label: str, max_decisions: int | None = None
) -> Outcome:
    """Run one episode after the other, one for each seed; `facts` are those after the last one.

    Args:
        policy: of one robot.
        environment: a batch of one.
        seeds, label, max_decisions: as in `evaluate`.
    """
    policy.prepare(1)
    outcomes = [_episodes(policy, environment, [int(seed)], 0, 0, label, max_decisions)[0] for seed in seeds]
    return replace(_joined(outcomes), facts=outcomes[-1].facts, seconds=sum(each.seconds for each in outcomes))


def _joined(outcomes: Sequence[Outcome]) -> Outcome:
    """Join the outcomes of several policies."""
    first = outcomes[0]
    facts = dict(first.facts)
    if "fallbacks" in facts:
        facts["fallbacks"] = sum(o.facts["fallbacks"] for o in outcomes)
    return replace(
        first,
        returns=np.concatenate([o.returns for o in outcomes]),
        lengths=np.concatenate([o.lengths for o in outcomes]),
        costs=np.concatenate([o.costs for o in outcomes]),
        seconds=max(o.seconds for o in outcomes),
        plan_ms=[ms for o in outcomes for ms in o.plan_ms],
        distances={k: [d for o in outcomes for d in o.distances.get(k, [])] for o in outcomes for k in o.distances},
        facts=facts,
    )


def _episodes(
    policy: Policy,
    environments: Environments,
    seeds: Sequence[int],
    probe_every: int,
    film_every: int,
    label: str | None,
    max_decisions: int | None,
) -> tuple[Outcome, Any, Any]:
    """Run the episodes of one policy.

    Returns:
        Their outcome, and the last observation (1, ...) and the goal (1, ...) of the first environment. The goal is
        None if the environments give none.
    """
    began = time.perf_counter()
    observations, infos = environments.reset(seed=list(seeds))
    policy.reset(seeds)
    goals = infos.get("goal")
    if goals is not None:
        policy.aim(goals)
    count = environments.num_envs
    outcome = Outcome(np.zeros(count), np.zeros(count, int), np.zeros(count), 0.0, count, film_every=film_every)
    alive = np.ones(count, bool)
    decision, probe_due = 0, 0
    with progress(desc=label, unit="step", disable=label is None) as bar:
        while alive.any() and decision != max_decisions:
            actions = policy.act(observations, alive)
            if policy.plan is not None and policy.planned_now:
                if alive.all():  # later plans are for a smaller batch
                    outcome.plan_ms.append(policy.plan.plan_ms)
                if probe_every and environments.can_peek and decision >= probe_due:
                    _probe(policy, environments, alive, outcome)
                    probe_due = decision + probe_every
            if film_every and alive[0] and decision % film_every == 0:
                outcome.film.append(_scene(policy, environments, observations, outcome.returns[0]))
            observations, rewards, terminations, truncations, infos = environments.step(actions)
            outcome.returns += rewards * alive
            costs = infos.get("cost", np.zeros(count)) * alive
            outcome.costs += costs
            policy.record_costs(costs)
            outcome.lengths += alive
            alive &= ~(terminations | truncations)
            decision += 1
            bar.update()
            bar.set_postfix({"return so far": f"{outcome.returns.mean():.1f}"}, refresh=False)
    outcome.facts = policy.planning_facts()
    outcome.seconds = time.perf_counter() - began
    return outcome, first(observations), None if goals is None else first(goals)


def _probe(policy: Policy, environments: Environments, alive: np.ndarray, outcome: Outcome) -> None:
    """Execute the plans in the simulator, and record the distances between the real and the planned latents."""
    errors = policy.plan_errors(environments.peek, max(STEPS_AHEAD))
    for k in (k for k in STEPS_AHEAD if k <= errors.shape[1]):
        found = outcome.distances.setdefault(k, [[] for _ in alive])
        for episode in np.flatnonzero(alive):
            found[episode].append(float(errors[episode, k - 1]))


def _scene(
    policy: Policy, environments: Environments, observations: Observation, return_so_far: float
) -> dict[str, Any]:
    """Return one scene of the film. Its `plan` is the rest of the plan, (K, d), empty without a plan."""
    seen = picture(observations)
    frame = environments.render_first() if seen is None else seen[0].copy()
    return {"return": float(return_so_far), "frame": frame, "plan": policy.upcoming_latents()}


def _single_latency(
    policy: Policy, observation: Any, goal: Any = None, repeats: int = 30
) -> tuple[list[float], list[float]]:
    """Measure the milliseconds of plans, and from an observation to its action, for one environment.

    The results are two lists of `repeats` times. They omit the first two measurements, which are warm-up.
    """
    plans, actions = [], []
    for _ in range(repeats + 2):
        policy.reset([0])  # so that every action needs a new plan, for any chunk
        if goal is not None:
            policy.aim(goal)
        began = time.perf_counter()
        policy.act(observation)
        actions.append(1e3 * (time.perf_counter() - began))
        assert policy.plan is not None
        plans.append(policy.plan.plan_ms)
    return plans[2:], actions[2:]
