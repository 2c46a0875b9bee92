"""Shared by all tests: one thread, the same examples every time, small datasets, and small untrained pipelines."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start
os.environ["HF_HUB_OFFLINE"] = "1"

import hypothesis
import numpy as np
import pytest
import torch

from mpdiffuser import engines
from mpdiffuser.episodes import Episodes
from mpdiffuser.record import PICTURE, TRUE_STATE, Actions, Observation, Record

if TYPE_CHECKING:
    from mpdiffuser.pipeline import MPDiffuserPipeline

torch.set_num_threads(1)
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("repeatable")

SIZES: dict[str, Any] = {"width": 8, "multipliers": (1, 2), "embedding": 16}  # of the tiny denoisers


def episodes_of(
    lengths: Sequence[int],
    latent_dim: int = 3,
    action_dim: int = 2,
    terminated: Sequence[int] = (),
    costs: bool = False,
    frame_size: int = 0,
    seed: int = 0,
) -> Episodes:
    """Episodes of random numbers with `lengths` steps; those in `terminated` terminate, others are truncated.

    `observations` are true states, and the actions' declared bounds are -1 and 1.
    """
    random = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(np.array(lengths) + 1)])
    rows = int(offsets[-1])
    arrays: dict[str, np.ndarray] = {
        "observations": random.normal(size=(rows, latent_dim)).astype(np.float32),
        "actions": random.uniform(-1, 1, (rows, action_dim)).astype(np.float32),
        "rewards": random.normal(size=rows).astype(np.float32),
        "terminations": np.zeros(rows, bool),
        "truncations": np.zeros(rows, bool),
    }
    if costs:
        arrays["costs"] = random.uniform(size=rows).astype(np.float32)
    if frame_size:
        arrays["frames"] = random.integers(0, 256, (rows, frame_size, frame_size, 3), np.uint8)
    for e, end in enumerate(offsets[1:]):
        for key in ("actions", "rewards", "costs"):
            if key in arrays:
                arrays[key][end - 1] = 0
        arrays["terminations" if e in terminated else "truncations"][end - 2] = True
    observations = {"observations": Observation(TRUE_STATE, (latent_dim,))}
    if frame_size:
        observations["frames"] = Observation(PICTURE, (frame_size, frame_size, 3))
    return Episodes(arrays, offsets, record=Record(observations, Actions.unit(action_dim)))


def randomized(model: torch.nn.Module, seed: int = 0, scale: float = 0.3) -> torch.nn.Module:
    """The model with every trained parameter drawn anew: the denoisers are made with a last layer of zeros."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def pipeline_of(
    latent_dim: int = 3,
    action_dim: int = 2,
    horizon: int = 8,
    *,
    costs: bool = False,
    levels: int = 50,
    seed: int = 0,
    info: Mapping[str, Any] | None = None,
    sampler: Mapping[str, Any] | None = None,
    sizes: Mapping[str, Any] | None = None,
    **components: Any,
) -> "MPDiffuserPipeline":
    """A tiny pipeline of random weights, from states unless it is given another encoder.

    Args:
        costs: whether its ranker and planner know costs.
        levels: of the noise schedule.
        seed: of the weights and of the data that the normalisers are fitted to.
        info: None: a task and a checksum. sampler: settings that are saved with it.
        sizes: of planner and dynamics model, in place of SIZES.
        components: in place of the tiny ones, such as encoder=..., planner=None.
    """
    # here and below: most test files need none of these, and they take seconds
    from mpdiffuser.models.denoisers import Dynamics, Planner
    from mpdiffuser.models.forward import ForwardModel
    from mpdiffuser.models.normalizer import Marginals, Normalizer
    from mpdiffuser.models.ranker import Ranker
    from mpdiffuser.pipeline import MPDiffuserPipeline
    from mpdiffuser.schedule import NoiseSchedule
    from vision.encoder import IdentityEncoder

    random = np.random.default_rng(seed)
    latents = random.normal(np.resize([0, 5, -1], latent_dim), np.resize([1, 2, 0.1], latent_dim), (200, latent_dim))
    targets = random.uniform(0, 1, (200, 2)) if costs else random.normal(size=(200, 1))
    shape = {"latent_dim": latent_dim, "action_dim": action_dim, "horizon": horizon, **SIZES, **(sizes or {})}
    ranker = randomized(Ranker(latent_dim, action_dim, hidden=16, costs=costs), seed=seed + 4)
    ranker.latents.fit(latents)
    ranker.rewards.fit(random.normal(size=(50, 1)))
    ranker.returns.fit(targets[:, :1])
    if costs:
        ranker.cost_scale.fit(targets[:, 1])
    parts = {
        "encoder": IdentityEncoder(latent_dim, action_dim),
        "latents": Normalizer(latent_dim).fit(latents),
        "actions": Normalizer(action_dim).fit(random.uniform(-0.9, 0.9, (200, action_dim))),
        "condition": Marginals(targets.shape[1]).fit(targets),
        "planner": randomized(Planner(**shape, condition_dim=targets.shape[1]), seed=seed + 1),
        "dynamics": randomized(Dynamics(**shape), seed=seed + 2),
        "ranker": ranker,
        "forward": randomized(ForwardModel(latent_dim, action_dim, hidden=16), seed=seed + 3),
        "schedule": NoiseSchedule(levels),
    }
    info = {"task": "none", "data": "abc"} if info is None else dict(info)
    return MPDiffuserPipeline(**parts | components, sampler_defaults=sampler and dict(sampler), info=info)


