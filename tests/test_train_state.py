"""train_state.py from a file in D4RL's layout: what it writes, what it refuses, and how its pipeline acts."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import envs
import evaluate
import train_state
from mpdiffuser.controller import Controller
from mpdiffuser.pipeline import MPDiffuserPipeline
from mpdiffuser.sampler import SamplerConfig
from mpdiffuser.tuning import LEVELS

TINY = ["debug=true", "processes=1", "rounds=1", "horizon=8", "evaluation.probe_every=0"]
TINY += [f"{model}.{size}" for model in ("planner", "dynamics") for size in ("width=8", "multipliers=[1,2]")]
TINY += [f"train.{model}.steps=4" for model in ("planner", "dynamics", "forward", "ranker", "cloning")]
HOPPER = ["task=d4rl/hopper-medium-v2", *TINY, "evaluation.methods=[mpdiffuser]"]
EPISODES, STEPS = 8, 20

Run = Callable[..., tuple[int, str, str]]


def write_file(file: Path, state_dim: int, action_dim: int, costs: bool = False) -> None:
    """Episodes of random numbers in the layout of D4RL, or with costs in that of DSRL."""
    random, rows = np.random.default_rng(0), EPISODES * STEPS
    ends = np.arange(rows) % STEPS == STEPS - 1
    arrays = {
        "observations": random.normal(size=(rows, state_dim)).astype(np.float32),
        "actions": random.uniform(-1, 1, (rows, action_dim)).astype(np.float32),
        "rewards": random.normal(size=rows).astype(np.float32),
        "terminals": np.zeros(rows, bool),
        "timeouts": ends,
    }
    if costs:
        arrays["next_observations"] = random.normal(size=(rows, state_dim)).astype(np.float32)
        arrays["costs"] = random.integers(0, 2, rows).astype(np.float32)
    with h5py.File(file, "w") as opened:
        for key, array in arrays.items():
            opened[key] = array


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of random numbers with the shapes of Hopper, of a maze and of a task with costs."""
    folder = tmp_path_factory.mktemp("data")
    write_file(folder / "hopper-medium.hdf5", 11, 3)
    write_file(folder / "maze.hdf5", 4, 2)
    write_file(folder / "SafetyCarRun.hdf5", 7, 2, costs=True)
    return folder


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one run; nobody writes to it."""
    output = tmp_path_factory.mktemp("trained") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["train_state.py", *HOPPER, f"data_dir={data}", f"output_dir={output}"])
        patch.setattr("mpdiffuser.engines.FASTEST", ())
        train_state.main()
    return output


def contents(folder: Path) -> dict[str, str]:
    """Checksum of each file of a folder. The lock of the last run is not part of it."""
    files = [file for file in folder.rglob("*") if file.is_file() and file.name != ".lock"]
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.mark.slow
def test_what_a_run_leaves(trained: Path) -> None:
    metrics = json.loads((trained / "metrics.json").read_text())
    assert list(metrics["methods"]) == ["mpdiffuser"] and metrics["seeds"] == [1000, 1001] and metrics["stand_in"]
    assert {"planner", "dynamics", "forward", "ranker", "levels", "held_out"} == set(metrics["stages"])
    assert (trained / "report.html").exists() and (trained / "config.yaml").exists()
    info = MPDiffuserPipeline.from_pretrained(trained / "pipeline").config["info"]
    assert info["environment"] == {"kind": "gymnasium", "env_id": "Hopper-v4", "speed_limit": None}
    assert info["record"]["observations"]["observations"]["shape"] == [11]
    assert info["decision_seconds"] == pytest.approx(0.008)
    assert info["task"] == "hopper-medium-v2" and info["suite"] == "d4rl" and info["seed"] == 0
    assert {"mpdiffuser", "torch", "python"} <= set(info["versions"])


@pytest.mark.slow
def test_the_sampler_is_saved_with_the_pipeline(trained: Path) -> None:
    found = MPDiffuserPipeline.from_pretrained(trained / "pipeline").sampler_defaults
    wanted = {"candidates": 2, "chunk": 4}
    assert {key: getattr(found, key) for key in wanted} == wanted
    assert found.candidates != SamplerConfig().candidates  # so that a default in code would be noticed
    assert found.steps in LEVELS


@pytest.mark.slow
def test_the_pipeline_leaves_the_engine_open(trained: Path) -> None:
    """Another machine may have another."""
    assert MPDiffuserPipeline.from_pretrained(trained / "pipeline").sampler_defaults.engine == "auto"


@pytest.mark.slow
def test_python_acts_as_evaluate_does(trained: Path, tmp_path: Path, run: Run, monkeypatch: Any) -> None:
    """The same actions, bit for bit, from the same seed."""
    acted: list[np.ndarray] = []
    act = Controller.act

    def noted(self: Controller, *inputs: Any) -> np.ndarray:
        acted.append(act(self, *inputs))
        return acted[-1]

    one = ["evaluation.methods=[mpdiffuser]", "evaluation.episodes=1", "evaluation.parallel_controllers=1"]
    with monkeypatch.context() as patch:
        patch.setattr(Controller, "act", noted)
        status, *_ = run(evaluate, f"pipeline={trained / 'pipeline'}", f"output_dir={tmp_path}", *one)
    assert status == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    pipeline = MPDiffuserPipeline.from_pretrained(trained / "pipeline")
    environment = envs.make(pipeline.config["info"]["environment"])
    controller = Controller(pipeline)
    controller.reset(metrics["seeds"])
    state, _ = environment.reset(seed=metrics["seeds"][0])
    total, actions, ended = 0.0, [], False
    while not ended:
        actions.append(controller.act(state[None]))
        state, reward, terminated, truncated, _ = environment.step(actions[-1][0])
        total += float(reward)
        ended = terminated or truncated
    environment.close()
    found = metrics["methods"]["mpdiffuser"]
    assert [len(actions)] == found["lengths"] and len(actions) > 4  # more than one plan
    np.testing.assert_array_equal(np.concatenate(actions), np.concatenate(acted[: len(actions)]))
    assert [round(total, 3)] == found["returns"]
    trained_with = json.loads((trained / "metrics.json").read_text())["methods"]["mpdiffuser"]
    assert trained_with["returns"][0] == found["returns"][0]  # the training's own evaluation too


@pytest.mark.slow
def test_one_option_of_the_sampler_changes_one_setting(trained: Path, tmp_path: Path, run: Run) -> None:
    some = ["evaluation.methods=[mpdiffuser]", "evaluation.episodes=1", "sampler.guidance=0.5"]
    assert run(evaluate, f"pipeline={trained / 'pipeline'}", f"output_dir={tmp_path}", *some)[0] == 0
    before, after = (
        json.loads((folder / "metrics.json").read_text())["settings"]["sampler"] for folder in (trained, tmp_path)
    )
    chosen = {"steps": MPDiffuserPipeline.from_pretrained(trained / "pipeline").sampler_defaults.steps}
    assert after == before | chosen | {"guidance": 0.5} and before["guidance"] != 0.5 and before["steps"] is None


@pytest.mark.slow
def test_a_rerun_reuses_everything(trained: Path, data: Path, tmp_path: Path, run: Run) -> None:
    output = shutil.copytree(trained, tmp_path / "out")
    before = contents(output)
    status, out, _ = run(train_state, *HOPPER, f"data_dir={data}", f"output_dir={output}")
    assert status == 0
    for name in ("planner", "dynamics", "ranker"):
        assert f"{name}: trained already" in out
    assert "Evaluation: reusing" in out
    after = contents(output)
    kept = [name for name in before if not name.startswith(("tensorboard", "config.yaml", "report.html"))]
    assert {name: before[name] for name in kept} == {name: after.get(name) for name in kept}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("validation=0.5", "validation: 0.1 there, 0.5 now"),
        ("seed=1", "seed: 0 there, 1 now"),
        ("discount=0.9", "discount: null there, 0.9 now"),
        ("td_lambda=0.5", "td_lambda: 0.9 there, 0.5 now"),
        ("horizon=4", "horizon: 8 there, 4 now"),
        ("ranker.hidden=32", "ranker.hidden: "),
        ("advantage.bound=2.0", "advantage.bound: 1.0 there, 2.0 now"),
        ("planner.width=16", "planner.width: 8 there, 16 now"),
        ("train.dynamics.steps=5", "steps: 4 there, 5 now"),
    ],
)
def test_a_rerun_that_does_not_fit_is_refused(
    trained: Path, data: Path, tmp_path: Path, run: Run, option: str, words: str
) -> None:
    """Before anything in the folder is touched."""
    output = shutil.copytree(trained, tmp_path / "out")
    before = contents(output)
    chunk = ["sampler.chunk=3"] if option.startswith("horizon") else []
    (output / "metrics.json").unlink()  # the evaluation would be another one too
    before.pop("metrics.json")
    status, out, error = run(train_state, *HOPPER, option, *chunk, f"data_dir={data}", f"output_dir={output}")
    assert status == 2 and "holds a run with other settings" in error and words in error
    assert contents(output) == before
    assert "trained already" not in out


@pytest.mark.slow
def test_a_rerun_with_other_data_is_refused(trained: Path, tmp_path: Path, run: Run) -> None:
    output = shutil.copytree(trained, tmp_path / "out")
    before = contents(output)
    write_file(tmp_path / "hopper-medium.hdf5", 11, 3)
    with h5py.File(tmp_path / "hopper-medium.hdf5", "r+") as opened:
        opened["rewards"][0] += 1
    status, _, error = run(train_state, *HOPPER, f"data_dir={tmp_path}", f"output_dir={output}")
    assert status == 2 and "data: " in error
    assert contents(output) == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("evaluation.episodes=3", "settings.episodes: 2 there, 3 now"),
        ("sampler.steps=2", "settings.sampler.steps: null there, 2 now"),
        ("evaluation.methods=[mpdiffuser,cloning]", "settings.methods: "),
    ],
)
def test_another_evaluation_is_refused_before_a_training(
    trained: Path, data: Path, tmp_path: Path, run: Run, option: str, words: str
) -> None:
    output = tmp_path / "out"
    output.mkdir()
    shutil.copy(trained / "metrics.json", output)
    before = contents(output)
    status, _, error = run(train_state, *HOPPER, option, f"data_dir={data}", f"output_dir={output}")
    assert status == 2 and "metrics.json: of another evaluation" in error and words in error
    assert contents(output) == before  # nothing was trained


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "state_dim"), [("dataset={}/maze.hdf5", 4), ("task=dsrl/OfflineCarRun-v0", 7)], ids=["maze", "costs"]
)
def test_data_without_an_environment_are_trained(
    data: Path, tmp_path: Path, run: Run, given: str, state_dim: int
) -> None:
    status, out, error = run(train_state, given.format(data), *TINY, f"data_dir={data}", f"output_dir={tmp_path}")
    assert (status, error.count("Traceback")) == (0, 0)
    assert f"Pipeline: {tmp_path / 'pipeline'} (not evaluated in an environment: there is no environment" in out
    assert not (tmp_path / "metrics.json").exists() and not (tmp_path / "report.html").exists()
    pipeline = MPDiffuserPipeline.from_pretrained(tmp_path / "pipeline")
    assert "environment" not in pipeline.config["info"]
    controller = Controller(pipeline)
    controller.reset([0])
    actions = controller.act(np.zeros((1, state_dim), np.float32))
    assert actions.shape == (1, 2) and np.isfinite(actions).all()
    status, _, error = run(evaluate, f"pipeline={tmp_path / 'pipeline'}")
    assert status == 2 and "environment is missing: it cannot be evaluated" in error


LAKE = """
import gymnasium, numpy as np
class Lake(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-9, 9, (WIDTH,))
    action_space = gymnasium.spaces.Box(-1, 1, (2,))
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return self.np_random.normal(size=WIDTH), {}
    def step(self, action):
        self.time += 1
        return self.np_random.normal(size=WIDTH), 1.0, False, self.time == 5, {}
