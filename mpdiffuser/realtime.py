"""Control of one robot in real time: plans are drawn in a thread while the last plan is carried out."""

import math
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any, Self

import numpy as np
import torch

from mpdiffuser.controller import Controller
from mpdiffuser.errors import InputError
from mpdiffuser.history import Observations
from mpdiffuser.pipeline import MPDiffuserPipeline
from mpdiffuser.plan import Objective, Plan
from mpdiffuser.record import PICTURE, read_observations
from mpdiffuser.sampler import SamplerConfig

LATE = 0.1  # of a period: a tick that begins later is counted as late
FAR = 1.0  # an observation is odd if it is beyond the data's range by this many widths of it
LOGGED = 1_000_000  # ticks: five hours at 50 Hz
REMEMBERED = 20  # plans, whose longest time says how many actions the next plan holds


@dataclass(frozen=True)
class Tick:
    """What happened in one tick.

    Attributes:
        late_ms: how long after its time it began.
        age: decisions since the observation of the followed plan.
        plan_ms: time of the plan that arrived at this tick; None: none arrived.
        fallback: whether the plan had run out, and the safe action was taken.
        odd: why the observation was changed; empty: it was as it came.
        limited: whether the action was changed by the limits.
    """

    late_ms: float
    age: int
    plan_ms: float | None
    fallback: bool
    odd: str
    limited: bool


