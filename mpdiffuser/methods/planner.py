"""The planner only: MPDiffuser without its dynamics model, with the same planner and ranker."""

from dataclasses import replace

import numpy as np

from mpdiffuser.methods.base import Planning, Setup
from mpdiffuser.models.denoisers import Planner
from mpdiffuser.models.forward import ForwardModel
from mpdiffuser.models.ranker import Ranker
from mpdiffuser.pipeline import MPDiffuserPipeline
from mpdiffuser.recipe import Fit, Recipe, TrainingData, joined_targets
from mpdiffuser.sampler import SamplerConfig
from mpdiffuser.windows import Steps, Windows, step_rows, to_go


def build_ranker(data: TrainingData) -> Ranker:
    """Build an untrained ranker; it predicts costs if the data have costs."""
    costs, discount = data.costs[0] is not None, data.discount
    return Ranker(**data.dims, discount=discount, costs=costs, **data.settings["ranker"])


def fit_ranker(fit: Fit, ranker: Ranker, data: TrainingData) -> Ranker:
    """Train the ranker by fitted value iteration.

    Each round learns TD(lambda) returns that use the values of the previous round. Some episodes have good first steps
    and bad last steps. A logged return then gives a low value to good first steps. With each round the values approach
    those of the best behaviour that combines parts of the data.

    The planner's data use the targets of the last round, (M, c) for each part, from data.shared.
    """
    settings, parts, costs = data.settings, data.parts, data.costs
    rounds, rows = settings["rounds"], step_rows(parts[0])
    ranker.latents.fit(parts[0]["observations"])
    ranker.rewards.fit(parts[0]["rewards"][rows])
    if ranker.cost_scale is not None and costs[0] is not None:
        ranker.cost_scale.fit(costs[0][rows])
    returns = [targets[:, 0] for targets in data.logged_targets]
    for number in range(1, rounds + 1):
        ranker.returns.fit(returns[0][rows])
        steps = [Steps(*each) for each in zip(parts, returns, costs, data.frequencies)]
        fit("ranker" if number == rounds else f"ranker/round_{number}", ranker, *steps)
        if number < rounds:
            returns = returns_from_values(ranker, data, settings["td_lambda"])
    targets = [joined_targets(*each) for each in zip(returns, costs)]
    data.shared |= {"targets": targets, "condition": data.condition_of(targets)}
    return ranker


def returns_from_values(ranker: Ranker, data: TrainingData, td_lambda: float) -> list[np.ndarray]:
    """Return the TD(lambda) returns (M,) of each part, with the ranker's values."""
    values = [ranker.values(part["observations"], cost) for part, cost in zip(data.parts, data.costs)]
    discount = ranker.config["discount"]
    return [to_go(part["rewards"], part, discount, value, td_lambda) for part, value in zip(data.parts, values)]


def advantage_weights(
    ranker: Ranker, data: TrainingData, gae_lambda: float, temperature: float, bound: float
) -> list[np.ndarray]:
    """Return the weights (M,) of the windows that start at each row, for each part: exp(A / temperature).

    A is the generalised advantage estimate (Schulman et al. 2016): the TD(lambda) return minus the value at the row's
    cost_to_go, in standard deviations of the training data. This weighting is the policy improvement of Peters and
    Schaal (2007) and Peng et al. (2019).

    Args:
        ranker: the trained ranker.
        data: the training data.
        gae_lambda: lambda of the advantage estimate.
        temperature: see above; a large value gives equal weights.
        bound: the largest weight is exp(bound).
    """
    values = [ranker.values(part["observations"], cost) for part, cost in zip(data.parts, data.costs)]
    returns = returns_from_values(ranker, data, gae_lambda)
    advantages = [after - before for after, before in zip(returns, values)]
    scale = temperature * max(float(advantages[0][step_rows(data.parts[0])].std()), 1e-8)
    # without the bound a few windows would have almost all the weight
    return [np.exp(np.clip(advantage / scale, -8, bound)) for advantage in advantages]


