"""Evaluation in real time: the runner's counts, over all episodes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evaluation.check import check_real_time
from evaluation.metrics_schema import _check, explanations
from evaluation.real_time import RealTime, in_real_time
from mpdiffuser.config import load
from mpdiffuser.errors import InputError
from mpdiffuser.methods import METHODS, Setup
from mpdiffuser.realtime import Tick, summarized
from mpdiffuser.record import TRUE_STATE, Actions, Observation, Record
from mpdiffuser.sampler import SamplerConfig
from vision.encoder import IdentityEncoder

HOPPER = {"kind": "gymnasium", "env_id": "Hopper-v4", "speed_limit": None}
pytestmark = pytest.mark.filterwarnings("ignore:observation")  # the pipeline has never seen a hopper
CONFIG = SamplerConfig(engine="torch", steps=1, candidates=2, composition="planner")


@pytest.fixture
def setup(make_pipeline: Any) -> Setup:
    record = Record({"observations": Observation(TRUE_STATE, (11,))}, Actions.unit(3))
    info = {"record": record.to_json(), "decision_seconds": 0.008}
    pipeline = make_pipeline(latent_dim=11, action_dim=3, encoder=IdentityEncoder(11, 3), info=info)
    return Setup(pipeline, Path(), CONFIG, {})


def test_episodes_one_after_the_other(setup: Setup) -> None:
    outcome = in_real_time(METHODS["planner"], setup, HOPPER, "states", [5, 6, 7], "planner", 12)  # type: ignore[arg-type]
    assert len(outcome.returns) == 3 and outcome.lengths.tolist() == [12, 12, 12]
    metrics = outcome.metrics()
    ticks = metrics["real_time"]
    assert ticks["ticks"] == 36 and 0 < ticks["plans"] <= 36
    words = " ".join(explanations({"methods": {"planner": metrics}}))
    assert "planner in real time:" in words and "of 36 ticks began" in words
    assert read_real_time({"planner": metrics}) is None


def read_real_time(methods: dict[str, Any]) -> None:
    """Metrics with these methods are valid JSON and allowed."""
    _check(json.loads(json.dumps({"methods": methods}, allow_nan=False)))


@pytest.mark.parametrize("wrong", [{"late": 1}, None, {"ticks": "many", "late": 0, "fallbacks": 0, "plan_age_max": 1}])
def test_metrics_that_are_wrong(wrong: Any) -> None:
    with pytest.raises(InputError, match="real_time"):
        read_real_time({"planner": {"returns": [1.0], "mean": 1.0, "real_time": wrong}})


def test_without_a_finished_plan_there_are_no_times_of_plans(setup: Setup) -> None:
    ticks = summarized([Tick(0.0, 1, None, False, "", False)], 0.1, 0.0)
    assert np.isnan(ticks["plan_ms_median"])
    policy = RealTime(setup.pipeline, CONFIG)
    policy.ticks = [Tick(0.0, 1, None, False, "", False)]
    facts = policy.planning_facts()["real_time"]
    policy.close()
    assert "plan_ms_median" not in facts and facts["ticks"] == 1
    words = " ".join(explanations({"methods": {"planner": {"real_time": facts}}}))
    assert "no new plan was finished" in words


def test_what_it_refuses(setup: Setup) -> None:
    cfg = load("state", ["evaluation.real_time=true"])
    check_real_time(cfg, {"decision_seconds": 0.1})
    with pytest.raises(InputError, match=r"evaluation\.real_time: not with limits on costs"):
        check_real_time(cfg, {"decision_seconds": 0.1, "cost_limits": [20.0]})
    strided = load("state", ["evaluation.real_time=true", "stride=3", "sampler.chunk=1"])
    with pytest.raises(InputError, match=r"evaluation\.real_time: not with plans of stride=3"):
        check_real_time(strided, {"decision_seconds": 0.1})
    saved = load("evaluate", ["evaluation.real_time=true", "pipeline=x"])
    with pytest.raises(InputError, match=r"evaluation\.real_time: not with plans of stride=4"):
        check_real_time(saved, {"decision_seconds": 0.1, "stride": 4})
    with pytest.raises(InputError, match=r"evaluation\.real_time: decision_seconds is missing"):
        check_real_time(cfg, {})
    policy = RealTime(setup.pipeline, CONFIG)
    with pytest.raises(InputError, match="real time: is for one robot, found 2"):
        policy.reset([0, 1])
    policy.reset([0])
    first = policy.act(np.zeros((1, 11), np.float32))
    assert first.shape == (1, 3) and policy.planning_facts()["real_time"]["ticks"] == 1
    policy.close()
