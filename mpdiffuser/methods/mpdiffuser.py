"""MPDiffuser (Balim, Li and Du 2025): denoising alternates between a planner and a dynamics model at every level."""

from mpdiffuser.methods.base import Planning, Recipe, TrainingData
from mpdiffuser.methods.planner import PLANNER, RANKER
from mpdiffuser.models.denoisers import Dynamics
from mpdiffuser.models.forward import ForwardModel
from mpdiffuser.windows import Mixture, Windows, step_rows


def dynamics_windows(data: TrainingData, part: int) -> Windows | Mixture:
    """Return the windows of one part, with those of the dynamics model's own data.

    The weight of the planner's windows is the frequency of their first row; returns have no effect.
    """
    own = data.windows(part, data.targets[part], data.condition, data.frequencies[part])
    return data.dynamics_windows(part, own)


DYNAMICS = Recipe(
    "dynamics",
    Dynamics,
    lambda data: Dynamics(**data.dims, horizon=data.settings["horizon"], **data.settings["dynamics"]),
    {"steps": 5000, "batch_size": 64, "learning_rate": 1e-3},
    dynamics_windows,
    after=("ranker",),
    sections=("dynamics",),
    own_seed=False,
    dynamics_data=True,
)


def build_forward(data: TrainingData) -> ForwardModel:
    """Build an untrained forward model with fitted normalisers."""
    model, episodes, rows = ForwardModel(**data.dims), data.parts[0], step_rows(data.parts[0])
    model.latents.fit(episodes["observations"])
    model.changes.fit(episodes["observations"][rows + 1] - episodes["observations"][rows])
    return model


FORWARD = Recipe(
    "forward",
    ForwardModel,
    build_forward,
    {"steps": 4000, "batch_size": 256, "learning_rate": 1e-3},
    TrainingData.dynamics_steps,
    dynamics_data=True,
    acts=False,  # it is for `mpdiffuser.adaptation`
)


class MPDiffuser(Planning):
    """Samples plans with both models and the settings of the section `sampler`."""

    name = "mpdiffuser"
    label = "MPDiffuser (planner + dynamics)"
    color = ("#2563b0", "#6ea8f0")
    summary = (
        "At each noise level, a planner moves the plans towards high return and a dynamics model makes their states "
        "consistent with their actions; a ranker then chooses one of them."
    )
    order = 91
    models = (RANKER, PLANNER, DYNAMICS, FORWARD)
    evaluated_with = ("random", "cloning", "planner", "expert")
