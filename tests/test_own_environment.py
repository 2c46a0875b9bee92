"""Training on a user's own recordings, evaluated in gymnasium's or the user's own environment, in its own units."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import evaluate
import train_state
import train_vision
from mpdiffuser.episodes import Episodes
from mpdiffuser.pipeline import MPDiffuserPipeline

TINY = ["debug=true", "processes=1", "rounds=1", "horizon=8", "trackers=[]", "validation=0.3", "evaluation.episodes=2"]
TINY += [f"{model}.{size}" for model in ("planner", "dynamics") for size in ("width=8", "multipliers=[1,2]")]
TINY += [f"train.{model}.steps=4" for model in ("planner", "dynamics", "forward", "ranker", "cloning")]
PIXELS = ["encoder.backbone=torchvision:resnet18", "encoder.pool=1", "encoder.history=2", "encoder.pretrained=false"]
PIXELS += ["train.representation.steps=4", "train.decoder.steps=2"]
EPISODES, STEPS = 6, 12
ROWS = EPISODES * (STEPS + 1)
BENCH = """
import gymnasium, numpy as np
from gymnasium import spaces
class Bench(gymnasium.Env):
    observation_space = spaces.Dict({
        "front": spaces.Box(0, 255, (32, 48, 3), np.uint8),
        "wrist": spaces.Box(0, 255, (32, 32, 3), np.uint8),
        "observations": spaces.Box(-np.inf, np.inf, (4,)),
        "clock": spaces.Box(0, 99, (1,)),
    })
    action_space = spaces.Box(20, 70, (2,))
    decision_seconds = 0.1
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return self.seen(), {}
    def seen(self):
        joints = self.np_random.normal(size=4).astype(np.float32)
        sizes = {"front": (32, 48, 3), "wrist": (32, 32, 3)}
        pictures = {name: np.full(size, self.time, np.uint8) for name, size in sizes.items()}
        return pictures | {"observations": joints, "clock": np.full(1, self.time)}
    def step(self, action):
        assert self.action_space.contains(action)
        self.time += 1
        return self.seen(), float(action.mean()), False, self.time == 5, {}
    def peek(self, actions):
        return [self.seen() for _ in actions]
class Costly(gymnasium.Env):
    observation_space = spaces.Box(-np.inf, np.inf, (4,))
    action_space = spaces.Box(-1, 1, (2,))
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return self.np_random.normal(size=4).astype(np.float32), {}
    def step(self, action):
        self.time += 1
        return np.full(4, self.time, np.float32), 1.0, False, self.time == 5, {"cost": 2.0}
def without_wrist():
    bench = Bench()
    bench.observation_space = spaces.Dict({k: v for k, v in Bench.observation_space.items() if k != "wrist"})
    return bench
"""


def recording(
    folder: Path, reach: tuple[float, float], actions: int, costs: bool = False, **observations: np.ndarray
) -> str:
    """The option dataset= of a folder with observations, random actions within reach, rewards and perhaps costs."""
    random = np.random.default_rng(0)
    arrays = observations | {"rewards": random.normal(size=ROWS).astype(np.float32)}
    arrays["actions"] = random.uniform(*reach, (ROWS, actions)).astype(np.float32)
    arrays |= {"terminations": np.zeros(ROWS, bool), "truncations": np.arange(ROWS) % (STEPS + 1) == STEPS - 1}
    if costs:
        arrays["costs"] = random.integers(0, 2, ROWS).astype(np.float32)
    Episodes(arrays, np.arange(EPISODES + 1) * (STEPS + 1)).save(folder)
    return f"dataset={folder}"


def numbers(width: int) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(ROWS, width)).astype(np.float32)


@pytest.fixture(autouse=True)
def own_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Tests run in a folder with the module own_bench."""
    (tmp_path / "own_bench.py").write_text(BENCH)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("somewhere")  # sys.path is restored afterwards


