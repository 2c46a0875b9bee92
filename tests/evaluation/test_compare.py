"""What a comparison keeps, reuses and refuses, without simulators."""

import json
from types import SimpleNamespace
from typing import Any

import pytest

from evaluation.compare import find_expert, policies, prepare, scores, use_saved_settings
from mpdiffuser.config import settings
from mpdiffuser.errors import InputError
from mpdiffuser.methods import METHODS as REGISTRY
from mpdiffuser.pipeline import MPDiffuserPipeline

METHODS = ["random", "cloning", "planner", "mpdiffuser"]
HOPPER = {"kind": "gymnasium", "env_id": "Hopper-v4", "speed_limit": None}
CARTPOLE = {"kind": "dm_control", "task": "cartpole_swingup", "action_repeat": 4, "size": 64, "camera": 1}
CARTPOLE |= {"rendering": "fast"}


@pytest.mark.slow
@pytest.mark.parametrize("stop", METHODS)
def test_an_evaluation_that_was_cut_off_goes_on(stage: SimpleNamespace, stop: str) -> None:
    cfg, stage.stop = stage.configuration(), stop
    with pytest.raises(KeyboardInterrupt):
        stage.compare(cfg)
    assert not (stage.output / "metrics.json").exists()
    stage.stop = None
    metrics = stage.compare(cfg)
    assert stage.asked == METHODS and list(metrics["methods"]) == METHODS
    assert not (stage.output / "metrics.partial.json").exists()
    assert stage.compare(cfg) == json.loads((stage.output / "metrics.json").read_text())
    assert stage.asked == METHODS


def test_another_evaluation_starts_anew(stage: SimpleNamespace) -> None:
    stage.stop = "mpdiffuser"
    with pytest.raises(KeyboardInterrupt):
        stage.compare(stage.configuration())
    stage.stop = None
    stage.compare(stage.configuration("sampler.steps=3"))
    assert stage.asked == [*METHODS[:3], *METHODS]
    words = r"metrics\.json: of another evaluation \(settings\.sampler\.steps: 3 there, null now\)"
    with pytest.raises(InputError, match=words):
        stage.compare(stage.configuration())


def test_another_evaluation_is_refused_by_its_settings_alone(stage: SimpleNamespace) -> None:
    """So it is refused before a training, when there is no pipeline yet."""
    stage.compare(stage.configuration())
    cfg = stage.configuration("evaluation.probe_every=7")
    use_saved_settings(cfg, MPDiffuserPipeline.from_pretrained(stage.folder))
    with pytest.raises(InputError, match=r"of another evaluation \(settings\.probe_every: 10 there, 7 now\)"):
        prepare(cfg, HOPPER, stage.output)


def test_another_pipeline_is_refused(stage: SimpleNamespace) -> None:
    stage.compare(stage.configuration())
    stage.edit_info(stage.folder, data="other")
    with pytest.raises(InputError, match=r"metrics\.json: of another evaluation \(pipeline: \w+ there, \w+ now\)"):
        stage.compare(stage.configuration())
    assert stage.asked == METHODS


def test_what_is_not_given_is_as_saved(stage: SimpleNamespace, make_pipeline: Any) -> None:
    pipeline = make_pipeline(sampler={"solver": "ddpm", "steps": 3, "temperature": 0.25, "chunk": 2})
    saved = json.loads(json.dumps(pipeline.config["sampler_defaults"]))  # lists for tuples
    cfg = stage.configuration()
    use_saved_settings(cfg, pipeline)
    assert settings(cfg.sampler) == saved
    cfg = stage.configuration("sampler.steps=2")
    use_saved_settings(cfg, pipeline)
    assert settings(cfg.sampler) == saved | {"steps": 2}


def test_methods_that_need_the_expert_are_left_out_where_there_is_none(stage: SimpleNamespace, capsys: Any) -> None:
    def prepared(methods: str, environment: dict[str, Any]) -> list[str]:
        cfg = stage.configuration(f"evaluation.methods={methods}")
        use_saved_settings(cfg, MPDiffuserPipeline.from_pretrained(stage.folder))
        prepare(cfg, environment, stage.output)
        return list(cfg.evaluation.methods)

    assert prepared("[random,expert]", HOPPER) == ["random"]
    assert "note: expert left out: there is no expert of this environment" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"evaluation\.methods: .*expert"):
        prepared("[expert]", HOPPER)
    capsys.readouterr()
    assert prepared("[random,expert]", CARTPOLE) == ["random", "expert"] and not capsys.readouterr().out
    assert find_expert(HOPPER) is None and find_expert(CARTPOLE | {"task": "hopper_stand"}) is None
    assert find_expert(CARTPOLE) is not None


def test_a_row_for_each_method_and_limit(stage: SimpleNamespace, make_pipeline: Any) -> None:
    info = {"task": "none", "data": "none", "environment": HOPPER, "cost_limits": [20.0, 40.0]}
    pipeline = make_pipeline(costs=True, info=info)
    cfg = stage.configuration("evaluation.methods=[mpdiffuser,cloning,random,iql]")
    use_saved_settings(cfg, pipeline)
    rows = [(row, name, setup.limit) for row, name, setup in policies(cfg, pipeline, stage.folder)]
    assert [row[:2] for row in rows[:4]] == [(name, name) for name in REGISTRY if name in cfg.evaluation.methods]
    assert {limit for *_, limit in rows[:4]} == {None}
    assert rows[4:] == [
        (f"{name} within {limit:g}", name, limit) for limit in (20.0, 40.0) for name in ("cloning", "mpdiffuser")
    ]


def test_scores_of_dense_rewards(stage: SimpleNamespace) -> None:
    outcome: Any = SimpleNamespace(returns=[130.0], costs=[0.0])
    found = scores({"suite": "d4rl", "task": "maze2d-umaze-dense-v1"}, outcome, None)
    assert found["score"]["mean"] == pytest.approx(100 * (130 - 68.537689) / (193.66285642381482 - 68.537689))
    assert scores({"task": "none"}, outcome, None) == {}
