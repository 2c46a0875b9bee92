"""Films of trained methods: from states and from pixels, and where nothing can be seen."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import numpy as np
import pytest

from envs.record import GivenRecord
from envs.vector import VectorEnv
from evaluation.closed_loop import Outcome
from evaluation.film import film_every, film_of, write_film
from mpdiffuser.methods import METHODS, Setup
from mpdiffuser.pipeline import MPDiffuserPipeline

HOPPER = {"kind": "gymnasium", "env_id": "Hopper-v4"}
ROWS = ("planner", "mpdiffuser")


@pytest.fixture
def shown(make_pipeline: Callable[..., MPDiffuserPipeline]) -> dict[str, tuple[Any, Setup]]:
    """Two methods of an untrained pipeline for Hopper."""
    pipeline = make_pipeline(11, 3, levels=100, info={"environment": HOPPER}, sampler={"steps": 1})
    return {name: (METHODS[name], Setup(pipeline, Path(), pipeline.sampler_defaults, {})) for name in ROWS}


def test_a_film_from_states(shown: dict[str, tuple[Any, Setup]], tmp_path: Path) -> None:
    file = tmp_path / "video.mp4"
    write_film(file, HOPPER, shown, 3, max_decisions=20)
    video = np.stack(list(imageio.get_reader(file).iter_data()))
    assert 1 <= len(video) <= 4  # every fifth decision of 0.008 s
    assert np.ptp(video[0].reshape(-1, 3), 0).min() > 100  # something is drawn
    file.write_bytes(b"a film of other weights")
    write_film(file, HOPPER, shown, 3, max_decisions=20)
    assert len(list(imageio.get_reader(file).iter_data())) == len(video)
    write_film(tmp_path / "none.mp4", HOPPER, {}, 3)
    assert list(tmp_path.iterdir()) == [file]


OWN = """
import gymnasium
import numpy as np


class Seen(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1, 1, (2,))
    action_space = gymnasium.spaces.Box(-1, 1, (1,))

    def __init__(self, mode, fails=False):
        self.render_mode, self.fails = mode, fails

    def reset(self, **options):
        return np.zeros(2, np.float32), {}

    def render(self):
        if self.fails:
            raise ValueError("no screen")
        return np.full((8, 8, 3), 7, np.uint8)


def seen():
    return Seen("rgb_array")


def unseen():
    return Seen(None)


def failing():
    return Seen("rgb_array", fails=True)
"""  # a file of its own: the environments' process need not import the test


@pytest.mark.parametrize(("name", "every"), [("seen", 1), ("unseen", 0), ("failing", 0)])
def test_pictures_of_own_environments(
    name: str, every: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "filmed.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    environment = VectorEnv(GivenRecord(kind="user", factory=f"filmed:{name}"), 1, 1)
    try:
        assert film_every(environment) == every
        if every:
            np.testing.assert_array_equal(environment.render_first(), np.full((8, 8, 3), 7, np.uint8))
    finally:
        environment.close()
    assert ("note: no video: ValueError: no screen" in capsys.readouterr().out) == (name == "failing")


class Decoder:
    """Draws the first number of a latent as grey."""

    device = "cpu"

    def frames(self, latents: Any) -> Any:
        return latents[:, :1, None, None].expand(-1, 4, 4, 3).byte()


def test_plans_are_decoded_at_the_steps_ahead() -> None:
    plan = np.arange(10, dtype=np.float32)[:, None]
    scene = {"return": 3.4, "frame": np.zeros((4, 4, 3), np.uint8), "plan": plan}
    outcome = Outcome(np.zeros(1), np.zeros(1, int), np.zeros(1), 0.0, 1, film=[scene, scene | {"plan": plan + 100}])
    outcome.film_every = 1
    film = film_of(outcome, "mine", Decoder())
    assert film.steps_ahead == [2, 4, 8] and film.imagined is not None
    assert film.imagined[:, :, 0, 0, 0].tolist() == [[2, 4, 8], [102, 104, 108]]
    assert film.captions == ["decision 0, return so far 3", "decision 1, return so far 3"] and film.title == "mine"
    strided = film_of(outcome, "mine", Decoder(), stride=3)  # row k of a plan is 3 k decisions ahead
    assert strided.steps_ahead == [6, 12, 24]
    np.testing.assert_array_equal(strided.imagined, film.imagined)
    assert film_of(outcome, "mine", None).imagined is None
    outcome.film_every = 8
    assert film_of(outcome, "mine", Decoder()).steps_ahead == [8]
