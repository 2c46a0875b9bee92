"""How much of a known state a probe finds in latents."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpdiffuser.episodes import Episodes
from mpdiffuser.errors import InputError
from vision import probe as module
from vision.probe import joint_targets, probe, report

JOINTS = [
    {"name": "rootx", "type": "slide", "position_index": 0, "velocity_index": 3},
    {"name": "rootz", "type": "slide", "position_index": 1, "velocity_index": 4},
    {"name": "hip", "type": "hinge", "position_index": 2, "velocity_index": 5},
]


@pytest.fixture
def moving(make_episodes: Any) -> Episodes:
    """Episodes with frames, and a physics state of random numbers."""
    episodes = make_episodes([6, 4, 5, 7], frame_size=32)
    random = np.random.default_rng(0)
    episodes.arrays["physics"] = random.normal(scale=3, size=(len(episodes["actions"]), 6))
    episodes.info["joints"] = JOINTS
    return episodes


def test_targets_are_what_a_camera_can_see(moving: Episodes) -> None:
    """Angles wind up, and the root's place along the ground is never in the picture."""
    found, physics = joint_targets(moving), moving["physics"]
    angle = physics[:, 2]
    np.testing.assert_allclose(found["positions"], np.stack([physics[:, 1], np.sin(angle), np.cos(angle)], 1))
    np.testing.assert_allclose(found["velocities"], physics[:, 3:])


@pytest.mark.parametrize("missing", ["physics", "joints"])
def test_a_dataset_without_a_physics_state(moving: Episodes, missing: str) -> None:
    del (moving.arrays if missing == "physics" else moving.info)[missing]
    with pytest.raises(InputError, match="holds no physics state to compare latents with"):
        joint_targets(moving)


def test_a_probe_finds_what_is_there_and_no_more() -> None:
    random = np.random.default_rng(0)
    latents = random.normal(size=(1500, 3))
    train = np.arange(1500) < 1000
    curved = np.stack([np.tanh(latents[:, 0]) + 0.3 * latents[:, 1] ** 2, latents[:, 2] - latents[:, 0]], 1)
    noise = random.normal(size=(1500, 2))
    assert probe(latents, curved, train, ~train, steps=100) > 0.95
    assert probe(latents, noise, train, ~train, steps=30) < 0.1
    half = probe(latents, curved + curved.std(0) * noise, train, ~train, steps=50)
    assert 0.35 < half < 0.6  # as much noise as signal
    assert probe(latents, curved, train, ~train, steps=5) == probe(latents, curved, train, ~train, steps=5)


def test_a_joint_that_never_moves_does_not_count() -> None:
    random = np.random.default_rng(0)
    latents, train = random.normal(size=(600, 2)), np.arange(600) < 400
    moves = latents @ np.array([[1.0], [2.0]])
    with_one_more = np.concatenate([moves, np.full((600, 1), 5.0)], 1)
    assert probe(latents, with_one_more, train, ~train, steps=60) > 0.95


def test_a_report_is_of_the_held_out_episodes(
    moving: Episodes, make_encoder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def noted(latents: np.ndarray, targets: np.ndarray, train: np.ndarray, held_out: np.ndarray) -> float:
        asked.append((latents.shape, targets.shape[1], train, held_out))
        return 0.12345

    monkeypatch.setattr(module, "probe", noted)
    found = report(make_encoder(), moving, tmp_path, 0.25, 3)
    assert found == {"episodes": 4, "held_out": 1, "r2": {"positions": 0.123, "velocities": 0.123}}
    rows = len(moving["actions"])
    assert [(shape, count) for shape, count, *_ in asked] == [((rows, 4), 3), ((rows, 4), 3)]
    _, _, train, held_out = asked[0]
    assert (train ^ held_out).all()
    assert np.unique(moving.episode_of_row[held_out]).tolist() == module.split_indices(4, 0.25, 3)[1].tolist()


def test_the_command(
    moving: Episodes, make_encoder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    moving.save(tmp_path / "data")
    make_encoder().save_pretrained(tmp_path / "run" / "encoder")
    monkeypatch.setattr(module, "probe", lambda *inputs: 0.5)
    assert not module.main([str(tmp_path / "run"), str(tmp_path / "data"), "--cache", str(tmp_path / "cache")])
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    expected = {"dataset": "data", "episodes": 4, "held_out": 1, "r2": {"positions": 0.5, "velocities": 0.5}}
    assert line == expected
    assert module.main([str(tmp_path), str(tmp_path / "data")]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path}: no encoder in this folder\n"
