"""Two cameras and a measured arm: the recordings, the regression, and the whole command at the smallest size."""

import re
from pathlib import Path

import numpy as np
import pytest

from experiments import cameras
from mpdiffuser.record import PICTURE, PROPRIOCEPTION


def test_the_recordings() -> None:
    data, target = cameras.recordings(7, episodes=3, steps=5)
    assert data.record.names(PICTURE) == ["front", "side"] and data.record.names(PROPRIOCEPTION) == ["observations"]
    assert data.info["missing"] == ["rewards"] and len(data) == 3 and len(target) == 18
    for e in range(3):
        rows = data.rows(e)
        arm, way = data["observations"][rows], (target - data["observations"])[rows]
        np.testing.assert_allclose(data["actions"][rows][:-1], np.clip(way, -1, 1)[:-1], atol=1e-5)
        assert not data["actions"][rows][-1].any()
        moved = np.abs(np.diff(arm, axis=0) - data["actions"][rows][:-1])
        assert 0 < moved.mean() < 0.3  # but for a little noise
    row, column = (each.mean() for each in np.nonzero((data["front"][4] == cameras.COLORS["arm"]).all(-1)))
    x, y = data["observations"][4] * 2.1  # (48 - 6) pixels for 20 degrees
    assert abs(row - (48 + y)) < 1 and abs(column - (64 + x * 128 / 96)) < 1


def test_a_regression() -> None:
    random = np.random.default_rng(0)
    inputs = random.normal(size=(200, 3))
    exact, noise = inputs @ random.normal(size=(3, 2)) + 5, random.normal(size=(200, 2))
    train, held_out = np.arange(150), np.arange(150, 200)
    assert cameras.linear_r2(inputs, exact, train, held_out) == pytest.approx(1)
    assert cameras.linear_r2(inputs, noise, train, held_out) < 0.1
    half = np.stack([exact[:, 0], noise[:, 0]], 1)
    assert 0.4 < cameras.linear_r2(inputs, half, train, held_out) < 0.55


@pytest.mark.slow
def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = cameras.recordings
    monkeypatch.setattr(cameras, "TRAINING", 6)
    monkeypatch.setattr(cameras, "recordings", lambda seed: draw(seed, episodes=10, steps=12))
    page = tmp_path / "page.md"
    arguments = ["--data-seeds", "3", "--seeds", "0", "1", "--folder", str(tmp_path), "--page", str(page), "--set"]
    arguments += ["train.representation.steps=3", "validation=0.4"]
    arguments += ["encoder=conv", "encoder.trainable=false", "encoder.pool=2"]
    cameras.main(arguments)
    rows = re.findall(r"^\| 3 \| (\d) \| (\S+) \| (\S+) \| (\S+) \|", page.read_text(), re.MULTILINE)
    assert [seed for seed, *_ in rows] == ["0", "1"]
    assert all(float(arm) > 0.99 and float(found) < 0.9 for _, arm, found, _ in rows)
    before = page.read_text()
    cameras.main(arguments)  # reuses the results
    assert page.read_text() == before
