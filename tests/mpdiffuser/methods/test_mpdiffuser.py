"""The dynamics model's data."""

from dataclasses import replace

import numpy as np

from mpdiffuser.methods import METHODS, TrainingData, recipes_of
from mpdiffuser.methods.mpdiffuser import DYNAMICS
from mpdiffuser.methods.planner import RANKER
from mpdiffuser.models.normalizer import Normalizer
from mpdiffuser.models.ranker import Ranker
from mpdiffuser.schedule import NoiseSchedule


def test_dynamics_see_starts_as_often_as_occupancy_says(make_episodes) -> None:
    """Of 12 windows as many start at step t as g^t's share of them is, within one, whatever the rewards."""
    discount = 0.6
    episodes = make_episodes([12], terminated=[])
    settings = {"discount": discount, "horizon": 4, "stride": 1, "rounds": 1, "td_lambda": 0.9, "occupancy": 1.0}
    dims = [episodes[key].shape[1] for key in ("observations", "actions")]
    data = TrainingData(settings, (episodes, episodes), *map(Normalizer, dims), NoiseSchedule())
    ranker = Ranker(*dims, hidden=8, discount=discount)
    data.trained["ranker"] = RANKER.fit(lambda name, model, *examples: model, ranker, data)
    counts = np.bincount(DYNAMICS.examples(data, 0).starts.numpy(), minlength=12)
    due = discount ** np.arange(12)
    assert np.abs(counts - 12 * due / due.sum()).max() < 1  # drawn evenly, t = 0 is short of 3.8


def test_it_is_trained_and_evaluated_with_what_it_is_compared_with() -> None:
    method = METHODS["mpdiffuser"]
    assert list(recipes_of(["mpdiffuser"])) == ["ranker", "planner", "dynamics", "forward"]
    assert set(method.evaluated_with) == {"random", "cloning", "planner", "expert"}
    assert DYNAMICS.after == ("ranker",)


def test_it_draws_with_both_models_as_the_sampler_says(setup_of) -> None:
    """The planner alone, from the same settings, draws without the dynamics model."""
    setup = setup_of("mpdiffuser")
    assert METHODS["mpdiffuser"].prepare(setup) == (setup.pipeline, setup.sampler)
    assert METHODS["planner"].prepare(setup) == (setup.pipeline, replace(setup.sampler, composition="planner"))
