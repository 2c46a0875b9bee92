"""Seven tasks: the table, and the picture of a film."""

from pathlib import Path

import imageio.v2 as imageio
import numpy as np
import pytest

from evaluation.video import Film, write_video
from experiments import seven_tasks
from mpdiffuser.errors import InputError


def metrics(**returns: list[float]) -> dict:
    methods = {name: {"returns": each} for name, each in returns.items()}
    return {
        "methods": methods,
        "seeds": [0, 1],
        "core_seconds": {"representation": 60, "planner": 90},
    }


def test_the_page() -> None:
    rows = {"cloning": [100.0, 200.0], "planner": [300.0, 300.0], "mpdiffuser": [400.0, 400.0]}
    found = {"pixels": [metrics(expert=[800.0, 800.0], **rows)], "states": [metrics(**rows)]}
    text = seven_tasks.page({"cartpole_swingup": found}, [0])
    line = next(line for line in text.splitlines() if line.startswith("| cartpole_swingup"))
    cells = ["150 ± 50 (19 %)", "300 ± 0 (38 %)", "400 ± 0 (50 %)"]
    assert line == "| " + " | ".join(["cartpole_swingup", "100", "800", *cells, *cells, "2"]) + " |"
    assert "![cartpole_swingup: plans and what came](seven_tasks-cartpole_swingup.png)" in text


def test_the_picture_is_a_moment_of_the_film(tmp_path: Path) -> None:
    brightness = np.arange(0, 2000, 10).clip(max=250).astype(np.uint8)
    frames = np.broadcast_to(brightness[:, None, None, None], (200, 16, 16, 3))
    write_video(tmp_path / "video.mp4", [Film(frames)], 10)
    seven_tasks.picture(tmp_path / "video.mp4", tmp_path / "picture.png")
    image = imageio.imread(tmp_path / "picture.png")
    assert abs(int(image[150, 100, 0]) - 100) < 8  # the eleventh of 200 frames


def test_the_dataset_of_the_states_is_that_of_the_pixels(tmp_path: Path) -> None:
    name = "walker_walk-expert-ar2-100ep-seed0"
    with pytest.raises(InputError, match=r"must have one dataset walker_walk-expert-ar.*found 0"):
        seven_tasks.collected("walker_walk", tmp_path)
    (tmp_path / name).mkdir()
    assert seven_tasks.collected("walker_walk", tmp_path) == tmp_path / name
