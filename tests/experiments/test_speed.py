"""Return against time on a tiny pipeline that falls over at once, and measurements that are kept."""

from pathlib import Path
from typing import Any

import pytest
from mpdiffuser.rivals import RIVALS, rival_config

from experiments import speed
from experiments.measuring import kept
from mpdiffuser.config import load
from mpdiffuser.config import settings as settings_of
from mpdiffuser.errors import InputError
from mpdiffuser.training import sampler_config


def test_every_setting_can_be() -> None:
    """And draws with the levels that its name says."""
    for settings in speed.FAMILIES.values():
        for name, (method, options) in settings.items():
            cfg = load("evaluate", ["pipeline=x", f"evaluation.methods=[{method}]", *options])
            assert list(cfg.evaluation.methods) == [method]
            section = cfg.rivals[method] if method in RIVALS else cfg.sampler
            drawing = rival_config(method, settings_of(section)) if method in RIVALS else sampler_config(section)
            if "levels" in name:
                assert drawing.steps == int(name.split()[0])
            if "candidates" in name:
                assert f"{drawing.candidates} candidates" in name


def test_the_command(hopper, tmp_path: Path) -> None:
    hopper(0).save_pretrained(tmp_path / "pipeline")
    arguments = ["--pipeline", str(tmp_path / "pipeline"), "--episodes", "2"]
    arguments += ["--folder", str(tmp_path / "results"), "--docs", str(tmp_path), "--families", "planner only"]
    speed.main(arguments)
    files = sorted((tmp_path / "results").glob("*.json"))
    assert len(files) == len(speed.PLANNER)
    text = (tmp_path / "speed.md").read_text()
    assert all(f"| planner only | {name} | " in text for name in speed.PLANNER)
    assert (tmp_path / "speed.png").stat().st_size > 10_000
    stamps = [file.stat().st_mtime_ns for file in files]
    speed.main(arguments)  # all is reused
    assert stamps == [file.stat().st_mtime_ns for file in files]
    with pytest.raises(InputError, match="distilled needs student"):
        speed.main([*arguments[:-1], "MPDiffuser, distilled"])


def test_what_was_measured_is_kept(tmp_path: Path) -> None:
    def measure() -> dict[str, Any]:
        calls.append(1)
        return {"value": 3}

    calls: list[int] = []
    file = tmp_path / "a" / "b.json"
    for _ in range(2):
        assert kept(file, {"x": 1}, measure, "--folder")["value"] == 3
    assert calls == [1]
    with pytest.raises(InputError, match=r"b.json: made with other settings; choose another --folder"):
        kept(file, {"x": 2}, measure, "--folder")
