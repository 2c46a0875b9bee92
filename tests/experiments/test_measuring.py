"""Results that are kept in files, the names of settings and tasks, and episodes in closed loop."""

from pathlib import Path
from typing import Any

import pytest

from experiments.measuring import closed_loop, describe, file_name, load_pipeline, measure_once
from mpdiffuser.controller import Controller
from mpdiffuser.errors import InputError
from mpdiffuser.sampler import DEFAULT_STEPS


def test_a_result_is_measured_once(tmp_path: Path) -> None:
    def measure() -> dict[str, Any]:
        calls.append(1)
        return {"value": 3}

    calls: list[int] = []
    file = tmp_path / "a" / "b.json"
    for _ in range(2):
        assert measure_once(file, {"x": 1}, measure)["value"] == 3
    assert calls == [1]
    with pytest.raises(InputError, match=r"b.json: made with other settings; choose another --folder"):
        measure_once(file, {"x": 2}, measure)


def test_names() -> None:
    assert file_name("p = 0.25, 8 levels") == "p__0.25_8_levels.json"
    assert file_name("fused 0.5 m/s") == "fused_0.5_m_s.json"  # no folder
    assert describe({"task": "cartpole", "quality": "mixed"}) == "cartpole (mixed)"
    stand_in = {"task": "hopper", "file": "h.hdf5", "suite": "d4rl", "stand_in": True}
    assert describe(stand_in) == "hopper (h.hdf5, a stand-in, not d4rl's data)"
    assert describe(stand_in | {"stand_in": False}) == "hopper (h.hdf5)"


def test_a_pipeline_without_an_environment_is_refused(tiny_pipeline, tmp_path: Path) -> None:
    tiny_pipeline.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="environment is missing"):
        load_pipeline(tmp_path)


@pytest.mark.slow
def test_an_episode_for_each_seed(hopper) -> None:
    pipeline = hopper(0)
    found = closed_loop(Controller(pipeline), pipeline, range(3), "test", probe_every=2)
    assert len(found["returns"]) == 3 and min(found["lengths"]) > 0
    assert "1" in found["feasibility"] and found["levels"] == DEFAULT_STEPS
