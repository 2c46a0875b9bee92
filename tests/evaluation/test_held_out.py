"""Errors on held-out episodes, by plain loops."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import imageio.v3 as imageio
import numpy as np
import pytest
import torch

from evaluation.held_out import HeldOut, measure, table, write_held_out
from mpdiffuser.episodes import Episodes
from mpdiffuser.launch import Clock
from mpdiffuser.methods.cloning import CloningPolicy
from mpdiffuser.pipeline import MPDiffuserPipeline
from mpdiffuser.record import DECLARED, TRUE_STATE, Actions, Observation, Record
from mpdiffuser.windows import split_indices, to_go
from vision.decoder import Decoder

H = 8
LENGTHS = [12, 9, 4, 11]
DEGREES = Actions((10.0, -4.0), (70.0, 4.0), DECLARED, ("hip", "knee"))
CENTER, HALF = np.array([40.0, 0.0]), np.array([30.0, 4.0])
SAMPLER = {"steps": 2, "candidates": 2}


@pytest.fixture
def pipeline(make_pipeline: Any) -> MPDiffuserPipeline:
    record = Record({"observations": Observation(TRUE_STATE, (3,))}, DEGREES)
    return make_pipeline(info={"task": "none", "data": "abc", "record": record.to_json()}, sampler=SAMPLER)


@pytest.fixture
def episodes(make_episodes: Any) -> Episodes:
    """Latent episodes with actions in [-1, 1]."""
    return make_episodes(LENGTHS)


def starts_of(episodes: Episodes) -> list[tuple[int, int]]:
    """(episode, row) of all rows with a step."""
    ends = zip(episodes.offsets[:-1], episodes.offsets[1:])
    return [(e, row) for e, (first, end) in enumerate(ends) for row in range(first, end - 1)]


def window(episodes: Episodes, key: str, episode: int, start: int, stride: int = 1) -> np.ndarray:
    """H rows from `start` on; the last row of the episode stands for those beyond it."""
    return episodes[key][np.minimum(start + stride * np.arange(H), episodes.offsets[episode + 1] - 1)]


def in_degrees(unit: Any) -> np.ndarray:
    return CENTER + HALF * np.asarray(unit, np.float64)


def test_errors_of_actions_by_a_plain_loop(
    pipeline: MPDiffuserPipeline, episodes: Episodes, randomize: Any, tmp_path: Path
) -> None:
    """Of repeating the last action, of the mean action, and of cloning; `each` in degrees, `mean` in [-1, 1]."""
    cloning = randomize(CloningPolicy(3, 2, hidden=8))
    cloning.save_pretrained(tmp_path / "cloning")
    _, found, _ = measure(pipeline, episodes, tmp_path)
    starts, actions = starts_of(episodes), episodes["actions"]
    assert found["windows"] == len(starts) == sum(LENGTHS)
    assert found["episodes"] == 4 and found["names"] == ["hip", "knee"]
    guesses: dict[str, list[np.ndarray]] = {"repeat the last action": [], "mean action": [], "cloning": []}
    for e, row in starts:
        first = row == episodes.offsets[e]
        guesses["repeat the last action"].append(np.zeros(2) if first else actions[row - 1])
        guesses["mean action"].append(pipeline.actions.mean.detach().numpy())
        with torch.no_grad():
            guesses["cloning"].append(cloning(torch.from_numpy(episodes["observations"][row][None]))[0].numpy())
    for name, guess in guesses.items():
        gaps = [in_degrees(each) - in_degrees(actions[row]) for each, (_, row) in zip(guess, starts)]
        each = [np.mean([gap[i] ** 2 for gap in gaps]) ** 0.5 for i in range(2)]
        np.testing.assert_allclose(found["actions"][name]["each"], each, rtol=1e-3)
        assert found["actions"][name]["mean"] == pytest.approx(np.mean([(gap / HALF) ** 2 for gap in gaps]), rel=1e-3)
        assert found["actions"][name]["standard_error"] > 0
    assert set(found["actions"]) == {*guesses, "planner", "mpdiffuser"}


def test_errors_of_states_by_a_plain_loop(pipeline: MPDiffuserPipeline, episodes: Episodes, tmp_path: Path) -> None:
    """Of a state that stays: in variances of the training data, means over dimensions; within the episode alone."""
    _, found, _ = measure(pipeline, episodes, tmp_path)
    assert list(found["states"]["stay"]) == ["1", "2", "4"]
    for k, error in found["states"]["stay"].items():
        assert error["mean"] == pytest.approx(changes(pipeline, episodes, int(k)), rel=1e-3)
    assert set(found["states"]) == {"stay", "planner", "mpdiffuser", "dynamics, given the logged actions"}


def changes(pipeline: MPDiffuserPipeline, episodes: Episodes, k: int) -> float:
    """The mean squared change of the states within k steps."""
    states, std = episodes["observations"], pipeline.latents.std.detach().numpy()
    rows = [row for e, row in starts_of(episodes) if row + k < episodes.offsets[e + 1]]
    return float(np.mean([((states[row] - states[row + k]) / std) ** 2 for row in rows]))


def test_a_plan_may_be_longer_than_the_episodes(make_pipeline: Any, episodes: Episodes, tmp_path: Path) -> None:
    """With a stride of 3 a window has 22 rows. Errors are of the steps that episodes have."""
    pipeline = make_pipeline(info={"stride": 3}, sampler=SAMPLER)
    windows, found, _ = measure(pipeline, episodes, tmp_path)
    assert found["windows"] == sum(LENGTHS) and list(found["states"]["stay"]) == ["3", "6", "12"]
    assert found["actions"]["planner"]["standard_error"] > 0
    for k, error in found["states"]["stay"].items():
        assert error["mean"] == pytest.approx(changes(pipeline, episodes, int(k)), rel=1e-3)
    e, start = starts_of(episodes)[20]
    np.testing.assert_array_equal(windows.latents[20], window(episodes, "observations", e, start, 3))


def test_plans_are_compared_with_what_came(pipeline: MPDiffuserPipeline, episodes: Episodes, tmp_path: Path) -> None:
    """Without a difference the errors are zero. The given actions are those of the log, in degrees."""
    windows, found, planned = measure(pipeline, episodes, tmp_path)
    for row, (e, start) in enumerate(starts_of(episodes)):
        np.testing.assert_array_equal(windows.latents[row], window(episodes, "observations", e, start))
        np.testing.assert_array_equal(windows.actions[row], window(episodes, "actions", e, start))
    np.testing.assert_allclose(planned[:, 0], windows.latents[:, 0], atol=1e-4)
    assert all(error["mean"] == 0 for error in windows.state_error(windows.latents.numpy()).values())
    logged = in_degrees(windows.actions).astype(np.float32)
    assert windows.action_error(logged[:, 0])["mean"] == pytest.approx(0, abs=1e-10)
    _, actions = windows.plans(pipeline.sampler_defaults, given=True)
    np.testing.assert_allclose(actions, logged, atol=2e-4)
    assert found["states"]["mpdiffuser"] == windows.state_error(planned)


@pytest.mark.parametrize("costs", [False, True])
def test_the_ranker_beside_logged_returns(make_pipeline: Any, episodes: Episodes, tmp_path: Path, costs: bool) -> None:
    """With costs, the values are those at the logged costs to go."""
    pipeline = make_pipeline(costs=costs, sampler=SAMPLER)
    if costs:
        episodes.arrays["costs"] = np.random.default_rng(5).uniform(size=len(episodes["rewards"])).astype(np.float32)
    found = HeldOut(pipeline, episodes, tmp_path).ranker()
    rows = [row for _, row in starts_of(episodes)]
    discount = pipeline.ranker.config["discount"]
    returns = to_go(episodes["rewards"], episodes, discount)[rows]
    left = to_go(episodes["costs"], episodes, discount)[rows] if costs else None
    values = pipeline.ranker.values(episodes["observations"][rows], left)
    assert found is not None and found["correlation"] == pytest.approx(np.corrcoef(values, returns)[0, 1], rel=1e-3)
    order = np.argsort(values)
    assert found["value"][0] == pytest.approx(values[order[:8]].mean(), rel=1e-3)
    assert found["return"][-1] == pytest.approx(returns[order[-7:]].mean(), rel=1e-3)


@pytest.mark.parametrize("missing", ["dynamics", "ranker"])
def test_what_a_pipeline_does_not_hold(make_pipeline: Any, episodes: Episodes, tmp_path: Path, missing: str) -> None:
    more = {"composition": "planner"} if missing == "dynamics" else {}
    pipeline = make_pipeline(sampler=SAMPLER | more, **{missing: None})
    _, found, _ = measure(pipeline, episodes, tmp_path)
    assert ("mpdiffuser" in found["actions"]) == (missing != "dynamics")
    assert (found["ranker"] is None) == (missing == "ranker") and "cloning" not in found["actions"]
    assert "in the data's units" in table(found)


def test_short_episodes_have_windows_too(pipeline: MPDiffuserPipeline, make_episodes: Any, tmp_path: Path) -> None:
    """Where none has the horizon's length, the last row stands for what would come."""
    windows, found, _ = measure(pipeline, make_episodes([1, 2, 1]), tmp_path)
    assert windows.rows.tolist() == [[0] + 7 * [1], [2, 3] + 6 * [4], [3] + 7 * [4], [5] + 7 * [6]]
    assert found["windows"] == 4 and list(found["states"]["planner"]) == ["1", "2"]


