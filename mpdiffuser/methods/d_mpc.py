"""Diffusion MPC (Zhou et al. 2024): it samples action proposals, then the states that follow, then ranks them."""

from collections.abc import Callable, Sequence
from functools import partial

import torch

from mpdiffuser.methods.base import Baseline, sampler_section
from mpdiffuser.methods.diffusion_policy import ACTION_PLANNER
from mpdiffuser.models.denoisers import Dynamics
from mpdiffuser.models.ranker import Ranker
from mpdiffuser.recipe import Recipe, TrainingData
from mpdiffuser.sampler import Sampler
from mpdiffuser.schedule import Move
from mpdiffuser.windows import Steps, step_rows


class CleanDynamics(Dynamics):
    """A dynamics model that gets actions without noise. Arguments and errors as `Dynamics`."""

    noisy_actions = False


class ProposalSampler(Sampler):
    """Samples actions, then all states with the dynamics model, which gets these actions without noise."""

    def resample_states(
        self,
        x: torch.Tensor,
        todo: Sequence[Move],
        noise: Callable[[], torch.Tensor],
        fix: Callable[..., torch.Tensor],
    ) -> torch.Tensor:
        """Sample the states of x (B, H, d + m) from noise at all levels, given the actions of x: like x."""
        actions = x[..., self.planner.config["latent_dim"] :]
        # all levels, also after a warm start, since the proposals have no states to start from
        return super().resample_states(x, self.moves, noise, partial(fix, committed=actions))


def build_critic(data: TrainingData) -> Ranker:
    """Build an untrained critic of the logged returns, with fitted normalisers."""
    discount, sizes = data.discount, {**data.settings["ranker"], "optimism": 0.5}
    critic, rows = Ranker(**data.dims, discount=discount, **sizes), step_rows(data.parts[0])
    critic.latents.fit(data.parts[0]["observations"])
    critic.rewards.fit(data.parts[0]["rewards"][rows])
    critic.returns.fit(data.logged_targets[0][rows, :1])
    return critic


CRITIC = Recipe(
    "critic",
    Ranker,
    build_critic,
    {"steps": 1000, "batch_size": 256, "learning_rate": 1e-3},
    lambda data, part: Steps(data.parts[part], data.logged_targets[part][:, 0]),
    sections=("ranker",),
)


class DMPC(Baseline):
    """Diffusion MPC: an action planner proposes candidates, a dynamics model samples their states, a critic ranks."""

    name = "d_mpc"
    label = "D-MPC"
    color = ("#5b7f2b", "#a3c76f")
    summary = "Action proposals from one diffusion model, their states from another; a critic ranks them."
    order = 23
    needs_rewards = True
    models = (
        ACTION_PLANNER,
        Recipe(
            "clean_dynamics",
            CleanDynamics,
            lambda data: CleanDynamics(
                **data.dims, horizon=data.settings["horizon"], **data.settings["dynamics"] | {"hears": False}
            ),
            {"steps": 5000, "batch_size": 64, "learning_rate": 1e-3},
            lambda data, part: data.dynamics_windows(part, data.logged_windows(part)),
            sections=("dynamics",),
            dynamics_data=True,
        ),
        CRITIC,
    )
    roles = {"planner": "action_planner", "dynamics": "clean_dynamics", "ranker": "critic"}  # noqa: RUF012
    fixed = {"composition": "sequential", "guidance": 0.0}  # noqa: RUF012
    settings = sampler_section(candidates=16)
    sampler_class = ProposalSampler
