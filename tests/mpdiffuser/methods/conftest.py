"""What the tests of several methods share: a linear system, stubs of models, and folders with every model."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mpdiffuser.methods import METHODS, Baseline, Setup
from mpdiffuser.models.denoisers import Denoiser
from mpdiffuser.models.normalizer import Marginals
from mpdiffuser.pipeline import MPDiffuserPipeline
from mpdiffuser.plan import Plan
from mpdiffuser.sampler import SamplerConfig

D, M, H = 3, 2, 8
A = torch.tensor([[0.9, 0.2, 0.0], [-0.2, 0.9, 0.1], [0.0, 0.0, 0.7]])
B = torch.tensor([[0.5, 0.0], [0.0, 1.0], [0.3, -0.4]])


def rollout(present: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
    """States (B, H, D) of the system z' = A z + B u from present (B, D) under actions (B, H, M)."""
    states = [present]
    for k in range(actions.shape[1] - 1):
        states.append(states[-1] @ A.T + actions[:, k] @ B.T)
    return torch.stack(states, 1)


@pytest.fixture(scope="session")
def system() -> SimpleNamespace:
    """A linear system: A, B and `rollout(present, actions)`."""
    return SimpleNamespace(A=A, B=B, rollout=rollout)


@pytest.fixture(scope="session")
def noise_from() -> Callable[[int, int], Callable[[], torch.Tensor]]:
    """(seed, batch) -> a function that gives noise (batch, H, D + M) each time it is called."""

    def make(seed: int, batch: int) -> Callable[[], torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return lambda: torch.randn(batch, H, D + M, generator=generator)

    return make


def stub_of(call: Callable[..., torch.Tensor], **config: Any) -> Any:
    """What a sampler needs of a model that predicts clean data."""

    class Stub(Denoiser):
        def __init__(self) -> None:
            self.config = {"prediction": "sample", "latent_dim": D, **config}

        def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
            return call(*inputs)

    return Stub()


@pytest.fixture(scope="session")
def stub() -> Callable[..., Any]:
    """See `stub_of`."""
    return stub_of


@pytest.fixture(scope="session")
def whole_folder(make_folder, make_pipeline, tmp_path_factory) -> Path:
    """A pipeline folder with the models of all methods; never written to."""
    info = {"task": "none", "data": "abc", "episode_steps": 100, "distilled": {"temperature": 0.5}}
    returns = Marginals(1).fit(np.linspace(0, 10, 1001))
    pipeline = make_pipeline(info=info, sampler={"steps": 3, "candidates": 2})
    return make_folder(tmp_path_factory.mktemp("all") / "pipeline", list(METHODS), pipeline, logged_returns=returns)


@pytest.fixture
def setup_of(whole_folder: Path) -> Callable[..., Setup]:
    """Name of a method, and settings of its section -> what its policy is made from."""

    def make(name: str, **options: Any) -> Setup:
        pipeline = MPDiffuserPipeline.from_pretrained(whole_folder)
        fields = {key: options.pop(key) for key in ("limit", "safety_probability", "expert") if key in options}
        section = dict(METHODS[name].settings) | options
        return Setup(pipeline, whole_folder, pipeline.sampler_defaults, section, **fields)

    return make


@pytest.fixture
def load_baseline(setup_of) -> Callable[[str], Baseline]:
    """Name -> the baseline, with its models from the folder."""

    def make(name: str) -> Baseline:
        method = METHODS[name]
        assert issubclass(method, Baseline)
        return method.load(setup_of(name))

    return make


@pytest.fixture(scope="session")
def plan_of() -> Callable[..., Plan]:
    """(baseline, seed, settings of its section) -> 4 candidate plans from each of 2 latents."""

    def make(baseline: Baseline, seed: int = 0, **settings: Any) -> Plan:
        config: SamplerConfig = baseline.sampler_config({"steps": 3, "candidates": 4, **settings})
        generators = [torch.Generator().manual_seed(seed + i) for i in range(2)]
        latents = torch.randn(2, D, generator=torch.Generator().manual_seed(9))
        return baseline(latents, baseline.sampler(config), generators)

    return make
