"""The command adapt.py at the smallest sizes, from states and from pixels."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import adapt
import train_state
import train_vision
from mpdiffuser.controller import Controller
from mpdiffuser.files import check_manifest
from mpdiffuser.pipeline import MPDiffuserPipeline

TINY = ["debug=true", "processes=1", "rounds=1", "horizon=8", "trackers=[]", "validation=0.3", "evaluation.methods=[]"]
TINY += [f"train.{model}.steps=4" for model in ("planner", "dynamics", "forward", "ranker", "cloning")]
PIXELS = ["encoder.backbone=torchvision:resnet18", "encoder.pool=1", "encoder.history=2", "encoder.pretrained=false"]
PIXELS += ["train.representation.steps=4", "decoder=false"]
EPISODES, STEPS, GAINS = 6, 30, np.array([0.5, 1.4])
ROWS = EPISODES * (STEPS + 1)

Run = Callable[..., tuple[int, str, str]]


def write(file: Path, gains: np.ndarray, seed: int = 0, **arrays: np.ndarray) -> str:
    """A robot with actions in degrees within -40..60, whose joints answer with `gains`."""
    random = np.random.default_rng(seed)
    actions = random.uniform(-40, 60, (EPISODES, STEPS + 1, 2))
    states = np.zeros((EPISODES, STEPS + 1, 2))
    for t in range(STEPS):
        states[:, t + 1] = 0.9 * states[:, t] + gains * (actions[:, t] - 10) / 50
    found = {
        "observations": states.reshape(ROWS, 2),
        "actions": actions.reshape(ROWS, 2),
        "truncations": np.arange(ROWS) % (STEPS + 1) == STEPS,
        "action_low": np.full(2, -40.0),
        "action_high": np.full(2, 60.0),
    }
    np.savez(file, **(found | arrays))  # type: ignore[arg-type]
    return str(file)


@pytest.mark.slow
def test_from_states(tmp_path: Path, run: Run) -> None:
    """With plans that are longer than the recordings."""
    output, adapted = tmp_path / "run", tmp_path / "run-adapted"
    data, play = write(tmp_path / "own.npz", np.ones(2)), write(tmp_path / "play.npz", GAINS, 1)
    training = [f"dataset={data}", f"output_dir={output}", *TINY, "stride=5", "train.forward.steps=400"]
    status, _, error = run(train_state, *training)
    assert not status, error
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    options = [f"pipeline={output / 'pipeline'}", f"dataset={play}", "dynamics.steps=5"]
    status, printed, error = run(adapt, *options)
    assert not status, error
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before
    found = json.loads((adapted / "adaptation.json").read_text())
    assert (
        found["form"] == "gains"
        and "gains 0." in printed
        and "biases 0.00, 0.00" in printed
        and "Dynamics model: held-out loss" in printed
    )
    np.testing.assert_allclose(np.diag(found["map"]["matrix"]), GAINS, atol=0.15)
    check_manifest(adapted / "pipeline", "")
    old, new = (MPDiffuserPipeline.from_pretrained(folder / "pipeline") for folder in (output, adapted))
    plans = []
    for pipeline in (old, new):
        controller = Controller(pipeline)
        controller.reset(seeds=[0])
        action = controller.act(np.zeros(2, np.float32))
        assert (action >= -40).all() and (action <= 60).all()
        plans.append(controller.plan.executed_actions[0].numpy())
    expected = np.clip((new.action_scale.to_unit(plans[1]) - (plans[0] - 10) / 50)[0], -2, 2)
    inside = np.abs((plans[1][0] - 10) / 50) < 0.999
    assert np.abs(expected[inside]).max(initial=0) < 1e-4  # the first action has the effect of the planned one
    status, printed, error = run(adapt, *options)
    assert not status and "reusing" in printed
    status, _, error = run(adapt, *options, "seed=1")
    assert status == 2 and "another adaptation: options" in error and "output_dir=" in error


@pytest.mark.slow
def test_from_pixels(tmp_path: Path, run: Run) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, ROWS, 32, 40, 3), np.uint8)
    data = write(tmp_path / "own.npz", np.ones(2), frames=frames[0])
    play = write(tmp_path / "play.npz", GAINS, 1, frames=frames[1])
    root = f"data_root={tmp_path / 'data'}"
    status, _, error = run(train_vision, f"dataset={data}", f"output_dir={tmp_path / 'run'}", root, *TINY, *PIXELS,
                           "train.forward.steps=4")  # fmt: skip
    assert not status, error
    status, _, error = run(adapt, f"pipeline={tmp_path / 'run/pipeline'}", f"dataset={play}", "dynamics.steps=4", root)
    assert not status, error
    controller = Controller(MPDiffuserPipeline.from_pretrained(tmp_path / "run-adapted/pipeline"))
    controller.reset(seeds=[0])
    action = controller.act({"frames": frames[1][0], "observations": np.zeros(2, np.float32)})
    assert (action >= -40).all() and (action <= 60).all()


@pytest.mark.slow
def test_wrong_input(tmp_path: Path, run: Run) -> None:
    output, data = tmp_path / "run", write(tmp_path / "own.npz", np.ones(2))
    options = [f"dataset={data}", f"output_dir={output}", *TINY]
    status, _, error = run(train_state, *options, "evaluation.methods=[cloning]")
    assert not status, error
    status, _, error = run(adapt, f"pipeline={output / 'pipeline'}", f"dataset={data}")
    assert status == 2 and "has no planner" in error
    status, _, error = run(train_state, *options, "train.forward.steps=4")
    assert not status, error
    status, _, error = run(adapt, f"pipeline={output / 'pipeline'}", f"dataset={data}", f"output_dir={output}")
    assert status == 2 and "holds the pipeline that is adapted; choose another" in error
    short = np.arange(ROWS) < 60
    few = {key: values[short] for key, values in np.load(data).items() if len(values) == ROWS}
    for arrays, more, words in (
        ({"observations": np.zeros((ROWS, 3))}, [], "found {'observations': (3,)} and 2 actions, but the pipeline has"),
        ({"actions": np.full((ROWS, 2), 90.0)}, [], "set out_of_bounds=clip"),
        ({}, ["out_of_bounds=widen"], "must be refuse or clip"),
        (few, [], "must have at least 100 steps, found 58"),
    ):
        bounds = {} if "actions" not in arrays else {"action_high": np.full(2, 100.0)}
        file = write(tmp_path / "play.npz", np.ones(2), 1, **arrays, **bounds)  # type: ignore[arg-type]
        status, _, error = run(adapt, f"pipeline={output / 'pipeline'}", f"dataset={file}", *more)
        assert status == 2 and words in error, error
    assert not (tmp_path / "run-adapted" / "pipeline").exists()
    options[1] = f"output_dir={tmp_path / 'remembers'}"
    status, _, error = run(train_state, *options, "history=2")
    assert not status, error
    status, _, error = run(adapt, f"pipeline={tmp_path / 'remembers' / 'pipeline'}", f"dataset={data}")
    assert status == 2 and "its latents hold past actions (history=2)" in error
