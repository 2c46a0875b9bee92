"""The runner: which plan is carried out when, limits, odd observations, and the clock. Threads are steered by hand."""

import math
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from mpdiffuser.controller import Controller
from mpdiffuser.errors import InputError
from mpdiffuser.models.denoisers import Planner
from mpdiffuser.pipeline import MPDiffuserPipeline
from mpdiffuser.realtime import Runner
from mpdiffuser.record import PICTURE, PROPRIOCEPTION, Actions, Observation, Record
from mpdiffuser.sampler import SamplerConfig
from vision.encoder import IdentityEncoder, PixelEncoder

D, M, H = 3, 2, 8
RECORD = Record({"observations": Observation(PROPRIOCEPTION, (D,))}, Actions((-2.0, -1.0), (2.0, 1.0)))
CONFIG = SamplerConfig(steps=2, candidates=2, engine="torch")


class ByHand:
    """In place of the thread: a plan is drawn when the test says so."""

    def __init__(self) -> None:
        self.jobs: list[tuple[Callable[[], Any], Future]] = []

    def submit(self, job: Callable[[], Any]) -> Future:
        self.jobs.append((job, Future()))
        return self.jobs[-1][1]

    def finish(self) -> None:
        job, future = self.jobs.pop()
        future.set_result(job())

    def shutdown(self, **options: Any) -> None:
        self.jobs.clear()


@pytest.fixture
def pipeline(make_pipeline) -> MPDiffuserPipeline:
    return make_pipeline(info={"record": RECORD.to_json(), "decision_seconds": 0.02})


