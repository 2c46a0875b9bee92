"""The planner alone: MPDiffuser without its dynamics model, on the same planner and ranker."""

from dataclasses import replace

import numpy as np

from mpdiffuser.methods.base import Fit, Planning, Recipe, Setup, TrainingData, joined_targets
from mpdiffuser.models.denoisers import Planner
from mpdiffuser.models.ranker import Ranker
from mpdiffuser.pipeline import MPDiffuserPipeline
from mpdiffuser.sampler import SamplerConfig
from mpdiffuser.windows import Steps, Windows, occupancy, step_rows, to_go


def build_ranker(data: TrainingData) -> Ranker:
    costs, discount = data.costs[0] is not None, data.settings["discount"]
    return Ranker(**data.dims, discount=discount, costs=costs, **data.settings["ranker"])


def fit_ranker(fit: Fit, ranker: Ranker, data: TrainingData) -> Ranker:
    """Fitted value iteration: each round learns the TD(lambda) returns that use the values of the round before.

    The data hold good beginnings with bad ends, and the other way round. A ranker of the logged returns would blame the
    beginning for the end. With each round the values come nearer to those of the best behaviour that the data can be
    combined to. The targets of the last round, (M, c) for each part, and the row frequencies (M,) are left for the
    planner in data.shared.
    """
    settings, parts, costs = data.settings, data.parts, data.costs
    discount, rounds = settings["discount"], settings["rounds"]
    frequencies = [occupancy(part, discount, settings["occupancy"]) for part in parts]
    rows = step_rows(parts[0])
    ranker.latents.fit(parts[0]["observations"])
    ranker.rewards.fit(parts[0]["rewards"][rows])
    if ranker.cost_scale is not None and costs[0] is not None:
        ranker.cost_scale.fit(costs[0][rows])
    returns = [to_go(part["rewards"], part, discount) for part in parts]
    for number in range(1, rounds + 1):
        ranker.returns.fit(returns[0][rows])
        steps = [Steps(*each) for each in zip(parts, returns, costs, frequencies)]
        fit("ranker" if number == rounds else f"ranker/round_{number}", ranker, *steps)
        if number < rounds:
            returns = returns_from_values(ranker, data, settings["td_lambda"])
    targets = [joined_targets(*each) for each in zip(returns, costs)]
    data.shared |= {"targets": targets, "condition": data.condition_of(targets), "frequencies": frequencies}
    return ranker


def returns_from_values(ranker: Ranker, data: TrainingData, td_lambda: float) -> list[np.ndarray]:
    """TD(lambda) returns (M,) of each part, with the ranker's values."""
    values = [ranker.values(part["observations"], cost) for part, cost in zip(data.parts, data.costs)]
    discount = ranker.config["discount"]
    return [to_go(part["rewards"], part, discount, value, td_lambda) for part, value in zip(data.parts, values)]


def advantage_weights(
    ranker: Ranker, data: TrainingData, gae_lambda: float, temperature: float, bound: float
) -> list[np.ndarray]:
    """Weights (M,) of the windows that start at each row, for each part: exp(A / temperature), at most exp(bound).

    A is the generalised advantage estimate (Schulman et al. 2016), the TD(lambda) return less the value at the row's
    own cost_to_go, in standard deviations of the training data. Weighting data by its exponential is the policy
    improvement of Peters and Schaal (2007) and Peng et al. (2019).
    """
    values = [ranker.values(part["observations"], cost) for part, cost in zip(data.parts, data.costs)]
    returns = returns_from_values(ranker, data, gae_lambda)
    advantages = [after - before for after, before in zip(returns, values)]
    scale = temperature * max(float(advantages[0][step_rows(data.parts[0])].std()), 1e-8)
    # without the bound a few windows would crowd out all others
    return [np.exp(np.clip(advantage / scale, -8, bound)) for advantage in advantages]


def planner_windows(data: TrainingData, part: int) -> Windows:
    """Windows in proportion to their row's frequency and to the advantage of what follows."""
    if "weights" not in data.shared:
        weights = advantage_weights(data.trained["ranker"], data, **data.settings["advantage"])
        data.shared["weights"] = [weight * often for weight, often in zip(weights, data.shared["frequencies"])]
    shared = data.shared
    return data.windows(part, shared["targets"][part], shared["condition"], shared["weights"][part])


def build_planner(data: TrainingData) -> Planner:
    horizon, sizes = data.settings["horizon"], data.settings["planner"]
    return Planner(**data.dims, horizon=horizon, condition_dim=data.target_dim, **sizes)


RANKER = Recipe(
    "ranker",
    Ranker,
    build_ranker,
    {"steps": 1200, "batch_size": 512, "learning_rate": 1e-3},
    sections=("ranker",),
    own_seed=False,
    fit_with=fit_ranker,
)
PLANNER = Recipe(
    "planner",
    Planner,
    build_planner,
    {"steps": 8000, "batch_size": 128, "learning_rate": 1e-3},
    planner_windows,
    after=("ranker",),
    sections=("planner", "advantage"),
    own_seed=False,
)


class PlannerOnly(Planning):
    """Plans from the planner's estimates alone."""

    name = "planner"
    label = "planner only"
    color = ("#c8641b", "#eb9a5c")
    summary = "MPDiffuser without the dynamics model's part in each update."
    order = 90
    models = (RANKER, PLANNER)

    @classmethod
    def prepare(cls, setup: Setup) -> tuple[MPDiffuserPipeline, SamplerConfig]:
        return setup.pipeline, replace(setup.sampler, composition="planner")
