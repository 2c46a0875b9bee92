"""Return against time on a tiny pipeline."""

from pathlib import Path

import pytest

from evaluation.compare import use_saved_settings
from experiments import speed
from experiments.measuring import load_pipeline
from mpdiffuser.config import load, settings
from mpdiffuser.errors import InputError
from mpdiffuser.methods import METHODS
from mpdiffuser.sampler import SamplerConfig


@pytest.mark.slow
def test_every_setting_is_valid_and_draws_as_its_name_says(hopper) -> None:
    pipeline = hopper(0)
    for family in speed.FAMILIES.values():
        for name, (method, options) in family.items():
            cfg = load("evaluate", ["pipeline=x", f"evaluation.methods=[{method}]", *options])
            use_saved_settings(cfg, pipeline)
            drawing = METHODS[method].sampler_config(settings(cfg.baselines).get(method, {}))
            drawing = drawing or SamplerConfig(**settings(cfg.sampler))
            if "level" in name:
                assert drawing.steps == int(name.split()[0])
            if "candidate" in name:
                assert speed.count(drawing.candidates, "candidate") in name


def test_a_setting_keeps_the_pipelines_other_settings(halfcheetah, tmp_path: Path, monkeypatch) -> None:
    halfcheetah.save_pretrained(tmp_path / "pipeline")
    seen = []
    monkeypatch.setattr(speed, "require_models", lambda method, folder: None)
    monkeypatch.setattr(speed, "closed_loop", lambda policy, *rest: seen.append(policy.sampler.config))
    speed.measure(tmp_path / "pipeline", ("planner", ("sampler.candidates=3",)), 2, tmp_path)
    assert (seen[0].solver, seen[0].steps, seen[0].target) == ("ddpm", 2, 0.7)
    assert (seen[0].candidates, seen[0].composition) == (3, "planner")


@pytest.mark.slow
def test_the_command(hopper, tmp_path: Path, monkeypatch) -> None:
    two = speed.plans("planner", ((1, 2), (2, 1)))
    monkeypatch.setitem(speed.FAMILIES, "planner only", two)
    hopper(0).save_pretrained(tmp_path / "pipeline")
    arguments = ["--pipeline", str(tmp_path / "pipeline"), "--episodes", "2"]
    arguments += ["--folder", str(tmp_path / "results"), "--docs", str(tmp_path), "--families", "planner only"]
    speed.main(arguments)
    files = sorted((tmp_path / "results").glob("*.json"))
    assert len(files) == 2
    text = (tmp_path / "speed.md").read_text()
    assert all(f"| planner only | {name} | " in text for name in ("1 level, 2 candidates", "2 levels, 1 candidate"))
    assert (tmp_path / "speed.png").stat().st_size > 10_000
    stamps = [file.stat().st_mtime_ns for file in files]
    speed.main(arguments)  # reuses all results
    assert stamps == [file.stat().st_mtime_ns for file in files]
    load_pipeline.cache_clear()
    with pytest.raises(InputError, match="distilled needs"):
        speed.main([*arguments[:-1], "MPDiffuser, distilled"])
