"""Data of the dynamics model alone: what changes with them, what must not, and what does not fit."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

import train_state
import train_vision
from envs.datasets import open_datasets
from mpdiffuser.config import load
from mpdiffuser.models.normalizer import Marginals, Normalizer
from mpdiffuser.preparation import dynamics_episodes, unit_actions, within
from mpdiffuser.windows import Mixture, Windows

TINY = ["debug=true", "processes=1", "rounds=1", "horizon=8", "trackers=[]", "validation=0.3"]
TINY += [
    f"train.{model}.steps=4" for model in ("planner", "dynamics", "clean_dynamics", "forward", "ranker", "cloning")
]
TINY += [f"{model}.{size}" for model in ("planner", "dynamics") for size in ("width=8", "multipliers=[1,2]")]
TINY += ["evaluation.methods=[]"]
PIXELS = ["encoder.backbone=torchvision:resnet18", "encoder.pool=1", "encoder.history=2", "encoder.pretrained=false"]
PIXELS += ["train.representation.steps=4", "decoder=false"]
EPISODES, STEPS = 5, 12
ROWS = EPISODES * (STEPS + 1)

Run = Callable[..., tuple[int, str, str]]


def write(file: Path, seed: int = 0, width: float = 1.0, **arrays: np.ndarray) -> str:
    """Episodes of a robot with actions in degrees within -40..60; `width` is the spread of the states."""
    random = np.random.default_rng(seed)
    found = {
        "observations": width * random.normal(size=(ROWS, 3)),
        "actions": random.uniform(-40, 60, (ROWS, 2)),
        "rewards": random.normal(size=ROWS),
        "truncations": np.arange(ROWS) % (STEPS + 1) == STEPS,
        "action_low": np.full(2, -40.0),
        "action_high": np.full(2, 60.0),
    } | arrays
    np.savez(file, **{key: values for key, values in found.items() if values is not None})  # type: ignore[arg-type]
    return str(file)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), st.floats(0.05, 0.95))
def test_shares_of_a_mixture(make_episodes, seed: int, share: float) -> None:
    """Each source makes up its share to one example, and an example is the source's own."""
    random = np.random.default_rng(seed)
    parts = []
    for _ in range(2):
        episodes = make_episodes(random.integers(1, 30, random.integers(1, 5)).tolist())
        targets = random.normal(size=(len(episodes["actions"]), 1)).astype(np.float32)
        parts.append(Windows(episodes, targets, 4, Normalizer(3), Normalizer(2), Marginals(1)))
    mixture = Mixture(parts, [share, 1 - share])
    counts = np.bincount(mixture.owner.numpy(), minlength=2)
    assert len(mixture) == sum(map(len, parts))
    assert abs(counts[0] - share * len(mixture)) <= 1
    for part, count, each in zip(parts, counts, (share, 1 - share)):
        expected = each * len(mixture) / len(part)
        own = mixture.items[mixture.owner == parts.index(part)] - int(mixture.firsts[parts.index(part)])
        times = np.bincount(own.numpy(), minlength=len(part))
        assert times.sum() == count and (abs(times - expected) < 1 + 1e-6).all()
    indices = torch.from_numpy(random.permutation(len(mixture))[:7])
    batch, sources = mixture.batch(indices), mixture.sources(indices)
    for place, index in enumerate(indices.tolist()):
        owner = int(mixture.owner[index])
        one = parts[owner].batch(mixture.items[[index]] - int(mixture.firsts[owner]))
        assert all(torch.equal(batch[key][place], one[key][0]) for key in batch)
        assert sources[place] == parts[owner].sources(mixture.items[[index]] - int(mixture.firsts[owner]))[0]


def weights(folder: Path, model: str) -> dict[str, torch.Tensor]:
    return load_file(next((folder / "pipeline" / model).glob("*.safetensors")))


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, other[key]) for key, tensor in one.items())


@pytest.mark.slow
def test_only_the_dynamics_model_sees_them(tmp_path: Path, run: Run) -> None:
    """Wider states, no rewards. All other models, the normalisers and the ranker are the same to the bit."""
    own, more = write(tmp_path / "own.npz"), write(tmp_path / "play.npz", 1, 5.0, rewards=None)
    methods = [*TINY[:-1], "evaluation.methods=[cloning,planner,mpdiffuser,d_mpc]"]
    runs = {"alone": [], "more": [f"dynamics_data={more}"], "less": [f"dynamics_data={more}", "dynamics_share=0.9"]}
    for name, options in runs.items():
        status, _, error = run(train_state, f"dataset={own}", f"output_dir={tmp_path / name}", *methods, *options)
        assert not status, error
    folders = [tmp_path / name for name in runs]
    for model in ("planner", "ranker", "cloning", "latents", "actions", "condition"):
        assert same(weights(folders[0], model), weights(folders[1], model)), model
    for model in ("dynamics", "clean_dynamics"):
        found = [weights(folder, model) for folder in folders]
        assert not same(found[0], found[1]) and not same(found[1], found[2]), model
    info = json.loads((folders[1] / "pipeline/model_index.json").read_text())["info"]
    steps = EPISODES * STEPS
    assert info["dynamics_data"].items() >= {
        "source": more, "episodes": EPISODES, "steps": steps, "planner_share": 0.5
    }.items()  # fmt: skip
    status, printed, error = run(
        train_state, f"dataset={own}", f"output_dir={folders[1]}", *methods, f"dynamics_data={more}"
    )
    assert not status and printed.count("reusing") >= 3
    other = [f"dynamics_data={write(tmp_path / 'other.npz', 2)}"]
    status, _, error = run(train_state, f"dataset={own}", f"output_dir={folders[1]}", *methods, *other)
    assert status == 2 and "holds a run with other settings (dynamics_data.data:" in error