"""


@pytest.fixture
def lakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Environments with 4 and with 3 numbers, in modules of the current folder."""
    for width in (4, 3):
        (tmp_path / f"own_lake_{width}.py").write_text(f"WIDTH = {width}\n{LAKE}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("somewhere")  # sys.path is restored afterwards


@pytest.mark.slow
def test_ones_own_environment_of_data_without_one(data: Path, tmp_path: Path, run: Run, lakes: None) -> None:
    options = [f"dataset={data / 'maze.hdf5'}", *TINY, f"output_dir={tmp_path / 'out'}"]
    options += ["evaluation.methods=[random,mpdiffuser]"]
    status, _, error = run(train_state, *options, "environment=own_lake_4:Lake")
    assert status == 0, error
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert [method["returns"] for method in metrics["methods"].values()] == [[5.0, 5.0]] * 2
    pipeline = tmp_path / "out" / "pipeline"
    info = MPDiffuserPipeline.from_pretrained(pipeline).config["info"]
    assert info["environment"] == {"kind": "user", "factory": "own_lake_4:Lake"} and "decision_seconds" not in info
    status, out, error = run(train_state, *options, "environment=own_lake_4:Lake")
    assert status == 0 and "planner: trained already" in out and "Evaluation: reusing" in out
    status, _, error = run(evaluate, f"pipeline={pipeline}")
    assert status == 2 and "give environment=package.module:factory on the command line" in error


def test_an_environment_that_does_not_fit_is_refused_before_a_training(
    data: Path, tmp_path: Path, run: Run, lakes: None
) -> None:
    options = [f"dataset={data / 'maze.hdf5'}", *TINY, f"output_dir={tmp_path / 'out'}"]
    for given, words in (
        ("own_lake_3:Lake", "environment: observations float32 (3,), but the data have float32 (4,)"),
        ("own_lake_2:Lake", "environment=own_lake_2:Lake: cannot import own_lake_2 (ModuleNotFoundError"),
        ("Hopper-v4", "environment: actions (3,), but the data have (2,)"),
        ("CartPole-v1", "environment 'CartPole-v1': actions must be real numbers"),
    ):
        status, _, error = run(train_state, *options, f"environment={given}")
        assert status == 2 and error.startswith(f"error: {words}")
    assert not (tmp_path / "out").exists()


def test_an_expert_where_there_is_none(data: Path, tmp_path: Path, run: Run) -> None:
    options = ["task=d4rl/hopper-medium-v2", *TINY, f"data_dir={data}", f"output_dir={tmp_path / 'out'}"]
    status, _, error = run(train_state, *options, "evaluation.methods=[expert]")
    assert status == 2 and error.startswith("error: evaluation.methods: there is no expert")
    assert not (tmp_path / "out").exists()


def test_a_task_from_pixels(tmp_path: Path, run: Run) -> None:
    status, _, error = run(train_state, "task=cartpole_swingup", f"output_dir={tmp_path}")
    assert status == 2 and "a task from pixels, for train_vision.py" in error


@pytest.mark.slow
def test_plans_with_a_stride(data: Path, tmp_path: Path, run: Run) -> None:
    options = [*HOPPER, "stride=3", f"data_dir={data}", f"output_dir={tmp_path / 'out'}", "evaluation.probe_every=5"]
    status, _, error = run(train_state, *options, "sampler.chunk=4")
    assert status == 2 and "error: sampler.chunk: must be 1 in plans of stride=3, found 4" in error
    status, _, error = run(train_state, *options)
    assert status == 0, error
    assert MPDiffuserPipeline.from_pretrained(tmp_path / "out" / "pipeline").stride == 3
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert np.isfinite(metrics["methods"]["mpdiffuser"]["returns"]).all()
    assert "feasibility" not in metrics["methods"]["mpdiffuser"]
    assert set(json.loads((tmp_path / "out" / "held_out.json").read_text())["states"]["planner"]) == {"3", "6", "12"}
    words = [f"pipeline={tmp_path / 'out' / 'pipeline'}", f"output_dir={tmp_path / 'again'}"]
    status, _, error = run(evaluate, *words, "sampler.delay=1")
    assert status == 2 and "error: sampler.delay: must be 0 in plans of stride=3, found 1" in error
    costs = ["task=dsrl/OfflineCarRun-v0", *TINY, f"data_dir={data}", f"output_dir={tmp_path / 'costs'}"]
    status, _, error = run(train_state, *costs, "sampler.chunk=1", "stride=2")
    assert status == 2 and "error: stride: must be 1 for data with costs" in error
