"""The ablation on a tiny pipeline that falls over at once: the command, its results and its page."""

import json
from pathlib import Path

import numpy as np
import pytest

from experiments import ablation
from experiments.measuring import file_name
from mpdiffuser.errors import InputError
from mpdiffuser.sampler import SamplerConfig


def test_every_setting_is_valid_and_has_the_levels_of_its_name() -> None:
    for name, setting in ablation.SETTINGS.items():
        config = SamplerConfig(**ablation.BASE | setting)
        assert (
            name.startswith(("p =", "joint", "guidance", "target", "temp", "2 of", "4 cand", "16 cand"))
            or str(config.steps) == name.rpartition(" ")[2]
        )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_command(hopper, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(ablation.BASE, "engine", "torch")
    for seed, name in ((0, "a"), (1, "b")):
        hopper(seed).save_pretrained(tmp_path / name)
    names = ["fused, 3", "planner, 3", "release, 3"]
    arguments = [f"hopper={tmp_path / 'a'}", f"hopper@1={tmp_path / 'b'}", "--episodes", "2", "--settings", *names]
    arguments += ["--folder", str(tmp_path / "results"), "--docs", str(tmp_path)]
    ablation.main(arguments)
    files = sorted((tmp_path / "results").rglob("*.json"))
    assert len(files) == 6
    text = (tmp_path / "ablation.md").read_text()
    found = {file.name: json.loads(file.read_text()) for file in files if file.parent.name == "hopper"}
    for name in names:
        m = found[file_name(name)]
        assert f"| {name} | {np.mean(m['returns']):.0f} ± " in text
    assert "2 training seeds" in text and "f.hdf5, a stand-in, not d4rl's data" in text
    assert (tmp_path / "ablation.png").stat().st_size > 10_000
    stamps = [file.stat().st_mtime_ns for file in files]
    ablation.main(arguments)  # reuses all results
    assert stamps == [file.stat().st_mtime_ns for file in files]
    with pytest.raises(InputError, match="made with other settings"):
        ablation.main([f"hopper={tmp_path / 'b'}", *arguments[2:]])
