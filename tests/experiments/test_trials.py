"""The baselines' trials: which setting is chosen, the page, and a tiny run."""

from pathlib import Path
from typing import Any

import h5py
import pytest

from experiments import offline_table, trials
from experiments.measuring import file_name
from experiments.offline_table import data_checksum
from experiments.pages import DOCS
from experiments.trials import FILES, SETTINGS, chosen, page
from mpdiffuser.config import load
from mpdiffuser.errors import InputError
from mpdiffuser.files import read_json

TASK = "hopper-medium-v2"


def a_result(mean: float) -> dict[str, Any]:
    score = {"mean": mean, "standard_error": 1.0, "iqm_interval": [mean - 2, mean + 2]}
    return {"machine": {"cpu": "CPU"}, "stand_in": True, "score": score}


def test_the_setting_with_the_highest_mean_over_the_files_is_chosen() -> None:
    found = {"first": [a_result(50), a_result(10)], "alpha=5": [a_result(40), a_result(30)]}
    assert chosen(found) == "alpha=5"
    text = page({"td3_bc": found}, ["hopper", "halfcheetah"], 6.0)
    assert "| method | setting | hopper | halfcheetah | mean |" in text and "6 core-minutes of training" in text
    assert "| td3_bc | first | 50.0 ± 1.0 [48.0, 52.0] | 10.0 ± 1.0 [8.0, 12.0] | 30.0 |" in text
    assert "| td3_bc | alpha=5 | 40.0 ± 1.0 [38.0, 42.0] | 30.0 ± 1.0 [28.0, 32.0] | **35.0** |" in text


@pytest.mark.parametrize("method", SETTINGS)
def test_the_settings_are_options(method: str) -> None:
    settings = SETTINGS[method]
    assert len({setting.name for setting in settings}) == (7 if "diffus" in method else 4)
    for setting in SETTINGS[method]:
        load("state", [f"task=d4rl/{TASK}", f"method={method}", *setting.training, *setting.acting])
        training = [option for option in setting.acting if option.startswith("train.")]
        assert not training, "a model depends on these: they belong in `training`"


@pytest.mark.parametrize("method", SETTINGS)
def test_the_chosen_setting_is_the_default(method: str) -> None:
    found: dict[str, list[dict[str, Any]]] = {}
    for setting in SETTINGS[method]:
        files = [DOCS / "trials" / f"{task}-{method}-{file_name(setting.name)}" for task in FILES]
        found[setting.name] = [read_json(file) for file in files]
    best = next(setting for setting in SETTINGS[method] if setting.name == chosen(found))
    usual = load("state", [])
    given = load("state", [*best.training, *best.acting])
    for section in ("train", "baselines"):
        assert usual[section].get(method) == given[section].get(method), best.name


def test_the_tables_name_the_methods_with_trials() -> None:
    assert set(offline_table.TRIED) == set(SETTINGS)


@pytest.mark.slow
def test_settings_of_acting_share_a_training(
    hopper_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offline_table, "TRIAL", 20)
    monkeypatch.setattr(trials, "SETTINGS", {name: SETTINGS[name][:2] for name in ("diffusion_policy", "td3_bc")})
    results = tmp_path / "trials"
    arguments = ["--data-dir", str(hopper_data), "--files", TASK, "--methods", "diffusion_policy", "td3_bc"]
    arguments += ["--core-minutes", "0.005", "--folder", str(tmp_path / "runs"), "--results", str(results)]
    arguments += ["--page", str(tmp_path / "trials.md"), "--set", "evaluation.episodes=2", "planner.width=8"]
    trials.main(arguments)
    trained = [len(list((tmp_path / "runs").rglob(f"{name}/log.jsonl"))) for name in ("action_planner", "td3_bc")]
    assert trained == [2, 2 * 2]  # each training, and a run that is timed before it
    first, chunk = (
        read_json(results / f"{TASK}-diffusion_policy-{name}.json")
        for name in ("stepsnull_chunk8_temperature1.0", "stepsnull_chunk1_temperature1.0")
    )
    assert first["seeds"] == [5000, 5001] and first["returns"] != chunk["returns"]
    before = (tmp_path / "trials.md").read_text()
    one = arguments.index("diffusion_policy")
    trials.main([*arguments[:one], *arguments[one + 1 :]])  # the page has what was measured before too
    assert (tmp_path / "trials.md").read_text() == before
    with h5py.File(hopper_data / "hopper-medium.hdf5", "r+") as data:
        data["rewards"][0] += 1
    data_checksum.cache_clear()
    with pytest.raises(InputError, match="made from other data; choose another --results"):
        trials.main(arguments)
