"""All methods from D4RL's and DSRL's files to a table, at tiny size: real training, real episodes of Hopper."""

import html
import json
import sys
from pathlib import Path

import gymnasium
import h5py
import numpy as np
import pytest
from omegaconf import OmegaConf

import evaluate
import train_state
from evaluation.compare import policies
from mpdiffuser.methods import METHODS as REGISTRY
from mpdiffuser.methods import Baseline, Planning, recipes_of
from mpdiffuser.pipeline import MPDiffuserPipeline

METHODS = [name for name, method in REGISTRY.items() if not method.needs_expert]
PLANNING = {name for name, method in REGISTRY.items() if issubclass(method, Baseline | Planning)}
TINY = ["task=d4rl/hopper-medium-v2", "debug=true", "processes=1", "trackers=[]", "rounds=1", "horizon=8"]
TINY += [f"{model}.{size}" for model in ("planner", "dynamics") for size in ("width=8", "multipliers=[1,2]")]
TINY += [f"train.{recipe.name}.steps=4" for recipe in recipes_of(REGISTRY).values() if recipe.train is not None]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """hopper-medium.hdf5 of random actions, D4RL's layout under another name, so a stand-in; and the same in DSRL's."""
    env = gymnasium.make("Hopper-v4")
    env.action_space.seed(0)
    keys = ("observations", "actions", "rewards", "terminals", "timeouts", "next_observations", "costs")
    rows: dict[str, list] = {key: [] for key in keys}
    for episode in range(12):
        observation, ended = env.reset(seed=episode)[0], False
        while not ended:
            action = env.action_space.sample()
            following, reward, ended, timeout, info = env.step(action)
            cost = info["x_velocity"] > 0.7402
            for key, value in zip(rows, (observation, action, reward, ended, timeout, following, cost)):
                rows[key].append(value)
            observation = following
    env.close()
    folder = tmp_path_factory.mktemp("data")
    for name, some in (("hopper-medium", keys[:5]), ("SafetyHopperVelocity", keys)):
        with h5py.File(folder / f"{name}.hdf5", "w") as file:
            for key in some:
                file[key] = np.array(rows[key], bool if key in ("terminals", "timeouts") else np.float32)
    return folder


def run(module, monkeypatch: pytest.MonkeyPatch, *options: str) -> None:
    monkeypatch.setattr(sys, "argv", ["program.py", *options])
    module.main()


@pytest.mark.slow
def test_all_methods_and_another_look_at_one(data: Path, tmp_path: Path, monkeypatch) -> None:
    options = [*TINY, f"data_dir={data}", f"output_dir={tmp_path}"]
    run(train_state, monkeypatch, "method=all", *options)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert list(metrics["methods"]) == METHODS and metrics["stand_in"]
    for name, found in metrics["methods"].items():
        assert ("plan_ms" in found) == (name in PLANNING)
        assert all((key in found) == ("plan_ms" in found) for key in ("plan_ms_single", "action_ms_single"))
        assert ("feasibility" in found) == ("plan_ms" in found and name != "diffusion_policy")
    folder = tmp_path / "pipeline"
    assert all((folder / model).is_dir() for model in recipes_of(METHODS))
    assert {file.suffix for file in folder.rglob("*") if file.is_file()} == {".json", ".safetensors"}

    some = ["baselines.d_mpc.candidates=2", "baselines.d_mpc.chunk=4", "evaluation.episodes=2"]
    some += ["evaluation.methods=[d_mpc,iql]", f"output_dir={tmp_path / 'again'}", "processes=1"]
    run(evaluate, monkeypatch, f"pipeline={folder}", *some)
    again = json.loads((tmp_path / "again" / "metrics.json").read_text())["methods"]
    for name in ("d_mpc", "iql"):
        assert again[name]["returns"] == pytest.approx(metrics["methods"][name]["returns"], rel=1e-3)


@pytest.mark.slow
def test_methods_are_told_cost_limits_and_it_is_shown_what_they_kept(
    data: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    options = ["task=dsrl/OfflineHopperVelocityGymnasium-v1", *TINY[1:], f"data_dir={data}", f"output_dir={tmp_path}"]
    run(train_state, monkeypatch, *options)
    methods = json.loads((tmp_path / "metrics.json").read_text())["methods"]
    told = {f"{name} within {limit}": limit for limit in (20, 40, 80) for name in ("cloning", "planner", "mpdiffuser")}
    assert set(methods) == {"random", "cloning", "planner", "mpdiffuser", *told}
    for name, found in methods.items():
        assert found["limit"] == told.get(name)
        for limit in (20, 40, 80):
            assert found["normalised_cost"][str(limit)] == pytest.approx(np.mean(found["costs"]) / limit)
            assert found["share_within_limit"][str(limit)] == np.mean(np.array(found["costs"]) <= limit)
        low, high = found["score"]["low"], found["score"]["high"]
        assert found["score"]["mean"] == pytest.approx((found["mean"] - low) / (high - low), abs=1e-6)
    printed, report = capsys.readouterr().out, html.unescape((tmp_path / "report.html").read_text())
    notes = [
        "a stand-in for the suite's: no number here is a DSRL result.",
        "Normalised score: (return - low) / (high - low), low 37.05",
    ]
    for words in (*notes, "Target: 99% of the episodes within the method's cost limit"):
        assert words in printed and words in report
    rows = policies(
        OmegaConf.load(tmp_path / "config.yaml"),
        MPDiffuserPipeline.from_pretrained(tmp_path / "pipeline"),
        tmp_path / "pipeline",
    )
    setups = {row: (REGISTRY[name], setup) for row, name, setup in rows}
    drawing = {}
    for row in ("planner", "mpdiffuser", "mpdiffuser within 20"):
        method, setup = setups[row]
        drawing[row] = method.policy(setup).sampler.config
    compositions = {name: config.composition for name, config in drawing.items()}
    assert compositions == {"planner": "planner", "mpdiffuser": "fused", "mpdiffuser within 20": "fused"}
    assert {config.temperature for config in drawing.values()} == {1.0}  # with a budget too
    row = next(line for line in printed.splitlines() if line.startswith("mpdiffuser within 20"))
    assert row.split()[-1] == f"{methods['mpdiffuser within 20']['share_within_limit']['20']:.0%}"


@pytest.mark.slow
def test_one_method_trains_only_what_it_needs(data: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    run(train_state, monkeypatch, "method=decision_diffuser", *TINY, f"data_dir={data}", f"output_dir={tmp_path}")
    assert {log.parent.name for log in tmp_path.rglob("log.jsonl")} == {"state_planner", "inverse"}
    assert list(json.loads((tmp_path / "metrics.json").read_text())["methods"]) == ["decision_diffuser"]
    with pytest.raises(SystemExit):
        run(
            evaluate,
            monkeypatch,
            f"pipeline={tmp_path / 'pipeline'}",
            "evaluation.methods=[mpdiffuser]",
            "output_dir=/tmp/no",
        )
    assert "mpdiffuser needs ranker, planner, dynamics" in capsys.readouterr().err


@pytest.mark.slow
def test_rows_drawn_in_another_way_are_another_run(data: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    options = ["method=planner", *TINY, f"data_dir={data}", f"output_dir={tmp_path}"]
    run(train_state, monkeypatch, *options)
    with pytest.raises(SystemExit):
        run(train_state, monkeypatch, *options, "occupancy=0.25")
    assert "occupancy: 0.5 there, 0.25 now" in capsys.readouterr().err