def summarized(ticks: Iterable[Tick], period: float, deadline_ms: float) -> dict[str, Any]:
    """Return counts of ticks, and times in ms.

    Args:
        ticks: in their order.
        period: seconds between two of them.
        deadline_ms: the time for a plan; 0: no deadline.
    """
    ticks = list(ticks)
    late = np.array([tick.late_ms for tick in ticks])
    plans = np.array([tick.plan_ms for tick in ticks if tick.plan_ms is not None])
    of = lambda values, q: float(np.percentile(values, q)) if len(values) else math.nan  # noqa: E731
    return {
        "ticks": len(ticks),
        "late": int((late > 1e3 * LATE * period).sum()),
        "skipped": int((late // (1e3 * period)).clip(min=0).sum()),
        "fallbacks": sum(tick.fallback for tick in ticks),
        "odd_observations": sum(bool(tick.odd) for tick in ticks),
        "limited_actions": sum(tick.limited for tick in ticks),
        "plans": len(plans),
        "missed_deadlines": int((plans > deadline_ms).sum()) if deadline_ms else 0,
        "late_ms_p99": of(late, 99),
        "late_ms_max": of(late, 100),
        "plan_ms_median": of(plans, 50),
        "plan_ms_p99": of(plans, 99),
        "plan_age_max": max((tick.age for tick in ticks), default=0),
    }


class _InThread(Controller):
    """A controller that draws plans in a thread. `period` is the time between two decisions in seconds."""

    def __init__(self, *arguments: Any, period: float, **options: Any) -> None:
        self.future: Future[Plan] | None = None
        super().__init__(*arguments, **options)
        if self.pipeline.forward is None:
            raise InputError("pipeline: has no forward model, which a runner needs; train it with method=planner")
        self.period, self.exhausted = period, False
        self.most_delay = self.pipeline.planner.config["horizon"] - 1
        self.times: list[float] = []
        threads = torch.get_num_threads()  # torch keeps this number for each thread
        self.pool = ThreadPoolExecutor(1, "planning", lambda: torch.set_num_threads(threads))
        self.limited: Callable[[np.ndarray], np.ndarray] = lambda actions: actions

    def reset(self, seeds: Sequence[int]) -> None:
        """Start a new episode, after the plan that is drawn for the last one."""
        if self.future is not None:
            wait([self.future])
            self.future = None
        super().reset(seeds)

    @torch.inference_mode()
    def begin(self, observation: Observations, goal: Observations | None) -> None:
        """Draw the first plan of an episode at once. The observation will come again."""
        self._see(observation, goal)
        self._follow(self._job(np.arange(1), 0)())
        self.history.reset()

    def _held(self, actions: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(self.limited(actions[0].cpu().numpy())[None]).to(actions.device)

    def _begun(self, job: Callable[[], Plan]) -> Callable[[], Plan]:
        self.future = self.pool.submit(job)
        return self.future.result

    def _arrived(self) -> bool:
        assert self.future is not None
        return self.future.done()

    def _follow(self, plan: Plan, executed: int = 0, lag: int = 0) -> None:
        super()._follow(plan, executed, lag)
        self.times = [*self.times, plan.plan_ms][-REMEMBERED:]
        self.delay = min(max(math.ceil(max(self.times) / 1e3 / self.period), 1), self.most_delay)

    def _planned(self, step: int) -> torch.Tensor:
        assert self.plan is not None
        self.exhausted = step >= self.plan.actions.shape[2]
        return self.safe[None] if self.exhausted else super()._planned(step)


class Runner:
    """Controls one robot at a fixed rate. `tick` returns at once: it never waits for a plan.

    Plans are drawn in a thread. While one is drawn, the last one is carried out. The new one begins in the state that
    is predicted for the time at which it will be there (see `Controller`). Where the last plan has run out,
    the safe action is taken. The first plan is drawn by `start`, before the robot moves.

    An observation that is not finite is replaced by the last one. One that is far outside of the data is set to the
    edge of what is near. Both are counted, and a warning says it once.

        with Runner(pipeline, hz=50) as runner:
            runner.start(robot.observe())
            while running:
                robot.execute(runner.tick(robot.observe()))
                runner.wait()
        print(runner.summary())

    Args:
        pipeline: the loaded pipeline.
        hz: decisions a second; None: those of the data.
        config: the sampler settings; None: the pipeline's. `delay` is measured.
        deadline_ms: the time for a plan. Levels are chosen that meet it, and plans that miss it are counted; 0: no
            deadline; None: that of the settings.
        rate: largest change of each action in a second, (m,) or a number, in the data's units; None: no limit. It does
            not limit the first action of an episode.
        limits: the lowest and the highest action, each (m,), within the pipeline's bounds; None: these bounds.
        objective: ranks plans instead of the ranker.
        seed: of the noise.

    Attributes:
        log: the last million ticks.

    Raises:
        InputError: for another rate than that of the data, limits that are not allowed, a pipeline without a forward
            model or with a stride, and as `Controller`.
    """

    def __init__(
        self,
        pipeline: MPDiffuserPipeline,
        hz: float | None = None,
        config: SamplerConfig | None = None,
        deadline_ms: float | None = None,
        rate: float | Sequence[float] | None = None,
        limits: tuple[Sequence[float], Sequence[float]] | None = None,
        objective: Objective | None = None,
        seed: int = 0,
    ) -> None:
        if pipeline.record is None:
            raise InputError("pipeline: does not say what its observations are; train it again")
        config = config or pipeline.sampler_defaults
        self.period, self.seed = _period(pipeline, hz), seed
        self.deadline_ms = config.deadline_ms if deadline_ms is None else deadline_ms
        bounds = pipeline.action_bounds
        m = len(bounds.low)
        ends = _numbers((bounds.low, bounds.high) if limits is None else limits, (2, m), "limits")
        if (ends[0] > ends[1]).any() or bounds.beyond(ends).any():
            raise InputError(f"limits: must be within the bounds {bounds.low} and {bounds.high}, found {limits}")
        self.low, self.high = ends
        self.step: np.ndarray | None = None  # largest change of an action in a tick
        if rate is not None:
            each = [rate] * m if isinstance(rate, Real) else rate
            self.step = _numbers(each, (m,), "rate") * np.float32(self.period)
            if not (self.step > 0).all():
                raise InputError(f"rate: must be above 0, found {rate}")
        if pipeline.stride > 1:
            raise InputError(
                f"pipeline: a runner needs the action of each decision; train with stride=1, found {pipeline.stride}"
            )
        config = replace(config, delay=0, deadline_ms=self.deadline_ms)
        self.controller = _InThread(pipeline, config, objective=objective, period=self.period)
        self.controller.limited = self._limited
        self.near = _near(pipeline)
        self._next_time: float | None = None
        self.log: deque[Tick] = deque(maxlen=LOGGED)
        self._last: dict[str, np.ndarray] | None = None
        self._action: np.ndarray | None = None
        self._said: set[str] = set()
        self._warm, self._closed = False, False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the planning thread, after the plan that it draws. The runner cannot be used any more."""
        self._next_time, self._closed = None, True
        self.controller.pool.shutdown(cancel_futures=True)

    def start(self, observation: Observations, goal: Observations | None = None) -> None:
        """Begin an episode: draw the first plan, and let the time run from then on.

        Args:
            observation: as in the training data, without a batch axis or (1, ...).
            goal: what the robot is to see, like the observation; None: there is none.

        Raises:
            InputError: for an observation or a goal that is not finite, after `close`, or as `Controller.act`.
        """
        if self._closed:
            raise InputError("runner: closed; make a new one")
        self._next_time = None
        self.controller.reset([self.seed])
        self.log.clear()
        self._last, self._action = None, None
        seen, _ = self._checked(observation)
        if goal is not None:
            wanted, _ = read_observations(goal, 1, self.controller.pipeline.record)
            assert isinstance(wanted, dict)
            if not all(np.isfinite(part).all() for part in wanted.values()):
                raise InputError("goal: must be finite")
        elif self.controller.pipeline.takes_goals:
            raise InputError("goal: the planner was trained with goals; give start(observation, goal=...)")
        self.controller.begin(seen, goal)
        if not self._warm:  # this plan compiled the networks, so its time does not tell how long the next ones take
            self._warm = True
            self.controller.reset([self.seed])
            self.controller.times.clear()
            self.controller.begin(seen, goal)
        self._next_time = time.perf_counter()

    def tick(self, observation: Observations) -> np.ndarray:
        """Observation as in the training data -> the action (m,) to execute now, in the data's units.

        Raises:
            InputError: for an observation of another shape or type. The tick is then still to be done.
        """
        if self._next_time is None:
            raise InputError("runner: start an episode first: start(observation)")
        late = time.perf_counter() - self._next_time
        skipped = math.floor(max(late, 0) / self.period)  # they are not caught up
        seen, odd = self._checked(observation)
        self._next_time += (1 + skipped) * self.period
        wanted = self.controller.act(seen)[0]
        action = self._limited(wanted[None])[0]
        self.executed(action)
        controller = self.controller
        plan_ms = controller.plan.plan_ms if controller.planned_now and controller.plan else None
        limited = bool((action != wanted).any())
        age = controller.lag + controller.executed - 1
        self.log.append(Tick(1e3 * late, age, plan_ms, controller.exhausted, odd, limited))
        return action

    def executed(self, action: np.ndarray) -> None:
        """Note the action (m,) that was really executed, if it is another than that of the last tick.

        Raises:
            InputError: for another shape, or numbers that are not finite.
        """
        self._action = _numbers(action, self.low.shape, "executed action")
        self.controller.history.record_actions(self._action[None])

    def _limited(self, actions: np.ndarray) -> np.ndarray:
        """Return the actions (K, m), one after the other, within the limits."""
        found, last = [], self._action
        for action in actions:
            if self.step is not None and last is not None:
                action = action.clip(last - self.step, last + self.step)
            last = action.clip(self.low, self.high)
            found.append(last)
        return np.array(found, np.float32).reshape(actions.shape)

    def wait(self) -> None:
        """Sleep until the next tick."""
        left = (self._next_time or 0.0) - time.perf_counter()
        if left > 0:
            time.sleep(left)

    def run(
        self,
        observe: Callable[[], Observations],
        execute: Callable[[np.ndarray], None],
        ticks: int,
        goal: Observations | None = None,
    ) -> dict[str, Any]:
        """Control for a number of ticks, and return the summary. `goal`: see `start`."""
        self.start(observe(), goal)
        for _ in range(ticks):
            execute(self.tick(observe()))
            self.wait()
        return self.summary()

    def summary(self) -> dict[str, Any]:
        """Return what happened since `start`: counts of ticks, and times in ms."""
        return summarized(self.log, self.period, self.deadline_ms) | {"failed_plans": self.controller.fallbacks}

    def _checked(self, observation: Observations) -> tuple[dict[str, np.ndarray], str]:
        """Return the observation (1, ...) by names, as the controller gets it, and what was odd about it."""
        given, _ = read_observations(observation, 1, self.controller.pipeline.record)
        assert isinstance(given, dict)
        seen, odd = dict(given), ""
        for name, part in seen.items():
            if part.dtype.kind == "f" and not np.isfinite(part).all():
                if self._last is None:
                    raise InputError("observation: the first one must be finite")
                seen[name], odd = self._last[name], f"{name} is not finite"
            elif name in self.near:
                low, high = self.near[name]
                far = (part < low) | (part > high)
                seen[name] = part.clip(low, high).astype(np.float32)
                odd = odd or (f"{name} is far outside of the data" if far.any() else "")
        if odd and odd not in self._said:
            self._said.add(odd)
            warnings.warn(f"observation: {odd}; see Runner.summary for the count", stacklevel=3)
        self._last = seen
        return seen, odd


def _numbers(values: Any, shape: tuple[int, ...], name: str) -> np.ndarray:
    """Return values as float32 of a shape; raise InputError, with the name, if they are no such finite numbers."""
    try:
        found = np.array(values, np.float32)
    except (TypeError, ValueError):
        found = np.zeros(0, np.float32)
    if found.shape != shape or not np.isfinite(found).all():
        raise InputError(f"{name}: must be finite numbers {shape}, found {values}")
    return found


def _period(pipeline: MPDiffuserPipeline, hz: float | None) -> float:
    """Return the seconds between two decisions.

    Raises:
        InputError: if neither the data nor the user say it, or if they differ.
    """
    seconds = pipeline.config["info"].get("decision_seconds")
    if hz is not None:
        if isinstance(hz, bool) or not isinstance(hz, Real) or not 0 < hz < math.inf:
            raise InputError(f"hz: must be a finite number above 0, found {hz}")
        hz = float(hz)
    if seconds is None and hz is None:
        raise InputError("hz: is needed, since the pipeline's data do not say how long a decision is")
    if seconds is not None and hz is not None and abs(hz * seconds - 1) > 0.01:
        raise InputError(f"hz: must be {1 / seconds:g}, the rate of the pipeline's data, found {hz:g}")
    return 1 / hz if hz is not None else float(seconds)


def _near(pipeline: MPDiffuserPipeline) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return name -> lowest and highest value, each (o,), of observations that are not far outside of the data.

    The range of the data is that of the latents, whose entries are the vectors; pictures have none.
    """
    assert pipeline.record is not None
    low, high = (end.detach().cpu().numpy() for end in (pipeline.latents.low, pipeline.latents.high))
    vectors = {name: each.shape[0] for name, each in pipeline.record.observations.items() if each.kind != PICTURE}
    total = sum(vectors.values())
    # from states the latent is the states of the history, the newest last, then actions; from pixels they are its end
    first = len(low) - total if pipeline.encoder.sees_pixels else (pipeline.encoder.history - 1) * total
    found = {}
    for name, size in vectors.items():
        part = slice(first, first + size)
        margin = FAR * np.maximum(high[part] - low[part], 1e-6)
        found[name], first = (low[part] - margin, high[part] + margin), first + size
    return found