@pytest.mark.slow
def test_pendulum_in_its_own_units(tmp_path: Path, run: Any) -> None:
    """Its torque lies within 2."""
    data = recording(tmp_path / "swings", (-2, 2), 1, observations=numbers(3))
    options = [data, *TINY, f"output_dir={tmp_path / 'out'}", "evaluation.methods=[random,cloning]"]
    status, _, error = run(train_state, *options, "environment=Pendulum-v1")
    assert status == 0, error
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert all(method["lengths"] == [200, 200] for method in metrics["methods"].values()) and metrics["task"] == "out"
    again = [f"pipeline={tmp_path / 'out' / 'pipeline'}", "evaluation.methods=[random]"]
    status, _, error = run(evaluate, *again, "evaluation.max_decisions=7")
    assert status == 0, error  # the pipeline knows a registered environment
    metrics = json.loads((tmp_path / "out" / "evaluation" / "metrics.json").read_text())
    assert metrics["methods"]["random"]["lengths"] == [7] * 20
    status, _, error = run(evaluate, *again, "evaluation.max_decisions=0")
    assert status == 2 and "evaluation.max_decisions: must be at least 1, found 0" in error
    status, _, error = run(train_state, *options, "environment=MountainCarContinuous-v0")
    assert status == 2 and "error: environment: observations" in error
    wide = recording(tmp_path / "wide", (-3, 3), 1, observations=numbers(3))
    status, _, error = run(train_state, wide, *options[1:], "environment=Pendulum-v1")
    assert status == 2 and "environment: actions[0] lies in [-2, 2], but the data have [-2.9" in error


@pytest.mark.slow
def test_limits_on_costs_of_ones_own_data(tmp_path: Path, run: Any) -> None:
    data = recording(tmp_path / "costly", (-1, 1), 2, costs=True, observations=numbers(4))
    options = [data, *TINY, f"output_dir={tmp_path / 'out'}", "evaluation.methods=[random,cloning,planner]"]
    options += ["environment=own_bench:Costly", "evaluation.probe_every=0"]
    status, printed, error = run(train_state, *options, "cost_limits=[12,4]")
    assert status == 0, error
    assert "planner within 12" in printed
    methods = json.loads((tmp_path / "out" / "metrics.json").read_text())["methods"]
    rows = [f"{name}{limit}" for limit in ("", " within 4", " within 12") for name in ("random", "cloning", "planner")]
    assert set(methods) == {row for row in rows if not row.startswith("random ")}
    for row, method in methods.items():
        assert method["costs"] == [10.0, 10.0] and "score" not in method
        assert method["normalised_cost"] == {"4": 2.5, "12": pytest.approx(10 / 12)}
        assert method["share_within_limit"] == {"4": 0.0, "12": 1.0}
        assert method["limit"] == (float(row.split()[-1]) if "within" in row else None)
    info = MPDiffuserPipeline.from_pretrained(tmp_path / "out" / "pipeline").config["info"]
    assert info["cost_limits"] == [4.0, 12.0] and info["episode_steps"] == STEPS and "cost_margins" in info
    for value in ("[0]", "[-1]", "[4,true]", "[a]"):
        status, _, error = run(train_state, *options, f"cost_limits={value}")
        assert status == 2 and "error: cost_limits: must be positive numbers, such as [20,40], found" in error
    plain = recording(tmp_path / "plain", (-1, 1), 2, observations=numbers(4))
    status, _, error = run(train_state, plain, *options[1:], "cost_limits=[4]")
    assert status == 2 and "plain have no costs; leave the option out" in error


@pytest.mark.slow
def test_cameras_and_joints_of_ones_own_environment(tmp_path: Path, run: Any) -> None:
    random = np.random.default_rng(2)
    shapes = {"front": (32, 48, 3), "wrist": (32, 32, 3)}
    pictures = {name: random.integers(0, 255, (ROWS, *shape), np.uint8) for name, shape in shapes.items()}
    data = recording(tmp_path / "bench", (30, 60), 2, observations=numbers(4), **pictures)
    output = tmp_path / "out"
    options = [data, *TINY, *PIXELS, f"output_dir={output}", f"data_root={tmp_path / 'data'}"]
    options += ["evaluation.probe_every=2", "evaluation.methods=[random,mpdiffuser]"]
    status, _, error = run(train_vision, *options, "environment=own_bench:without_wrist")
    assert status == 2 and "environment=own_bench:without_wrist: gives no observation wrist" in error
    assert not output.exists()
    status, _, error = run(train_vision, *options, "environment=own_bench:Bench")
    assert status == 0, error
    methods = json.loads((output / "metrics.json").read_text())["methods"]
    assert all(method["lengths"] == [5, 5] for method in methods.values())
    assert all(30 * 5 <= value <= 60 * 5 for value in methods["mpdiffuser"]["returns"])
    assert "1" in methods["mpdiffuser"]["feasibility"]  # by the environment's own peek
    assert (output / "video.mp4").exists()
    info = MPDiffuserPipeline.from_pretrained(output / "pipeline").config["info"]
    assert info["environment"]["factory"] == "own_bench:Bench" and info["decision_seconds"] == 0.1
