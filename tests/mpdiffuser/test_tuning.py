"""The number of noise levels, chosen from held-out data."""

import json
from types import SimpleNamespace
from typing import Any
from unittest.mock import ANY

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mpdiffuser import tuning
from mpdiffuser.config import load, settings
from mpdiffuser.methods import METHODS
from mpdiffuser.pipeline import MPDiffuserPipeline
from mpdiffuser.sampler import SamplerConfig
from mpdiffuser.tuning import LEVELS, action_errors, chosen_levels, clustered_error, describe
from mpdiffuser.windows import Windows

CONFIG = SamplerConfig(composition="planner", engine="torch")


@pytest.fixture
def windows(make_episodes, tiny_pipeline: MPDiffuserPipeline) -> Windows:
    episodes, parts = make_episodes([12, 9, 10], 3, 2), tiny_pipeline
    targets = np.zeros((len(episodes["rewards"]), 1), np.float32)
    return Windows(episodes, targets, 8, parts.latents, parts.actions, parts.condition)


@pytest.mark.parametrize("chunk", [1, 3])
def test_errors_against_a_loop_over_the_windows(
    tiny_pipeline: MPDiffuserPipeline, windows: Windows, chunk: int
) -> None:
    """A window near an episode's end has fewer actions than are executed."""
    config, rows = SamplerConfig(composition="planner", engine="torch", steps=2, chunk=chunk), torch.arange(31)
    batch = windows.batch(rows)
    found = action_errors(tiny_pipeline, config, batch)
    sampler = tiny_pipeline.sampler(config)
    for row in rows.tolist():
        latent = tiny_pipeline.latents.denormalize(batch["latents"][row, :1])
        plan = tiny_pipeline(latent, sampler, [torch.Generator().manual_seed(row)])
        logged = tiny_pipeline.actions.denormalize(batch["actions"][row])
        taken = min(chunk, int(batch["action_mask"][row].sum()))
        expected = (plan.executed_actions[0, :taken] - logged[:taken]).square().mean()
        assert found[row] == pytest.approx(float(expected), rel=1e-3)


@pytest.mark.parametrize(
    ("means", "noise", "chosen"),
    [
        ({1: 5, 2: 3, 3: 1, 4: 2, 6: 2, 8: 2}, 0.0, 3),  # the lowest
        ({1: 5, 2: 1.001, 3: 1, 4: 2, 6: 2, 8: 2}, 1.0, 2),  # within a standard error of the lowest
        ({1: 1, 2: 1, 3: 1, 4: 1, 6: 1, 8: 1}, 0.0, 1),  # equal: the fewest
    ],
)
def test_the_fewest_levels_within_a_standard_error_of_the_lowest(
    monkeypatch, tiny_pipeline: MPDiffuserPipeline, windows: Windows, means: dict[int, float], noise: float, chosen: int
) -> None:
    def errors(pipeline: Any, config: SamplerConfig, batch: Any) -> np.ndarray:
        random = np.random.default_rng(config.steps)
        drawn = random.normal(size=len(batch["latents"]))
        return means[config.steps or 0] + noise * (drawn - drawn.mean())

    monkeypatch.setattr(tuning, "action_errors", errors)
    record = chosen_levels(tiny_pipeline, CONFIG, windows)
    assert (record["levels"], record["windows"], record["episodes"]) == (chosen, 31, 3)
    assert record["errors"] == pytest.approx({str(n): mean for n, mean in means.items()}, rel=1e-3)
    assert describe(json.loads(json.dumps(record))).startswith(f"{chosen} noise level")


@given(st.integers(0, 2**31), st.integers(2, 6))
def test_the_error_of_a_mean_of_clusters(seed: int, count: int) -> None:
    """Clusters of equal size: that of the mean of the clusters' means."""
    values = np.random.default_rng(seed).normal(size=(count, 5))
    expected = values.mean(1).std(ddof=1) / count**0.5
    assert clustered_error(values.ravel(), np.repeat(np.arange(count), 5)) == pytest.approx(expected, rel=1e-9)


def test_one_held_out_episode_tells_nothing(tiny_pipeline: MPDiffuserPipeline, make_episodes) -> None:
    episodes, parts = make_episodes([12], 3, 2), tiny_pipeline
    targets = np.zeros((13, 1), np.float32)
    one = Windows(episodes, targets, 8, parts.latents, parts.actions, parts.condition)
    record = chosen_levels(tiny_pipeline, CONFIG, one)
    assert record["levels"] == 1 and record["episodes"] == 1
    assert record["above_lowest"]["1"][1] is None
    json.dumps(record, allow_nan=False)


