"""The page on settings: the share of two groups against closed forms, and the command on a tiny run."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from experiments import acting
from experiments.measuring import file_name
from mpdiffuser.config import load
from mpdiffuser.errors import InputError
from mpdiffuser.launch import Clock, start
from mpdiffuser.sampler import SamplerConfig
from train_state import dataset, train


def test_every_setting_is_valid_and_has_the_values_of_its_name() -> None:
    for name, setting in acting.SETTINGS.items():
        config = acting.configuration(name)
        assert config != acting.configuration(acting.DEFAULT) or name == acting.DEFAULT
        words = name.replace(",", "").split()
        if words[0] == "levels":
            assert config.levels == int(words[1])
        for key in ("solver", "temperature", "composition"):
            assert key not in setting or str(setting[key]) in words
    assert len(acting.SETTINGS) == sum(map(len, acting.GROUPS.values()))
    assert acting.configuration(acting.DEFAULT) == SamplerConfig(composition="planner", steps=3, engine="openvino")


def test_two_groups_explain_known_shares() -> None:
    random = np.random.default_rng(0)
    assert acting.two_means(random.normal(size=(4, 20_000))).mean() == pytest.approx(2 / np.pi, abs=0.01)
    assert acting.two_means(random.uniform(size=(4, 20_000))).mean() == pytest.approx(0.75, abs=0.01)
    points = random.choice([-1.0, 2.0], (4, 100), p=[0.2, 0.8]) + 1e-6 * random.normal(size=(4, 100))
    assert acting.two_means(points) == pytest.approx(1)
    values = random.normal(size=8)
    splits = [values[np.argsort(values)][:k] for k in range(1, 8)]
    rest = [values[np.argsort(values)][k:] for k in range(1, 8)]
    within = min(len(a) * a.var() + len(b) * b.var() for a, b in zip(splits, rest))
    assert acting.two_means(values[None])[0] == pytest.approx(1 - within / (8 * values.var()))


def test_the_measured_part_of_the_page_is_replaced_and_the_words_stay() -> None:
    first = acting.page("Words.\n\n", "old")
    assert acting.page(first, "new") == "Words.\n\n" + acting.MARK + "new"


@pytest.mark.parametrize("text", ["results/hopper", "results/hopper,"])
def test_a_run_without_data_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="must be RUN,DATA"):
        acting.Run.parse(text)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_command(hopper_data: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(acting.BASE, "engine", "torch")
    monkeypatch.setattr("mpdiffuser.tuning.ROWS", 20)
    for name, value in (("OBSERVATIONS", 6), ("DRAWS", 4)):
        monkeypatch.setattr(acting, name, value)
    small = [f"{model}.{size}" for model in ("planner", "dynamics") for size in ("width=8", "multipliers=[1,2]")]
    options = ["task=d4rl/hopper-medium-v2", f"output_dir={tmp_path / 'run'}", f"data_dir={hopper_data}", "trackers=[]"]
    cfg = load("state", [*options, "debug=true", *small])
    train(cfg, dataset(cfg), start(cfg), Clock())
    names = ["levels 3", "guidance 0", "fused"]
    arguments = [f"hopper={tmp_path / 'run'},{hopper_data}", "--episodes", "2", "--settings", *names]
    arguments += ["--folder", str(tmp_path / "results"), "--docs", str(tmp_path)]
    (tmp_path / "acting.md").write_text("Words.\n\n")
    acting.main(arguments)
    files = sorted((tmp_path / "results" / "hopper").iterdir())
    assert len(files) == 4
    text = (tmp_path / "acting.md").read_text()
    assert text.startswith("Words.\n\n" + acting.MARK)
    for name in names:
        m = json.loads((tmp_path / "results" / "hopper" / file_name(name)).read_text())
        assert f"| {name} | {m['error']:.4f} |" in text and f"| {np.mean(m['returns']):.0f} ± " in text
        assert (m["gap"][0] == 0) == (name == "levels 3")
    form = json.loads((tmp_path / "results" / "hopper" / "levels.json").read_text())
    assert len(form["sigma"]) == len(form["spread"]) == len(form["error"]) == 8 and form["sigma"][0] > form["sigma"][-1]
    for draw, mean, spread in zip(form["error"], form["error_of_mean"], form["spread"]):
        assert draw == pytest.approx(mean + spread**2, rel=1e-4)  # bias and variance
    assert "hopper-medium.hdf5, a stand-in, not d4rl's data" in text
    assert (tmp_path / "acting.png").stat().st_size > 10_000
    stamps = [file.stat().st_mtime_ns for file in files]
    acting.main(arguments)  # reuses all results
    assert stamps == [file.stat().st_mtime_ns for file in files]
    with h5py.File(hopper_data / "hopper-medium.hdf5", "r+") as file:
        file["rewards"][0] += 1.0
    acting.load_pipeline.cache_clear()
    with pytest.raises(InputError, match="not the data of"):
        _ = acting.Run.parse(f"{tmp_path / 'run'},{hopper_data}").windows
