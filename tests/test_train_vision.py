"""train_vision.py at the smallest sizes: what it trains, what it refuses, and what it says of it."""

import contextlib
import hashlib
import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import train_vision
from envs.collect import collect
from envs.record import dm_control_record
from envs.simulator import DMControlEnv
from mpdiffuser.config import load
from mpdiffuser.episodes import Episodes
from mpdiffuser.methods import METHODS, recipes_of
from mpdiffuser.pipeline import MPDiffuserPipeline
from mpdiffuser.windows import split_indices, step_rows

CARTPOLE = {"name": "cartpole_swingup", "action_repeat": 4, "size": 64, "camera": 1}
TINY = ["debug=true", "processes=1", "rounds=1", "horizon=8", "evaluation.episodes=1", "evaluation.probe_every=0"]
TINY += ["encoder.backbone=torchvision:resnet18", "encoder.pool=1", "encoder.history=2", "trackers=[]"]
TINY += ["train.representation.steps=4", "train.decoder.steps=2"]
TINY += [f"{model}.{size}" for model in ("planner", "dynamics") for size in ("width=8", "multipliers=[1,2]")]
TINY += [f"train.{model}.steps=4" for model in ("planner", "dynamics", "forward", "ranker", "cloning", "state_planner")]
CLONING = [*TINY, "evaluation.methods=[random,cloning]"]

Run = Callable[..., tuple[int, str, str]]


def fill(seed: int) -> Callable[..., None]:
    """A `load_pretrained` that needs no file: the weights are random numbers of a seed."""

    def load_weights(backbone: torch.nn.Module, name: str, download: bool = False) -> None:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in backbone.parameters():
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))

    return load_weights


def run_main(patch: pytest.MonkeyPatch, *options: str) -> int:
    """The exit status of train_vision.py."""
    patch.setattr("sys.argv", ["train_vision.py", *options])
    try:
        train_vision.main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run train_vision.py: exit status, standard output, standard error. Its backbone has the weights of seed 0."""
    monkeypatch.setattr("vision.encoder.load_pretrained", fill(0))
    return lambda *options: (run_main(monkeypatch, *options), *capsys.readouterr())


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four short episodes of random actions."""
    record = dm_control_record(CARTPOLE, "fast", 0.8)
    return collect(record, "random", 4, 0, tmp_path_factory.mktemp("data"), processes=1)


