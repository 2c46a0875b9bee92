"""Recipes, and the data that they share."""

import numpy as np
import pytest

from mpdiffuser.config import load, settings
from mpdiffuser.methods import METHODS, recipes_of
from mpdiffuser.training import common_options, training_data

D, M = 3, 2


def test_a_recipe_sees_its_settings_and_no_others(make_episodes) -> None:
    """So what is not part of a model's identity cannot change the model."""
    cfg = load("state", ["task=d4rl/hopper-medium-v2"])
    data, options = training_data(cfg, make_episodes([9, 8, 7])), settings(cfg)
    for recipe in recipes_of(METHODS).values():
        view = data.limited_to(recipe.settings(options, common_options(cfg)))
        own = {*common_options(cfg), *recipe.sections, *(recipe.options(options) if recipe.options else ())}
        assert set(view.settings) == own
        for key in {"output_dir", "processes", "sampler", "evaluation", "train", "baselines", "task"} - own:
            with pytest.raises(KeyError):
                view.settings[key]
    ranker = recipes_of(["planner"])["ranker"]
    assert "planner" not in data.limited_to(ranker.settings(options, common_options(cfg))).settings


def test_targets_and_costs_of_the_data(make_episodes) -> None:
    cfg = load("state", ["task=d4rl/hopper-medium-v2"])
    plain, costly = (training_data(cfg, make_episodes([9, 8, 7], costs=costs)) for costs in (False, True))
    assert (plain.target_dim, costly.target_dim) == (1, 2)
    assert plain.costs == [None, None] and costly.costs[0] is not None
    np.testing.assert_array_equal(costly.logged_targets[0][:, 1], costly.costs[0])
    assert plain.dims == {"latent_dim": D, "action_dim": M}
