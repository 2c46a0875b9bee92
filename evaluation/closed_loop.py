"""Closed-loop evaluation: many environments at once, listed seeds, and a check of the plans against the simulator."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from tqdm.auto import tqdm

from mpdiffuser.controller import Acting, Controller
from mpdiffuser.statistics import summary

AHEAD = (1, 2, 4, 8)


class Environments(Protocol):
    """A batch of B environments with a Gymnasium-like interface."""

    num_envs: int

    def reset(self, *, seed: list[int]) -> tuple[Any, dict]: ...

    def step(self, actions: np.ndarray) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict]: ...

    def peek(self, actions: np.ndarray) -> Any: ...

    def close(self) -> None: ...


@dataclass
class Outcome:
    """What B episodes gave.

    returns, lengths, costs: (B,), undiscounted. plan_ms: of each plan for a whole batch. batch: episodes stepped
    together: B, or fewer in each share. plan_ms_single: of plans for
    one environment. action_ms_single: from its observation to its action, encoding and planning. distances: steps ahead
    -> squared distance of planned and realised latents, mean over dimensions, in standard deviations of the data, one
    entry a probe and environment. fallbacks: plans that could not be had (see `Controller`), None without planning.
    levels: noise levels of a plan. engine: who computed the networks. film: of the first environment, what
    `mpdiffuser.video` shows.
    """

    returns: np.ndarray
    lengths: np.ndarray
    costs: np.ndarray
    seconds: float
    batch: int
    plan_ms: list[float] = field(default_factory=list)
    plan_ms_single: list[float] = field(default_factory=list)
    action_ms_single: list[float] = field(default_factory=list)
    distances: dict[int, list[float]] = field(default_factory=dict)
    fallbacks: int | None = None
    levels: int | None = None
    engine: str | None = None
    film: list[dict[str, Any]] = field(default_factory=list)

    def metrics(self) -> dict[str, Any]:
        result = {
            **summary(self.returns),
            "returns": [round(float(r), 3) for r in self.returns],
            "lengths": [int(n) for n in self.lengths],
            "costs": [round(float(c), 3) for c in self.costs],
            "seconds": round(self.seconds, 1),
        }
        result |= {
            key: getattr(self, key) for key in ("fallbacks", "levels", "engine") if getattr(self, key) is not None
        }
        for name, batch in (("plan_ms", self.batch), ("plan_ms_single", 1), ("action_ms_single", 1)):
            times = getattr(self, name)
            if times:
                result[name] = {
                    "median": round(float(np.median(times)), 2),
                    "p95": round(float(np.percentile(times, 95)), 2),
                    "batch": batch,
                }
        if self.distances:
            result["feasibility"] = {
                str(k): {
                    "mean": float(np.mean(v)),
                    "standard_error": float(np.std(v, ddof=1) / len(v) ** 0.5) if len(v) > 1 else 0.0,
                }
                for k, v in self.distances.items()
            }
        return result


def evaluate(
    controllers: Sequence[Acting],
    environments: Sequence[Environments],
    seeds: Sequence[int],
    probe_every: int = 0,
    film: bool = False,
    label: str = "evaluate",
) -> Outcome:
    """One episode a seed, shared out over controllers that act side by side, each in a thread, with its environments.

    Args:
        environments: a batch for each controller, as many in all as seeds, which go to them in this order.
        seeds: one an environment; they seed the controllers too.
        probe_every: decisions between two checks of the plans (0 = none): the simulator carries out a plan's first
            steps and is put back, so what is compared is the plan itself and not the replanned future.
        film: whether to keep frames and plans of the first environment.
    """
    ends = np.cumsum([batch.num_envs for batch in environments])
    parts = [[int(seed) for seed in part] for part in np.split(np.asarray(seeds), ends[:-1])]
    threads = torch.get_num_threads()

    def share(index: int) -> tuple[Outcome, Any]:
        torch.set_num_threads(threads)  # it holds for the thread that sets it
        first = index == 0
        pair = (controllers[index], environments[index])
        return _episodes(*pair, parts[index], probe_every, film and first, label if first else None)

    with ThreadPoolExecutor(len(parts)) as pool:
        try:
            outcomes, seen = zip(*pool.map(share, range(len(parts))))
        except BaseException:  # one failed, or the user wants to stop: the others end at their next step
            for batch in environments:
                batch.close()
            raise
    outcome = _joined(outcomes)
    first = controllers[0]
    if isinstance(first, Controller):
        outcome.plan_ms_single, outcome.action_ms_single = _single_latency(first, seen[0])
    return outcome


def _joined(outcomes: Sequence[Outcome]) -> Outcome:
    """Those of shares as one."""
    first = outcomes[0]
    return replace(
        first,
        returns=np.concatenate([o.returns for o in outcomes]),
        lengths=np.concatenate([o.lengths for o in outcomes]),
        costs=np.concatenate([o.costs for o in outcomes]),
        seconds=max(o.seconds for o in outcomes),
        plan_ms=[ms for o in outcomes for ms in o.plan_ms],
        distances={k: [d for o in outcomes for d in o.distances.get(k, [])] for k in first.distances},
        fallbacks=None if first.fallbacks is None else sum(o.fallbacks or 0 for o in outcomes),
    )


def _episodes(
    controller: Acting,
    environments: Environments,
    seeds: Sequence[int],
    probe_every: int,
    film: bool,
    label: str | None,
) -> tuple[Outcome, Any]:
    """What one controller's episodes give, and the first environment's last observation, (1, ...)."""
    began = time.perf_counter()
    observations, _ = environments.reset(seed=list(seeds))
    controller.reset(seeds)
    count = environments.num_envs
    outcome = Outcome(np.zeros(count), np.zeros(count, int), np.zeros(count), 0.0, count)
    alive = np.ones(count, bool)
    decision, probe_due = 0, 0
    with tqdm(desc=label, unit="step", mininterval=1, disable=label is None) as bar:
        while alive.any():
            actions = controller.act(observations, alive)
            if isinstance(controller, Controller) and controller.plan is not None and controller.planned_now:
                if alive.all():  # later plans are for fewer
                    outcome.plan_ms.append(controller.plan.plan_ms)
                if probe_every and decision >= probe_due:
                    _probe(controller, environments, alive, outcome)
                    probe_due = decision + probe_every
            if film:
                outcome.film.append(_scene(controller, observations, outcome.returns[0]))
            observations, rewards, terminations, truncations, infos = environments.step(actions)
            outcome.returns += rewards * alive
            costs = infos.get("cost", np.zeros(count)) * alive
            outcome.costs += costs
            if isinstance(controller, Controller) and controller.budget is not None:
                controller.budget.pay(costs)
            outcome.lengths += alive
            alive &= ~(terminations | truncations)
            decision += 1
            bar.update()
            bar.set_postfix({"return so far": f"{outcome.returns.mean():.1f}"}, refresh=False)
    if isinstance(controller, Controller):
        used = controller.sampler.config
        outcome.fallbacks, outcome.levels, outcome.engine = controller.fallbacks, used.steps, used.engine
    outcome.seconds = time.perf_counter() - began
    return outcome, observations[:1]


def _probe(
    controller: Controller,
    environments: Environments,
    alive: np.ndarray,
    outcome: Outcome,
) -> None:
    """Let the simulator carry out the plans and note how far the latents come out from what was planned."""
    plan = controller.plan
    assert plan is not None
    steps = min(max(AHEAD), plan.actions.shape[2] - 1)
    actions = np.clip(plan.best_actions[:, :steps], -1, 1)
    seen = environments.peek(actions)
    realised = controller.history.ahead(seen, actions).cpu().numpy()
    std = controller.pipeline.latents.std.cpu().numpy()
    error = (((plan.best_latents[:, 1 : steps + 1] - realised) / std) ** 2).mean(-1)
    for k in (k for k in AHEAD if k <= steps):
        outcome.distances.setdefault(k, []).extend(error[alive, k - 1].tolist())


def _scene(controller: Acting, observations: np.ndarray, so_far: float) -> dict[str, Any]:
    scene: dict[str, Any] = {"return": float(so_far), "frame": observations[0].copy()}
    if isinstance(controller, Controller) and controller.plan is not None:
        scene["plan"] = controller.plan.best_latents[0, controller.executed - 1 :]
    return scene


def _single_latency(controller: Controller, observation: Any, repeats: int = 30) -> tuple[list[float], list[float]]:
    """Milliseconds of a plan, and of an action with all it takes, for one environment alone, as in acting on one robot;
    the first two warm up."""
    plans, actions = [], []
    for _ in range(repeats + 2):
        controller.reset([0])  # so that the action needs a plan, however many a plan is carried out for
        began = time.perf_counter()
        controller.act(observation)
        actions.append(1e3 * (time.perf_counter() - began))
        assert controller.plan is not None
        plans.append(controller.plan.plan_ms)
    return plans[2:], actions[2:]