@pytest.mark.slow
def test_from_pixels(tmp_path: Path, run: Run) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, ROWS, 32, 40, 3), np.uint8)
    own = write(tmp_path / "own.npz", frames=frames[0])
    more = write(tmp_path / "play.npz", 1, frames=frames[1], rewards=None)
    options = [f"dataset={own}", f"data_root={tmp_path / 'data'}", *TINY, *PIXELS]
    for name, further in (("alone", []), ("more", [f"dynamics_data={more}"])):
        status, _, error = run(train_vision, *options, f"output_dir={tmp_path / name}", *further)
        assert not status, error
    one, other = tmp_path / "alone", tmp_path / "more"
    assert all(same(weights(one, model), weights(other, model)) for model in ("encoder", "planner", "latents"))
    assert not same(weights(one, "dynamics"), weights(other, "dynamics"))


@pytest.mark.parametrize("choice", ["clip", "widen"])
def test_both_data_have_one_unit(tmp_path: Path, choice: str) -> None:
    """Actions beyond declared bounds, in both: one number in degrees is one number in the models' units."""
    degrees = np.full((ROWS, 2), 100.0)
    degrees[::2] = 10.0
    own, more = (open_datasets(write(tmp_path / f"{n}.npz", n, actions=degrees)) for n in (0, 1))
    cfg = load("state", [f"out_of_bounds={choice}"])
    unit, bounds = unit_actions(own, choice)
    found = dynamics_episodes(cfg, more, unit, bounds, ["proprioception"])
    np.testing.assert_allclose(found["actions"], unit["actions"], atol=1e-6)
    assert bounds.high == ((60.0, 60.0) if choice == "clip" else (100.0, 100.0))


def test_states_are_set_to_the_range_of_the_planners_data(make_episodes) -> None:
    """A state far beyond it, in units of a narrow range, must not have all the loss."""
    episodes = make_episodes([5, 4])
    episodes.arrays["observations"] = np.random.default_rng(0).normal(size=(11, 3)).astype(np.float32)
    latents = Normalizer(3).fit(np.array([[-0.5, -0.5, 0.0], [0.5, 0.5, 1e-3]]))
    found = within(episodes, latents)
    np.testing.assert_allclose(found["observations"], episodes["observations"].clip([-0.5, -0.5, 0], [0.5, 0.5, 1e-3]))
    low, high = (bound.detach().numpy() for bound in latents.bounds())
    normalised = latents.normalize(torch.from_numpy(found["observations"])).numpy()
    assert (normalised >= low - 1e-5).all() and (normalised <= high + 1e-5).all()
    assert (episodes["observations"] != found["observations"]).any()  # the data themselves stay


def test_data_that_do_not_fit(tmp_path: Path, run: Run) -> None:
    own = write(tmp_path / "own.npz")
    wide, other = np.zeros((ROWS, 4)), np.full((ROWS, 2), 70.0)
    for number, (arrays, options, words) in enumerate(
        (
            ({"observations": wide}, [], "observations: found {'observations': (4,)}, but the planner's data have"),
            (
                {"actions": np.zeros((ROWS, 1)), "action_low": np.zeros(1), "action_high": np.ones(1)},
                [],
                "number of act",
            ),
            ({"action_high": np.full(2, 90.0)}, [], "bounds of actions: found ((-40.0, -40.0), (90.0, 90.0)), but"),
            ({"actions": other, "action_low": None, "action_high": None}, [], "set out_of_bounds=clip"),
            ({}, ["dynamics_share=1"], "dynamics_share: must lie between 0 and 1, found 1"),
            ({}, ["evaluation.methods=[cloning]"], "dynamics_data: none of cloning has a dynamics model"),
        )
    ):
        more = write(tmp_path / f"{number}.npz", 1, **arrays)  # type: ignore[arg-type]
        options = [f"dataset={own}", f"dynamics_data={more}", f"output_dir={tmp_path / 'out'}", *TINY, *options]
        status, _, error = run(train_state, *options)
        assert status == 2 and words in error, (words, error)
    assert not (tmp_path / "out" / "planner").exists()
