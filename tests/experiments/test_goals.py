"""Goals at run time: the settings that plans are drawn with, the rewards, and the command on a tiny pipeline."""

from pathlib import Path

import pytest
import torch

from experiments import goals
from experiments.measuring import load_pipeline
from mpdiffuser.errors import InputError


def test_plans_are_drawn_with_the_pipelines_settings(halfcheetah) -> None:
    trained = goals.make_controller(halfcheetah, None, 0.0).sampler.config
    assert (trained.solver, trained.steps, trained.target, trained.composition) == ("ddpm", 2, 0.7, "fused")
    config = goals.make_controller(halfcheetah, goals.at_two, 0.1).sampler.config
    assert (config.solver, config.steps, config.objective_scale) == ("ddpm", 2, 0.1)
    assert {name: getattr(config, name) for name in goals.SAMPLER} == goals.SAMPLER


def test_the_rewards() -> None:
    observations = torch.zeros(1, 2, 17)
    observations[0, :, goals.SPEED] = torch.tensor([1.5, 3.0])
    observations[0, :, goals.HEIGHT] = torch.tensor([-0.1, 0.0])
    actions = torch.zeros(1, 2, 6)
    assert goals.at_two(observations, actions).tolist() == [[-0.5, -1.0]]
    assert goals.backwards(observations, actions).tolist() == [[-1.5, -3.0]]
    assert goals.low(observations, actions)[0].tolist() == pytest.approx([1.5, 2.0 - 2.5])


@pytest.mark.slow
def test_the_command(halfcheetah, hopper, tmp_path: Path) -> None:
    halfcheetah.save_pretrained(tmp_path / "halfcheetah")
    goals.main([str(tmp_path / "halfcheetah"), "--episodes", "2", "--steps", "4", "--page", str(tmp_path / "goals.md")])
    text = (tmp_path / "goals.md").read_text()
    assert "2 levels of ddpm" in text and "halfcheetah (f.hdf5, a stand-in, not d4rl's data)" in text
    assert text.count("| run at 2 m/s | -abs(v - 2) |") == 2 and "| as trained |  | 0 |" in text
    hopper(0).save_pretrained(tmp_path / "hopper")
    with pytest.raises(InputError, match="must be a pipeline of halfcheetah, found 'hopper'"):
        goals.main([str(tmp_path / "hopper")])
    load_pipeline.cache_clear()
