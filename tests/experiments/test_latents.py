"""The latents' table on a tiny real run."""

from pathlib import Path

import pytest

from experiments import latents


@pytest.mark.slow
def test_a_tiny_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(latents.DATA, "cartpole_swingup", (4, 1.0))
    found = latents.measure("cartpole_swingup", "random", False, 2, tmp_path)
    assert found["frames"] == 4 * 26 and set(found["r2"]) == {"positions", "velocities"}
    written = tmp_path / "cartpole_swingup-random-without" / "latents.json"
    before = written.stat().st_mtime_ns
    assert latents.measure("cartpole_swingup", "random", False, 2, tmp_path) == found  # reused
    assert written.stat().st_mtime_ns == before
    text = latents.page({("cartpole_swingup", "random"): [found, found]}, 2)
    assert "1 of 8 parts" in text and f"| {found['r2']['velocities']:.3f} |" in text
