"""MPDiffuser (Balim, Li and Du 2025): denoising alternates between a planner and a dynamics model at every level."""

from mpdiffuser.methods.base import Planning
from mpdiffuser.methods.planner import FORWARD, PLANNER, RANKER
from mpdiffuser.models.denoisers import Dynamics
from mpdiffuser.recipe import Recipe, TrainingData
from mpdiffuser.windows import Mixture, Windows


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


class MPDiffuser(Planning):
    """Samples plans with both models and the settings of the section `sampler`."""

    name = "mpdiffuser"
    label = "MPDiffuser (planner + dynamics)"
    color = ("#2563b0", "#6ea8f0")
    summary = (
        "At each noise level, a planner moves the plans towards high return and a dynamics model makes their states "
        "consistent with their actions; the mean of the candidates is executed."
    )
    order = 91
    models = (RANKER, PLANNER, DYNAMICS, FORWARD)
    evaluated_with = ("random", "cloning", "planner", "expert")