def observations(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal([0, 5, -1], [1, 2, 0.1], (count, D)).astype(np.float32)


def by_hand(pipeline: MPDiffuserPipeline, **options: Any) -> tuple[Runner, ByHand]:
    runner, hand = Runner(pipeline, config=CONFIG, **options), ByHand()
    runner.controller.pool.shutdown()
    runner.controller.pool = hand  # type: ignore[assignment]
    runner.controller.period = 60.0  # so that a plan takes one decision, however slow this machine is
    runner.start(observations(1)[0])
    return runner, hand


def test_the_last_plan_is_carried_out_until_the_next_is_there(pipeline: MPDiffuserPipeline) -> None:
    runner, hand = by_hand(pipeline)
    first, seen = runner.controller.plan, observations(9)
    assert first is not None
    actions = [runner.tick(seen[t]) for t in range(3)]
    np.testing.assert_array_equal(actions, first.executed_actions[0, :3])
    assert len(hand.jobs) == 1  # begun at the first tick, and no other beside it
    hand.finish()
    actions.append(runner.tick(seen[3]))
    second = runner.controller.plan
    assert second is not first and second is not None
    begin = pipeline.forward(torch.from_numpy(seen[0]), torch.from_numpy(actions[0] / np.float32([2, 1]))).detach()
    np.testing.assert_allclose(second.executed_latents[0, 0], begin, atol=1e-5)
    np.testing.assert_array_equal(actions[3], second.executed_actions[0, 2])
    assert len(hand.jobs) == 1  # the next plan begins at the tick at which this one arrives
    assert [tick.age for tick in runner.log] == [0, 1, 2, 3]
    assert [tick.plan_ms is not None for tick in runner.log] == [False, False, False, True]
    assert runner.summary()["plans"] == 1


def test_a_plan_that_runs_out_gives_way_to_the_safe_action(pipeline: MPDiffuserPipeline) -> None:
    runner, hand = by_hand(pipeline)
    actions = [runner.tick(each) for each in observations(H + 2)]
    assert [tick.fallback for tick in runner.log] == [False] * H + [True] * 2
    np.testing.assert_array_equal(actions[-2:], np.zeros((2, M)))
    hand.finish()
    runner.tick(observations(1)[0])  # the plan that comes at last is too old as well, but another one is begun
    assert runner.summary()["fallbacks"] == 3
    hand.finish()
    runner.tick(observations(1)[0])
    assert not runner.log[-1].fallback and runner.log[-1].age == 1


def test_limits_and_what_was_executed(pipeline: MPDiffuserPipeline) -> None:
    runner, hand = by_hand(pipeline, rate=[0.5, 0.25], limits=([-0.5, -0.1], [0.2, 0.05]))
    actions = []
    for each in observations(40):
        actions.append(runner.tick(each))
        np.testing.assert_array_equal(runner.controller.history.action[0, 0], actions[-1] / [2, 1])
        if hand.jobs:
            hand.finish()
    found = np.array(actions)
    assert (found >= np.float32([-0.5, -0.1])).all() and (found <= np.float32([0.2, 0.05])).all()
    assert (np.abs(np.diff(found, axis=0)) <= np.array([0.5, 0.25]) * 0.02 + 1e-6).all()
    assert runner.summary()["limited_actions"] == sum(tick.limited for tick in runner.log) > 0
    runner.executed(np.array([0.3, 0.1]))
    np.testing.assert_allclose(runner.controller.history.action[0, 0], [0.15, 0.1])
    last = runner.tick(observations(1)[0])
    np.testing.assert_allclose(last, [0.2, 0.05])  # the limits are kept, also where the last action was beyond them
    last *= 100  # the robot's own array
    assert np.abs(runner.tick(observations(1)[0])).max() < 0.3
    for wrong in (np.zeros(3), np.array([np.nan, 0]), 0.5):
        with pytest.raises(InputError, match=r"executed action: must be finite numbers \(2,\)"):
            runner.executed(wrong)
    held = [part for part in runner.controller._rest_of_plan(runner.controller.latents, 0)][1][:, :3]
    limited = runner.controller._held(held)
    assert (limited.numpy() <= np.float32([0.2, 0.05])).all() and not np.allclose(limited, held)


def test_odd_observations_are_said_and_counted(pipeline: MPDiffuserPipeline) -> None:
    runner, hand = by_hand(pipeline)
    with pytest.warns(UserWarning, match="observations is not finite"):
        runner.tick(np.array([0, np.nan, 0]))
    with pytest.warns(UserWarning, match="observations is far outside of the data"):
        runner.tick(np.array([1e9, 5, -1]))
    assert runner.controller.latents is not None and runner.controller.latents[0, 0] < 20
    runner.tick(observations(1)[0])  # silent, and so is each further one
    runner.tick(np.array([0, np.inf, 0]))
    assert [bool(tick.odd) for tick in runner.log] == [True, True, False, True]
    assert runner.summary()["odd_observations"] == 3
    runner.tick(observations(1)[0].astype(np.float64))  # of the same numbers, nothing is odd
    assert not runner.log[-1].odd
    hand.finish()
    with pytest.raises(InputError, match="the first one must be finite"):
        runner.start(np.full(D, np.nan))
    with pytest.raises(InputError, match="start an episode first"):
        runner.tick(observations(1)[0])
    runner.start(observations(1)[0])
    with pytest.raises(InputError, match=r"found observations float64 \(4,\)"):
        runner.tick(np.zeros(4))


def test_what_is_near_is_that_of_the_newest_vectors(make_pipeline) -> None:
    wide = 3 * D + 2 * M
    pipeline = make_pipeline(latent_dim=wide, encoder=IdentityEncoder(wide, M, 3), info={"record": RECORD.to_json()})
    runner = Runner(pipeline, hz=50)
    low, high = runner.near["observations"]
    ends = [end.numpy()[2 * D : 3 * D] for end in (pipeline.latents.low, pipeline.latents.high)]
    np.testing.assert_allclose(high, 2 * ends[1] - ends[0], rtol=1e-5)
    np.testing.assert_allclose(low, 2 * ends[0] - ends[1], rtol=1e-5)
    runner.close()
    seen = {"frames": Observation(PICTURE, (16, 16, 3)), "joints": Observation(PROPRIOCEPTION, (1,))}
    encoder = PixelEncoder("conv", 8, 2, M, D, 2, proprioception=1).eval()
    pipeline = make_pipeline(encoder=encoder, info={"record": Record(seen, Actions.unit(M)).to_json()})
    with Runner(pipeline, hz=50) as runner:
        assert list(runner.near) == ["joints"]
        assert runner.near["joints"][1] > pipeline.latents.high[-1].item()


def test_late_ticks_are_counted_and_not_caught_up(pipeline: MPDiffuserPipeline, monkeypatch) -> None:
    now = [10.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    runner, _ = by_hand(pipeline)
    seen, begun = observations(1)[0], []
    for busy in (0.005, 0.005, 0.033, 0.095, 0.005, 0.0):  # seconds that the robot takes; a tick is 0.02
        begun.append(now[0] - 10)
        runner.tick(seen)
        now[0] += busy
        runner.wait()
    assert begun == pytest.approx([0, 0.02, 0.04, 0.073, 0.168, 0.18])
    found = runner.summary()
    assert (found["ticks"], found["late"], found["skipped"]) == (6, 2, 4)
    assert found["late_ms_max"] == pytest.approx(88)
    assert [tick.late_ms for tick in runner.log] == pytest.approx([0, 0, 0, 13, 88, 0], abs=1e-6)


def test_a_refused_observation_leaves_the_tick_to_be_done(pipeline: MPDiffuserPipeline, monkeypatch) -> None:
    monkeypatch.setattr(time, "perf_counter", lambda: 10.0)
    runner, _ = by_hand(pipeline)
    with pytest.raises(InputError):
        runner.tick(np.zeros(D + 1, np.float32))
    assert runner._next_time == 10.0 and not runner.log
    runner.tick(observations(1)[0])
    assert runner._next_time == pytest.approx(10.02) and len(runner.log) == 1


def test_a_plan_that_fails_takes_time_too(pipeline: MPDiffuserPipeline, monkeypatch) -> None:
    with Runner(pipeline, config=CONFIG, deadline_ms=1.0) as runner, pytest.warns(UserWarning, match="planning failed"):
        runner.start(observations(1)[0])

        def fails(*arguments: Any, **options: Any) -> None:
            time.sleep(0.002)
            raise RuntimeError("out of memory")

        monkeypatch.setattr(MPDiffuserPipeline, "__call__", fails)
        for each in observations(20):
            runner.tick(each)
            runner.wait()
    found = runner.summary()
    assert found["missed_deadlines"] == found["plans"] > 0 and found["plan_ms_median"] > 1
    assert found["failed_plans"] - found["plans"] in (0, 1)  # the last one may have failed after the last tick


def test_the_time_to_compile_is_no_time_of_a_plan(pipeline: MPDiffuserPipeline, monkeypatch) -> None:
    """The next plans would hold the actions of so long a time: the robot would not feel what happens meanwhile."""
    call, drawn = MPDiffuserPipeline.__call__, []

    def compiles(self: MPDiffuserPipeline, *arguments: Any, **options: Any) -> Any:
        plan = call(self, *arguments, **options)
        plan.plan_ms = 5.0 if drawn else 4000.0
        drawn.append(plan)
        return plan

    monkeypatch.setattr(MPDiffuserPipeline, "__call__", compiles)
    with Runner(pipeline, hz=50, config=CONFIG) as runner:
        runner.start(observations(1)[0])
        assert (runner.controller.delay, len(drawn)) == (1, 2)
        np.testing.assert_array_equal(drawn[0].actions, drawn[1].actions)
        runner.start(observations(1)[0])
        assert len(drawn) == 3


def test_a_real_run(pipeline: MPDiffuserPipeline) -> None:
    """The thread, the clock, and a deadline: as many ticks as asked, plans that follow each other, no failure."""
    seen, executed = iter(observations(100)), []
    with Runner(pipeline, hz=50, config=CONFIG, deadline_ms=1000.0) as runner:
        found = runner.run(lambda: next(seen), executed.append, 30)
    assert found["ticks"] == len(executed) == 30 and found["plans"] >= 1
    assert (found["fallbacks"], found["failed_plans"], found["missed_deadlines"]) == (0, 0, 0)
    assert found["plan_ms_p99"] >= found["plan_ms_median"] > 0
    assert np.isfinite(executed).all()


def test_an_episode_begins_after_the_plan_of_the_last_one(pipeline: MPDiffuserPipeline) -> None:
    """Both would use the same networks at once; the first plan is that of a fresh runner."""
    with Runner(pipeline, config=replace(CONFIG, steps=6)) as runner:
        runner.start(observations(1)[0])
        expected = runner.controller.plan.actions
        for _ in range(20):
            for each in observations(2, seed=1):
                runner.tick(each)
            runner.start(observations(1)[0])
            np.testing.assert_array_equal(runner.controller.plan.actions, expected)


def test_an_error_in_the_thread_is_raised_once(pipeline: MPDiffuserPipeline) -> None:
    shapes = iter([(1, 2, H)] * 2 + [(1,)])  # of the rewards that the objective gives: right, wrong, then right

    def objective(latents: Any, actions: Any) -> Any:
        shape = next(shapes, None)
        return actions[..., 0] if shape != (1,) else actions[:1, 0, 0]

    runner, hand = by_hand(pipeline, objective=objective)
    seen = observations(6)
    for each in seen[:2]:
        runner.tick(each)
    job, future = hand.jobs.pop()
    with pytest.raises(InputError, match="objective") as raised:
        job()
    future.set_exception(raised.value)
    with pytest.raises(InputError, match="objective"):
        runner.tick(seen[2])
    runner.tick(seen[3])  # which begins the next plan
    hand.finish()
    runner.tick(seen[4])
    assert runner.log[-1].plan_ms is not None


def test_a_runner_needs_a_forward_model(make_pipeline) -> None:
    pipeline = make_pipeline(forward=None, info={"record": RECORD.to_json()})
    with pytest.raises(InputError, match="has no forward model, which a runner needs; train it with method=planner"):
        Runner(pipeline, hz=50, config=CONFIG)


def test_a_runner_needs_the_action_of_each_decision(make_pipeline) -> None:
    pipeline = make_pipeline(info={"record": RECORD.to_json(), "stride": 4})
    with pytest.raises(InputError, match="a runner needs the action of each decision; train with stride=1, found 4"):
        Runner(pipeline, hz=50, config=CONFIG)


def test_goals(make_pipeline, randomize) -> None:
    sizes = {"latent_dim": D, "action_dim": M, "horizon": H, "width": 8, "multipliers": (1, 2), "embedding": 16}
    told = make_pipeline(planner=randomize(Planner(**sizes, goal_dim=D), 1), info={"record": RECORD.to_json()})
    for pipeline in (told, make_pipeline(info={"record": RECORD.to_json()})):
        runner, controller = Runner(pipeline, hz=50, config=CONFIG), Controller(pipeline, CONFIG)
        controller.reset([0])
        seen = observations(1)[0]
        controller.act(seen, goal=seen + 1)
        runner.start(seen, goal=seen + 1)
        np.testing.assert_array_equal(runner.controller.plan.actions, controller.plan.actions)
        with pytest.raises(InputError, match="goal: must be finite"):
            runner.start(seen, goal=seen * np.nan)
        runner.close()
    with pytest.raises(InputError, match=r"give start\(observation, goal=...\)"):
        Runner(told, hz=50, config=CONFIG).start(seen)


def test_what_is_refused(make_pipeline, pipeline: MPDiffuserPipeline) -> None:
    for options, message in (
        ({"hz": 25}, "hz: must be 50, the rate of the pipeline's data, found 25"),
        ({"hz": 0}, "hz: must be a finite number above 0, found 0"),
        ({"rate": 0.0}, "rate: must be above 0, found 0.0"),
        ({"limits": ([-3, -1], [2, 1])}, r"limits: must be within the bounds \(-2.0, -1.0\)"),
        ({"limits": ([0], [1])}, r"limits: must be finite numbers \(2, 2\), found"),
        ({"limits": ([np.nan, 0], [1, 1])}, "limits: must be finite numbers"),
        ({"limits": ([0.5, 0], [0, 1])}, "limits: must be within the bounds"),
        ({"rate": [1, 2, 3]}, r"rate: must be finite numbers \(2,\), found \[1, 2, 3\]"),
        ({"hz": "50"}, "hz: must be a finite number above 0, found 50"),
        ({"rate": [[1, 2], [3]]}, r"rate: must be finite numbers \(2,\), found"),
        ({"limits": ()}, r"limits: must be finite numbers \(2, 2\), found"),
    ):
        with pytest.raises(InputError, match=message):
            Runner(pipeline, **options)
    with pytest.raises(InputError, match="hz: is needed"):
        Runner(make_pipeline(info={"record": RECORD.to_json()}))
    with pytest.raises(InputError, match="does not say what its observations are"):
        Runner(make_pipeline(), hz=10)
    closed = Runner(pipeline)
    closed.close()
    with pytest.raises(InputError, match="start an episode first"):
        closed.tick(observations(1)[0])
    with pytest.raises(InputError, match="runner: closed; make a new one"):
        closed.start(observations(1)[0])
    assert Runner(pipeline, np.float32(50), limits=np.array([[-0.5, -0.5], [0.5, 0.5]])).period == 0.02
    assert Runner(pipeline, config=SamplerConfig(deadline_ms=7.0)).deadline_ms == 7.0
    assert math.isnan(Runner(pipeline).summary()["plan_ms_median"])
