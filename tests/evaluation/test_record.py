"""A recorded evaluation is repeated, and nothing else is taken for it."""

import json
from types import SimpleNamespace
from typing import Any

import pytest

from evaluation.record import PartialResults, changed_results, evaluation_settings, folder_fingerprint, load_record
from mpdiffuser.config import settings
from mpdiffuser.errors import InputError
from mpdiffuser.machine import available_cores

pytestmark = pytest.mark.slow  # evaluates in simulators

METHODS = ["random", "cloning", "planner", "mpdiffuser"]


def test_a_recorded_evaluation_is_repeated(stage: SimpleNamespace) -> None:
    first = stage.compare(stage.configuration("sampler.steps=3", "threads=2"))
    file = stage.output / "metrics.json"
    cfg = stage.configuration("evaluation.methods=[random]")
    assert load_record(file, cfg, stage.folder) == first
    assert cfg.sampler.steps == 3 and cfg.evaluation.methods == METHODS
    assert cfg.threads == first["machine"]["threads"]
    assert not changed_results(first, stage.compare(cfg, stage.output / "again"))
    stage.value = 1.5
    second = stage.compare(cfg, stage.output / "other")
    assert changed_results(first, second)[0] == "random.returns: [1.0, 2.0] there, [1.5, 2.0] now"
    stage.edit_info(stage.folder, data="other")
    with pytest.raises(InputError, match=r"metrics\.json: of the pipeline \w+, found \w+ in"):
        load_record(file, cfg, stage.folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"settings": {}}, r"metrics\.json: settings is missing"),
        ({"machine": None}, r"metrics\.json: machine is missing"),
        ({"settings.sampler.deadline_ms": 5.0}, r"sampler\.deadline_ms is 5\.0: .* not repeatable"),
        ({"settings.sampler.magic": 5.0}, r"metrics\.json: settings that this version does not know"),
        ({"settings.magic": 5.0}, r"metrics\.json: settings that this version does not know"),
    ],
)
def test_what_cannot_be_repeated(stage: SimpleNamespace, change: dict[str, Any], words: str) -> None:
    metrics = stage.compare(stage.configuration())
    for path, value in change.items():
        *parents, last = path.split(".")
        section = metrics
        for name in parents:
            section = section[name]
        section[last] = value
    file = stage.output / "metrics.json"
    file.write_text(json.dumps(metrics))
    with pytest.raises(InputError, match=words):
        load_record(file, stage.configuration(), stage.folder)


def test_partial_results_belong_to_one_evaluation(tmp_path: Any) -> None:
    file = tmp_path / "metrics.partial.json"
    first = PartialResults(file, {"settings": {"steps": 3}, "pipeline": "abc"})
    first.add("random", {"mean": 1.0})
    assert PartialResults(file, {"settings": {"steps": 3}, "pipeline": "abc"}).methods == {"random": {"mean": 1.0}}
    assert PartialResults(file, {"settings": {"steps": 4}, "pipeline": "abc"}).methods == {}
    assert PartialResults(file, {"settings": {"steps": 3}, "pipeline": "def"}).methods == {}


def test_a_fingerprint_is_of_the_content(stage: SimpleNamespace, tmp_path: Any) -> None:
    before = folder_fingerprint(stage.folder)
    moved = stage.folder.rename(tmp_path / "moved")
    assert folder_fingerprint(moved) == before
    stage.edit_info(moved, data="other")
    assert folder_fingerprint(moved) != before


def test_settings_say_what_a_repetition_must_know(stage: SimpleNamespace) -> None:
    """Those of the methods that take part, and what this machine makes of open ones. The configuration stays open."""
    cfg = stage.configuration("evaluation.methods=[random,d_mpc]", "sampler.engine=auto")
    before = settings(cfg)
    found = evaluation_settings(cfg)
    assert settings(cfg) == before
    assert set(found["baselines"]) == {"d_mpc"} and found["episodes"] == 2
    assert found["sampler"] == before["sampler"] | {"engine": "torch"}
    assert found["baselines"]["d_mpc"] == before["baselines"]["d_mpc"] | {"engine": "torch"}
    cfg = stage.configuration("evaluation.episodes=3", "evaluation.parallel_controllers=8", "sampler.engine=auto")
    assert evaluation_settings(cfg)["parallel_controllers"] == 3  # each has an episode
    cfg = stage.configuration("evaluation.episodes=100", "sampler.engine=auto")
    assert evaluation_settings(cfg)["parallel_controllers"] == min(available_cores(), 100)