@pytest.fixture(scope="module")
def trained(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of one run of cloning, and what it printed; nobody writes to the folder."""
    folder = tmp_path_factory.mktemp("trained")
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr("vision.encoder.load_pretrained", fill(0))
        patch.setattr("mpdiffuser.engines.FASTEST", ())
        options = [f"dataset={dataset}", f"data_root={folder}", f"output_dir={folder / 'out'}"]
        assert run_main(patch, *CLONING, *options) == 0
    return folder / "out", printed.getvalue()


def test_true_states_train_the_models_that_act_on_estimates_of_them(trained: tuple[Path, str], dataset: Path) -> None:
    pipeline, episodes = MPDiffuserPipeline.from_pretrained(trained[0] / "pipeline"), Episodes.load(dataset)
    rows = np.isin(episodes.episode_of_row, split_indices(len(episodes), 0.1, 0)[0])
    states, steps = episodes["observations"], np.intersect1d(np.flatnonzero(rows), step_rows(episodes))
    exact = (states[rows] - states[steps].mean(0)) / states[steps].std(0)
    np.testing.assert_allclose(pipeline.latents.std.numpy(), exact.std(0), rtol=1e-4)
    np.testing.assert_allclose(pipeline.latents.mean.numpy(), exact.mean(0), atol=1e-4)
    assert pipeline.encoder.config["latent_dim"] == states.shape[1]


def contents(folder: Path) -> dict[str, str]:
    """Checksum of each file of a folder. The lock of the last run is not part of it."""
    files = [file for file in folder.rglob("*") if file.is_file() and file.name != ".lock"]
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.mark.slow
def test_only_the_models_of_the_methods_are_trained(trained: tuple[Path, str]) -> None:
    output, printed = trained
    assert {log.parent.name for log in output.rglob("log.jsonl")} == {"representation", "decoder", "cloning"}
    assert {"planner", "dynamics", "ranker"}.isdisjoint(folder.name for folder in output.rglob("*"))
    metrics = json.loads((output / "metrics.json").read_text())
    assert list(metrics["methods"]) == ["random", "cloning"]
    pipeline = MPDiffuserPipeline.from_pretrained(output / "pipeline")
    assert (pipeline.planner, pipeline.dynamics, pipeline.ranker) == (None, None, None)
    # no film was made, so none is announced
    assert not (output / "video.mp4").exists() and "Video:" not in printed
    assert f"Report: {output / 'report.html'}" in printed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("validation=0.5", "validation: 0.1 there, 0.5 now"),
        ("seed=1", "seed: 0 there, 1 now"),
        ("true_states=false", "true_states: True there, False now"),
        ("encoder.pretrained=false", "pretrained: True there, False now"),
        ("encoder.latent_dim=8", "latent_dim: 32 there, 8 now"),
        ("train.representation.steps=5", "steps: 4 there, 5 now"),
        ("train.cloning.steps=5", "steps: 4 there, 5 now"),
        ("weights", "backbone_weights: "),
    ],
)
def test_a_rerun_that_does_not_fit_is_refused(
    trained: tuple[Path, str], dataset: Path, tmp_path: Path, run: Run, monkeypatch: Any, option: str, words: str
) -> None:
    """Before anything in the folder is touched."""
    output = shutil.copytree(trained[0], tmp_path / "out")
    before = contents(output)
    if option == "weights":  # other weights of the same backbone
        monkeypatch.setattr("vision.encoder.load_pretrained", fill(1))
    more = [option] if "=" in option else []
    options = [f"dataset={dataset}", f"data_root={trained[0].parent}", f"output_dir={output}"]
    status, _, error = run(*CLONING, *more, *options)
    assert status == 2 and "holds a run with other settings" in error and words in error
    assert contents(output) == before


@pytest.mark.slow
def test_a_rerun_reuses_everything(trained: tuple[Path, str], dataset: Path, tmp_path: Path, run: Run) -> None:
    output = shutil.copytree(trained[0], tmp_path / "out")
    before = contents(output)
    options = [f"dataset={dataset}", f"data_root={trained[0].parent}", f"output_dir={output}"]
    status, out, _ = run(*CLONING, *options)
    assert status == 0 and "Features: reusing" in out and "Evaluation: reusing" in out
    for name in ("representation", "decoder", "cloning"):
        assert f"{name}: trained already" in out
    kept = [name for name in before if not name.startswith(("config.yaml", "report.html"))]
    assert {name: before[name] for name in kept} == {name: contents(output).get(name) for name in kept}


@pytest.mark.slow
def test_a_baseline_from_pixels(trained: tuple[Path, str], dataset: Path, tmp_path: Path, run: Run) -> None:
    options = [f"dataset={dataset}", f"data_root={trained[0].parent}", f"output_dir={tmp_path / 'out'}"]
    status, out, error = run(
        *TINY, "method=d_mpc", *(f"train.{name}.steps=4" for name in trained_by("d_mpc")), *options
    )
    assert status == 0, error
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert list(metrics["methods"]) == ["d_mpc"] and "plan_ms" in metrics["methods"]["d_mpc"]
    logs = {log.parent.name for log in (tmp_path / "out").rglob("log.jsonl")}
    assert logs == {"representation", "decoder", *trained_by("d_mpc")}
    assert "Video:" not in out


def trained_by(method: str) -> list[str]:
    return [recipe.name for recipe in recipes_of([method]).values() if recipe.train is not None]


@pytest.mark.parametrize("method", [*METHODS, "all"])
def test_every_method_can_be_asked_for(method: str) -> None:
    methods = load("vision", [f"method={method}"]).evaluation.methods
    assert list(methods) == list(METHODS) if method == "all" else method in methods


# a task of dm_control for which there is no expert


@pytest.fixture
def hopper_stand(tmp_path: Path) -> list[str]:
    """Options for a task that no file of configs/task/ names."""
    options = ["task=hopper_stand", "quality=random", "episodes=2", "episode_seconds=0.8"]
    return [*options, f"data_root={tmp_path}", f"output_dir={tmp_path / 'out'}"]


@pytest.mark.slow
def test_the_expert_is_left_out_before_anything_is_done(
    hopper_stand: list[str], run: Run, monkeypatch: Any, capsys: Any
) -> None:
    def stop(*inputs: Any, **options: Any) -> Path:
        raise AssertionError("data are collected")

    monkeypatch.setattr(train_vision, "collect", stop)
    with pytest.raises(AssertionError, match="data are collected"):
        run(*TINY, *hopper_stand)
    assert "note: expert left out: there is no expert of this environment" in capsys.readouterr().out


def test_the_expert_alone_is_an_error(hopper_stand: list[str], run: Run, tmp_path: Path) -> None:
    status, _, error = run(*TINY, *hopper_stand, "evaluation.methods=[expert]")
    assert status == 2 and error.startswith("error: evaluation.methods: there is no expert") and error.count("\n") == 1
    assert "hopper_stand" in error
    assert not list(tmp_path.iterdir())  # nothing was collected or trained


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["task=finger_spin"], "quality='mixed': there is no expert of finger_spin; use quality=random"),
        (["task=finger_spn", "quality=random"], "task.name='finger_spn': no such dm_control task; did you mean finger"),
        (["task=lqr_lqr_2_1", "quality=random"], "task.name='lqr_lqr_2_1' has no time limit of its own; give one"),
        (["task=walker_walk", "task.action_repeat=3"], "task.action_repeat=3: the policies of walker_walk were"),
        (["quality=foo"], "quality='foo'"),
        (["evaluation.episodes=0"], "evaluation.episodes: must be at least 1, found 0"),
        (["evaluation.parallel_controllers=0"], "evaluation.parallel_controllers: must be at least 1, found 0"),
        (["evaluation.safety_probability=1"], "evaluation.safety_probability: must be at least 0 and below 1, found 1"),
        (["evaluation.methods=[mpdiffuser,magic]"], "evaluation.methods: must be of random, cloning"),
        (["horizon=15"], "horizon: must be a multiple of 2"),
        (["environment=Pendulum-v1"], "environment=Pendulum-v1: is for a dataset that exists; give dataset= too"),
    ],
)
def test_what_cannot_work_is_refused_at_once(options: list[str], words: str, run: Run, tmp_path: Path) -> None:
    status, out, error = run(*TINY, *options, f"data_root={tmp_path}", f"output_dir={tmp_path / 'out'}")
    assert (status, out) == (2, "") and error.startswith(f"error: {words}") and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


SCREEN = """
import gymnasium, numpy as np
class Screen(gymnasium.Env):
    observation_space = gymnasium.spaces.Dict({"frames": gymnasium.spaces.Box(0, 255, (64, 64, 3), np.uint8)})
    action_space = gymnasium.spaces.Box(-1, 1, (1,))
    def reset(self, *, seed=None, options=None):
        self.time = 0
        return {"frames": np.zeros((64, 64, 3), np.uint8)}, {}
    def step(self, action):
        self.time += 1
        return {"frames": np.full((64, 64, 3), self.time, np.uint8)}, 1.0, self.time == 4, False, {}
"""


@pytest.mark.slow
def test_pictures_of_ones_own_environment(
    dataset: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_screen.py").write_text(SCREEN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("somewhere")  # sys.path is restored afterwards
    options = [f"dataset={dataset}", f"data_root={tmp_path}", f"output_dir={tmp_path / 'out'}"]
    status, _, error = run(*CLONING, *options, "environment=own_screen:Screen")
    assert status == 0, error
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert {name: method["returns"] for name, method in metrics["methods"].items()} == {
        "random": [4.0],
        "cloning": [4.0],
    }
    status, _, error = run(*CLONING, *options, "environment=own_screen:Scren")
    assert status == 2 and "own_screen has no Scren; nearest: Screen" in error


@pytest.mark.slow
def test_pictures_of_others_in_the_task_that_they_are_of(run: Run, tmp_path: Path) -> None:
    """V-D4RL's layout: two steps an action, and no word on camera and environment."""
    env, folder = DMControlEnv("pendulum_swingup", "frames", action_repeat=2), tmp_path / "pendulum_swingup/random/64px"
    folder.mkdir(parents=True)
    for number in range(3):
        rows = [(env.reset(seed=number)[0], 0.0)] + [env.step(np.zeros(1))[:2] for _ in range(12)]
        frames, rewards = map(np.array, zip(*rows))
        arrays = {"image": frames, "reward": rewards, "action": np.zeros((13, 1)), "is_terminal": np.zeros(13, bool)}
        np.savez(folder / f"{number}-12.npz", **arrays)
    data = [f"dataset={folder}", f"data_root={tmp_path / 'data'}", f"output_dir={tmp_path / 'out'}"]
    task = ["environment=task", "task=pendulum_swingup"]
    for option, words in (
        ("task.size=64", "error: environment: action_repeat 4, but the data have 2; set task.action_repeat=2"),
        ("task.size=84", "error: environment: frames uint8 (84, 84, 3), but the data have uint8 (64, 64, 3)"),
    ):
        repeat = [] if option == "task.size=64" else ["task.action_repeat=2"]
        status, _, error = run(*CLONING, *data, *task, *repeat, option)
        assert status == 2 and words in error
    status, out, error = run(*TINY, "evaluation.methods=[cloning]", *data)
    assert status == 0 and "not evaluated in an environment: there is no environment" in out, error
    words = [*TINY, "evaluation.methods=[cloning]", *data, *task, "task.action_repeat=2"]
    status, out, error = run(*words)
    assert status == 0 and "cloning: trained already" in out, error
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["methods"]["cloning"]["lengths"] == [500]
    info = MPDiffuserPipeline.from_pretrained(tmp_path / "out" / "pipeline").config["info"]
    assert (info["environment"]["task"], info["environment"]["action_repeat"]) == ("pendulum_swingup", 2)


@pytest.mark.slow
def test_a_task_without_an_expert(hopper_stand: list[str], run: Run, tmp_path: Path) -> None:
    status, out, error = run(*TINY, *hopper_stand, "evaluation.methods=[random,cloning,expert]")
    assert status == 0, error
    assert out.startswith("note: expert left out: there is no expert of this environment")
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert list(metrics["methods"]) == ["random", "cloning"]


def test_a_task_from_states(run: Run) -> None:
    status, _, error = run("task=d4rl/hopper-medium-v2")
    assert status == 2 and "task=d4rl/hopper-medium-v2: a task from states, for train_state.py" in error


# what is refused before data are collected


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("task.size=9", "encoder.pool: must be at most"),
        ("task.camera=2", "task.camera=2: this model has cameras 0 to 1"),
        ("collect_seed=-1", "collect_seed=-1: must be a whole number"),
        ("episode_seconds=0", "episode_seconds=0.0: must be a positive"),
        ("task.action_repeat=3", "task.action_repeat=3: the policies of cartpole_swingup were made for 4"),
        ("encoder.backbone=timm:crossvit_tiny_240", "encoder.stride: crossvit_tiny_240 has strides"),
        ("encoder.projection=0", "encoder.projection: must be at least 1, found 0"),
        ("evaluation.first_seed=4294967296", "evaluation.first_seed: must be at most"),
        ("sampler.chunk=8", "sampler.chunk: must lie in 1..7 (below the horizon), found 8"),
        ("seed=1,2", "seed: must be one value, found 'seed=1,2'"),
    ],
)
def test_options_that_cannot_be(option: str, words: str, run: Run, tmp_path: Path) -> None:
    more = ["encoder.pool=2"] if option.startswith("task.size") else []
    folders = [f"data_root={tmp_path / 'data'}", f"output_dir={tmp_path / 'out'}"]
    status, _, error = run(*TINY, *folders, *more, option)
    assert (status, error[: len(words) + 7]) == (2, f"error: {words}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="egl is Linux's")
def test_rendering_that_does_not_work(dataset: Path, run: Run, tmp_path: Path, monkeypatch: Any) -> None:
    """It is told before anything is trained, although the dataset has all frames already."""
    monkeypatch.setenv("MUJOCO_GL", "egl")
    monkeypatch.setenv("MUJOCO_EGL_DEVICE_ID", "77")
    options = [f"dataset={dataset}", f"data_root={tmp_path}", f"output_dir={tmp_path / 'out'}"]
    status, _, error = run(*CLONING, *options)
    assert status == 2 and error.startswith("error: MUJOCO_GL='egl', MUJOCO_EGL_DEVICE_ID='77': no rendering")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_run_without_a_decoder(dataset: Path, tmp_path: Path, run: Run) -> None:
    """Its folder and its data lie under names that Hydra would read as something else."""
    output = tmp_path / "lr=0.01, [a]"
    options = [f"dataset={dataset}", f"data_root={tmp_path / 'x=1'}", f"output_dir={output}", "decoder=false"]
    status, out, error = run(*TINY, *options, "evaluation.methods=[mpdiffuser]")
    assert status == 0, error
    assert MPDiffuserPipeline.from_pretrained(output / "pipeline").decoder is None
    assert not (output / "decoder").exists() and f"Video:  {output / 'video.mp4'}" in out  # without plans
    assert "<video" in (output / "report.html").read_text()
    before = contents(output)
    status, _, error = run(*TINY, *options[:-1], "evaluation.methods=[mpdiffuser]")
    assert status == 2 and error.startswith("error: decoder=True:") and contents(output) == before