def test_the_files_of_a_run(pipeline: MPDiffuserPipeline, episodes: Episodes, tmp_path: Path) -> None:
    """The held-out episodes of the training alone; pictures of what came above those of the plan."""
    torch.manual_seed(0)
    pipeline.register_modules(decoder=Decoder(3, 8, 12).eval())
    cfg: Any = SimpleNamespace(validation=0.5, seed=4, output_dir=str(tmp_path))
    clock = Clock()
    rows = len(episodes["actions"])
    frames = np.broadcast_to(np.arange(rows, dtype=np.uint8)[:, None, None, None], (rows, 8, 12, 3))
    found = write_held_out(cfg, pipeline, episodes, clock, frames)
    assert found is not None and "held_out" in clock.seconds
    held_out = split_indices(4, 0.5, 4)[1]
    starts = [(e, row) for e, row in starts_of(episodes) if e in held_out]
    assert json.loads((tmp_path / "held_out.json").read_text()) == found
    assert (found["episodes"], found["windows"]) == (2, len(starts))
    for line in ("Held out: 2 episodes", "hip, knee, in the data's units", "repeat the last action", "+4: "):
        assert line in table(found)
    picture = imageio.imread(tmp_path / "held_out.png")
    steps = [0, 2, 4]
    whole = [(e, row) for e, row in starts if row + steps[-1] < episodes.offsets[e + 1]]
    chosen = [whole[i] for i in np.linspace(0, len(whole) - 1, 4).astype(int)]
    assert picture.shape == (2 * 4 * 8, 3 * 12, 3)
    _, _, planned = measure(pipeline, episodes.select(held_out), tmp_path)
    for line, (_, row) in enumerate(chosen):
        came, drawn = picture[16 * line : 16 * line + 8], picture[16 * line + 8 : 16 * line + 16]
        assert [int(came[0, 12 * i, 0]) for i in range(3)] == [row + k for k in steps]
        assert all((came[:, 12 * i : 12 * i + 12] == row + k).all() for i, k in enumerate(steps))
        plan = torch.from_numpy(planned[starts.index(chosen[line])][steps])
        imagined = np.concatenate(list(pipeline.decoder.frames(plan).numpy()), 1)
        assert np.abs(imagined.astype(int) - drawn).max() <= 1
    assert not list(tmp_path.glob("*.partial*"))


def test_without_pictures_there_is_no_picture(pipeline: MPDiffuserPipeline, episodes: Episodes, tmp_path: Path) -> None:
    cfg: Any = SimpleNamespace(validation=0.5, seed=4, output_dir=str(tmp_path))
    write_held_out(cfg, pipeline, episodes, Clock())
    assert sorted(file.name for file in tmp_path.iterdir()) == ["held_out.json"]


def test_a_pipeline_without_a_planner_is_not_measured(episodes: Episodes, make_pipeline: Any, tmp_path: Path) -> None:
    cfg: Any = SimpleNamespace(validation=0.5, seed=4, output_dir=str(tmp_path))
    assert write_held_out(cfg, make_pipeline(planner=None), episodes, Clock()) is None
    assert not list(tmp_path.iterdir())