def test_levels_that_can_be_drawn(make_pipeline, windows: Windows) -> None:
    """Not more than the schedule has, and not fewer than a warm start runs."""
    few = chosen_levels(make_pipeline(levels=3), CONFIG, windows)
    assert list(few["errors"]) == ["1", "2", "3"]
    warm = SamplerConfig(composition="planner", engine="torch", warm_start=2)
    assert list(chosen_levels(make_pipeline(), warm, windows)["errors"]) == [str(n) for n in LEVELS if n >= 2]


def test_an_oracle_planner_has_no_error(tiny_pipeline: MPDiffuserPipeline, windows: Windows, monkeypatch) -> None:
    """A planner that returns the logged windows, whatever the noise and the level."""
    batch = windows.batch(torch.arange(31))
    clean = torch.cat([batch["latents"], batch["actions"]], -1)

    def oracle(self: Any, x: torch.Tensor, level: int, condition: torch.Tensor) -> torch.Tensor:
        same = (clean[:, 0, :3] - x[:, None, 0, :3]).abs().sum(-1).argmin(1)
        return clean[same]

    monkeypatch.setattr("mpdiffuser.sampler.Sampler.planner_x0", oracle)
    for steps in LEVELS:
        config = SamplerConfig(composition="planner", engine="torch", steps=steps)
        assert action_errors(tiny_pipeline, config, batch).max() < 1e-8


def test_the_noise_of_candidates_comes_in_opposite_pairs(tiny_pipeline: MPDiffuserPipeline) -> None:
    seen = SimpleNamespace(noise=None)

    class Watching:
        config = tiny_pipeline.sampler(SamplerConfig(steps=1, candidates=5, engine="torch")).config

        def __call__(self, present: torch.Tensor, condition: torch.Tensor, noise: Any, *rest: Any) -> torch.Tensor:
            seen.noise = noise()
            return torch.zeros(10, 8, 5)

    tiny_pipeline(torch.zeros(2, 3), Watching(), [torch.Generator().manual_seed(i) for i in range(2)])
    first = seen.noise.unflatten(0, (2, 5))
    torch.testing.assert_close(first[:, 3:], -first[:, :2])
    assert not torch.equal(first[0], first[1]) and first[:, :3].std() == pytest.approx(1, abs=0.1)


def test_what_is_chosen_is_recorded_in_the_pipeline(
    monkeypatch, make_pipeline: Any, make_folder: Any, tmp_path: Any, windows: Windows
) -> None:
    """For the planner and for the baselines whose models are there, unless an option sets the number."""
    asked = []

    def chosen(pipeline: Any, config: SamplerConfig, held_out: Any) -> dict[str, Any]:
        asked.append((type(pipeline).__name__, config.composition, held_out))
        return {"levels": 2 + len(asked)}

    monkeypatch.setattr(tuning, "chosen_levels", chosen)
    folder = make_folder(tmp_path / "pipeline", ["d_mpc"])
    kinds = {recipe.name: recipe.kind for recipe in METHODS["d_mpc"].models}
    trained = {name: kind.from_pretrained(folder / name) for name, kind in kinds.items()}
    options = settings(load("state", []))
    free, fixed = make_pipeline(), make_pipeline(sampler={"steps": 7})
    tuning.tune(free, options, trained, lambda planner: f"windows of {planner}")
    names = ("planner", "diffusion_policy", "d_mpc")
    assert asked == [
        ("MPDiffuserPipeline", "planner", "windows of planner"),
        ("DiffusionPolicy", ANY, "windows of action_planner"),  # it has the same planner, and no other model
        ("DMPC", ANY, "windows of action_planner"),
    ]
    assert free.config["info"]["levels"] == {name: {"levels": 3 + i} for i, name in enumerate(names)}
    assert free.sampler_defaults.steps == 3 and free.config["info"]["task"] == "none"
    baseline = METHODS["d_mpc"].join(free, lambda name, _: trained[name])
    assert baseline.sampler_defaults.steps == baseline.sampler(SamplerConfig()).config.steps == 5
    for name in names[1:]:
        options["baselines"][name]["steps"] = 5
    tuning.tune(fixed, options, trained, str)
    assert fixed.config["info"]["levels"] == {} and fixed.sampler_defaults.steps == 7 and len(asked) == 3
