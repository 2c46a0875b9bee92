"""Training of the rivals' models: on all windows alike, with the returns as they were logged, as in their papers."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from diffusers.models.modeling_utils import ModelMixin
from omegaconf import DictConfig

from mpdiffuser.config import settings
from mpdiffuser.episodes import Episodes
from mpdiffuser.machine import side_by_side
from mpdiffuser.models.denoisers import ActionPlanner, CleanDynamics, Planner, StatePlanner
from mpdiffuser.models.inverse import InverseDynamics
from mpdiffuser.models.iql import IQL
from mpdiffuser.models.normalizer import Marginals, Normalizer
from mpdiffuser.models.ranker import Ranker
from mpdiffuser.models.return_model import ReturnModel
from mpdiffuser.windows import Steps, Transitions, Windows, step_rows

EPISODE_RETURN = 1000.0  # the span of returns that IQL's rewards are scaled to (Kostrikov et al. 2022, appendix B)


def train_rivals(
    cfg: DictConfig,
    parts: Sequence[Episodes],
    targets: Sequence[np.ndarray],
    normalizers: tuple[Normalizer, Normalizer],
    wanted: set[str],
    fit: Callable[..., Any],
    device: torch.device,
    processes: int,
) -> dict[str, ModelMixin]:
    """Train those of the rivals' models that are wanted.

    Args:
        parts: training and held-out episodes, `observations` = latents.
        targets: for each part the logged return_to_go (and cost_to_go) of each row, (M, c).
        normalizers: fitted, of latents and actions.
        wanted: names of models; others than the rivals' do not count.
        fit: (name, model, data, validation) trains a model.

    Returns:
        Name -> model.
    """
    condition = Marginals(targets[0].shape[1]).fit(targets[0][step_rows(parts[0])])
    models = {}
    for name, make in recipes(cfg, parts[0], condition.config["dim"]).items():
        if name in wanted:
            torch.manual_seed(cfg.seed)  # a model begins alike whatever else is trained
            models[name] = make()
    kinds: dict[str, Callable[[Episodes, np.ndarray], Any]] = {
        "critic": lambda part, target: Steps(part, target[:, 0]),
        "iql": lambda part, target: Transitions(part, target[:, 0]),
    }
    windows = lambda part, target: Windows(part, target, cfg.horizon, *normalizers, condition)  # noqa: E731

    def job(name: str, model: Any) -> Any:
        return fit(name, model, *(kinds.get(name, windows)(*each) for each in zip(parts, targets)))

    for model in (models[name] for name in ("critic", "iql") if name in models):
        model.latents.fit(parts[0]["observations"])
    if "critic" in models:
        critic, rows = models["critic"], step_rows(parts[0])
        critic.rewards.fit(parts[0]["rewards"][rows])
        critic.returns.fit(targets[0][rows, :1])
    if "iql" in models:
        span = max(float(np.ptp(parts[0].returns)), 1e-8)
        models["iql"].reward_scale.data.fill_(EPISODE_RETURN / span)
    side_by_side([partial(job, *each) for each in models.items()], device, processes)
    return models | ({"logged_returns": condition} if "logged_returns" in wanted else {})


def recipes(cfg: DictConfig, episodes: Episodes, targets: int) -> dict[str, Callable[[], Any]]:
    """How to make each model, untrained. Sizes are those of our own planner, dynamics model and ranker."""
    planner, dynamics, ranker = (settings(cfg[model]) for model in ("planner", "dynamics", "ranker"))
    dims = {"latent_dim": episodes["observations"].shape[1], "action_dim": episodes["actions"].shape[1]}
    # as in their papers (Janner et al. 2022, Ajay et al. 2023, Chi et al. 2023)
    theirs = {"dropout": 0.25, "first_action_weight": 10.0, "level_draws": 1}
    plans = {**dims, "horizon": cfg.horizon, "condition_dim": targets, **planner | theirs}
    sizes = {key: planner[key] for key in ("width", "multipliers", "embedding")}
    unconditional = {"dropout": 1.0}
    return {
        "trajectory_planner": lambda: Planner(**plans | unconditional),
        "state_planner": lambda: StatePlanner(**plans),
        "action_planner": lambda: ActionPlanner(**plans | unconditional | {"first_action_weight": 1.0}),
        "clean_dynamics": lambda: CleanDynamics(**dims, horizon=cfg.horizon, **dynamics),
        "inverse": lambda: InverseDynamics(**dims),
        "return_model": lambda: ReturnModel(**dims, horizon=cfg.horizon, **sizes),
        "critic": lambda: Ranker(**dims, discount=cfg.discount, **ranker | {"optimism": 0.5}),
        "iql": lambda: IQL(**dims, discount=cfg.discount, **settings(cfg.rivals.iql)),
    }