def models_of(methods: Sequence[str], latent_dim: int = 3, action_dim: int = 2) -> dict[str, Any]:
    """Name -> tiny model of random weights, of all models that the methods train beside the pipeline's components."""
    from mpdiffuser.config import load, settings
    from mpdiffuser.methods import recipes_of
    from mpdiffuser.training import COMPONENTS, training_data

    small = [f"{part}.{key}={value}" for part in ("planner", "dynamics") for key, value in SIZES.items()]
    small = [word.replace("(", "[").replace(")", "]").replace(" ", "") for word in small]
    cfg = load("state", [*small, "horizon=8", "ranker.hidden=16", "baselines.iql.hidden=16"])
    episodes, recipes = episodes_of([12, 9, 10], latent_dim, action_dim), recipes_of(methods)
    data = training_data(cfg, episodes)
    for number, recipe in enumerate(recipes.values()):
        view = data.limited_to(recipe.settings(settings(cfg), data.settings))
        data.trained[recipe.name] = randomized(recipe.build(view), seed=number)
    return {name: model for name, model in data.trained.items() if name not in COMPONENTS}


def folder_of(
    folder: Path, methods: Sequence[str] = ("cloning",), pipeline: "MPDiffuserPipeline | None" = None, **models: Any
) -> Path:
    """A folder of a pipeline (None: a tiny one) and the models of these methods; `models` replace some, by name."""
    from mpdiffuser.training import save_whole

    pipeline = pipeline or pipeline_of()
    dims = [getattr(pipeline, name).config["dim"] for name in ("latents", "actions")]
    save_whole(pipeline, models_of(methods, *dims) | models, folder)
    return folder


@pytest.fixture(scope="session")
def make_episodes() -> Callable[..., Episodes]:
    """See `episodes_of`."""
    return episodes_of


@pytest.fixture(scope="session")
def randomize() -> Callable[..., torch.nn.Module]:
    """See `randomized`."""
    return randomized


@pytest.fixture(scope="session")
def make_pipeline() -> Callable[..., "MPDiffuserPipeline"]:
    """See `pipeline_of`."""
    return pipeline_of


@pytest.fixture
def tiny_pipeline() -> "MPDiffuserPipeline":
    """A pipeline of its own for each test: latents of 3, actions of 2, horizon 8."""
    return pipeline_of()


@pytest.fixture(scope="session")
def make_folder() -> Callable[..., Path]:
    """See `folder_of`."""
    return folder_of


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a program's main function with options: exit status, standard output, standard error."""

    def run_main(module: Any, *options: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["program.py", *options])
        status = 0
        try:
            module.main()
        except SystemExit as ended:
            status = int(ended.code or 0)
        return status, *capsys.readouterr()

    return run_main


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """engine=auto is torch in tests: compiling each small pipeline anew would take most of their time."""
    monkeypatch.setattr(engines, "FASTEST", ())
