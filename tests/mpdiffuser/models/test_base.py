"""Every model is a network that can be saved, loaded and trained."""

from typing import Any

import numpy as np
import pytest
import torch

from mpdiffuser.methods.cloning import CloningPolicy
from mpdiffuser.models.base import Model
from mpdiffuser.models.denoisers import Dynamics, Planner
from mpdiffuser.models.ranker import Ranker
from mpdiffuser.schedule import NoiseSchedule

D, M, H = 3, 2, 8
SIZES = dict(latent_dim=D, action_dim=M, horizon=H, width=8, multipliers=(1, 2), embedding=16)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        (Planner(**SIZES, condition_dim=2), (normal(2, H, D + M), torch.tensor([0, 99]), normal(2, 2), torch.ones(2))),
        (Dynamics(**SIZES), (normal(2, H, D + M), torch.tensor([0, 99]))),
        (Ranker(D, M, hidden=16, costs=True), (normal(2, H, D), normal(2, H, M))),
        (CloningPolicy(D, M, hidden=16), (normal(2, D),)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, torch.nn.Module) else "",
)
def test_saving_and_loading(randomize, tmp_path, model: Any, inputs: tuple[torch.Tensor, ...]) -> None:
    randomize(model)
    for name in ("latents", "rewards"):
        if hasattr(model, name):
            getattr(model, name).fit(np.random.default_rng(0).normal(3, 2, (20, getattr(model, name).config["dim"])))
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert not loaded.training
    before, after = model(*inputs), loaded(*inputs)
    pairs = [(before[key], after[key]) for key in before] if isinstance(before, dict) else [(before, after)]
    assert all(torch.equal(a, b) for a, b in pairs)
    assert sorted(file.suffix for file in tmp_path.iterdir()) == [".json", ".safetensors"]


def test_a_model_draws_nothing_unless_it_says_so() -> None:
    assert Model().draw(4, NoiseSchedule(), torch.Generator()) == {}