def episode_weights(ranker: Ranker, data: TrainingData, temperature: float, bound: float) -> list[np.ndarray]:
    """Return the weights (M,) of the rows' episodes, for each part: exp(A / temperature), equal within an episode.

    A is the episode's advantage: its logged return minus the value of its first state, less the mean over the rows, in
    standard deviations over the rows. Both have the cost_to_go of the first row. This is the trajectory weighting of
    Hong et al. (2023). An advantage over a few decisions does not tell which of two behaviours falls later.

    Args:
        ranker: the trained ranker.
        data: the training data.
        temperature: see above; a large value gives equal weights.
        bound: the largest weight is exp(bound).
    """
    advantages = []
    for part, targets, cost in zip(data.parts, data.logged_targets, data.costs):
        first = part.offsets[part.episode_of_row]
        advantages.append((targets[:, 0] - ranker.values(part["observations"], cost))[first])
    trained = advantages[0][step_rows(data.parts[0])]
    mean, scale = float(trained.mean()), temperature * max(float(trained.std()), 1e-8)
    return [np.exp(np.clip((advantage - mean) / scale, -8, bound)) for advantage in advantages]


def equalizing_power(weights: np.ndarray, least: float) -> float:
    """Return the largest power p in 0..1 for which the weights w^p (n,) have at least `least` effective windows.

    The effective number of windows is (sum w)^2 / sum w^2 (Kish 1965). It is n for equal weights, p = 0. With few
    windows, unequal weights cost more by their smaller effective number than they gain.

    Args:
        weights: w, (n,), positive.
        least: the effective number; with n <= least the result is 0.
    """

    def excess(power: float) -> float:
        raised = weights**power
        return float(raised.sum() ** 2 / np.square(raised).sum() - least)

    if excess(1.0) >= 0:
        return 1.0
    low, high = 0.0, 1.0  # the number falls from one to the other
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) > 0 else (low, middle)
    return low


def planner_windows(data: TrainingData, part: int) -> Windows:
    """Return the windows of one part.

    Their weight is the product of the frequency, `advantage_weights` and `episode_weights` of their first row, to the
    power `equalizing_power`. Without a ranker (see `mpdiffuser.preparation.imitates`) the weight is the frequency.
    """
    if "ranker" not in data.trained:
        goals = data.settings["goals"]
        return data.windows(part, data.targets[part], data.condition, data.frequencies[part], goals)
    if "weights" not in data.shared:
        ranker, settings = data.trained["ranker"], dict(data.settings["advantage"])
        least = settings.pop("effective_windows")
        factors = (
            advantage_weights(ranker, data, **settings),
            episode_weights(ranker, data, **data.settings["episode_advantage"]),
            data.frequencies,
        )
        products = [np.prod(each, 0) for each in zip(*factors)]
        power = equalizing_power(products[0][step_rows(data.parts[0])], least)
        data.shared["weights"] = [product**power for product in products]
    return data.windows(part, data.targets[part], data.condition, data.shared["weights"][part])


def build_planner(data: TrainingData) -> Planner:
    """Build an untrained planner for the data's dimensions and targets."""
    horizon, sizes = data.settings["horizon"], data.settings["planner"]
    if data.settings["goals"]:
        sizes = {**sizes, "goal_dim": data.dims["latent_dim"], "goal_entries": data.settings["goal_entries"] or []}
    planner = Planner(**data.dims, horizon=horizon, condition_dim=data.target_dim, **sizes)
    planner.actions.load_state_dict(data.actions.state_dict())
    return planner


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
    {"steps": 8000, "batch_size": 128, "learning_rate": 1e-3, "keep": "last"},
    planner_windows,
    after=("ranker",),
    sections=("planner", "advantage", "episode_advantage"),
    own_seed=False,
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
    acts=False,  # only where plans arrive late, and for `mpdiffuser.adaptation`
)


class PlannerOnly(Planning):
    """Samples plans with the planner only."""

    name = "planner"
    label = "planner only"
    color = ("#c8641b", "#eb9a5c")
    summary = "MPDiffuser without the dynamics model."
    order = 90
    models = (RANKER, PLANNER, FORWARD)

    @classmethod
    def prepare(cls, setup: Setup) -> tuple[MPDiffuserPipeline, SamplerConfig]:
        """Return the pipeline and the setup's settings with composition "planner"."""
        return setup.pipeline, replace(setup.sampler, composition="planner")
