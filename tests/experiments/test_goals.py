"""Goals at run time: the rewards, the distances, and the command on a tiny file."""

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from experiments import goals


def test_the_rewards_and_distances() -> None:
    observations = torch.zeros(1, 2, 17)
    observations[0, :, goals.SPEED] = torch.tensor([1.5, 3.0])
    observations[0, :, goals.HEIGHT] = torch.tensor([-0.1, -0.2])
    actions = torch.zeros(1, 2, 6)
    expected = {
        "run at 2 m/s": ([-0.5, -1.0], [0.5, 1.0]),
        "keep low": ([1.0 - 2.0, 1.0], [0.1, 0.0]),
        "fast, not above 1.5 m/s": ([1.5, 3.0 - 15.0], [0.0, 0.0]),
    }
    for name, (rewards, distances) in expected.items():
        goal = goals.GOALS[name]
        assert goal.objective(observations, actions)[0].tolist() == pytest.approx(rewards)
        assert goal.distance(observations.numpy())[0].tolist() == pytest.approx(distances, abs=1e-6)
    observations[0, 0, goals.SPEED] = 1.0
    assert goals.GOALS["fast, not above 1.5 m/s"].distance(observations.numpy())[0, 0] == pytest.approx(0.5)


@pytest.mark.slow
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    random, rows = np.random.default_rng(0), 200
    with h5py.File(tmp_path / "SafetyHalfCheetahVelocity.hdf5", "w") as file:
        for key, shape in (("observations", (rows, 17)), ("next_observations", (rows, 17)), ("actions", (rows, 6))):
            file[key] = random.uniform(-1, 1, shape).astype(np.float32)
        for key in ("rewards", "costs"):
            file[key] = random.uniform(size=rows).astype(np.float32)
        file["terminals"], file["timeouts"] = np.zeros(rows, bool), np.arange(rows) % 20 == 19
    options = ["sampler.engine=torch", "rounds=1", "horizon=8", "ranker.hidden=16", "validation=0.3"]
    options += [f"{model}.{option}" for model in ("planner", "dynamics") for option in ("width=8", "multipliers=[1,2]")]
    options += [f"train.{model}.steps=3" for model in ("cloning", "ranker", "planner", "dynamics", "forward")]
    arguments = ["--data-dir", str(tmp_path), "--goals", "run at 2 m/s", "fast, not above 1.5 m/s", "--seeds", "0"]
    arguments += ["--episodes", "2", "--steps", "4", "--folder", str(tmp_path / "runs")]
    goals.main([*arguments, "--page", str(tmp_path / "goals.md"), "--set", *options])
    lines = [line for line in (tmp_path / "goals.md").read_text().splitlines() if line.startswith("| run at 2")]
    assert len(lines) == 6 and lines[0].startswith("| run at 2 m/s | -abs(v - 2) | 0 | planner only | ")
    assert (tmp_path / "goals.md").read_text().count(" % |") == 6
    capsys.readouterr()
    goals.main([*arguments, "--page", str(tmp_path / "goals.md"), "--set", *options])  # reuses the results
    assert "step" not in capsys.readouterr().err
