"""The two diffusion models: the planner and the dynamics model.

A trajectory x is (B, H, d + m): row k has the normalised latent z_k and the action u_k at z_k. The present latent z_0
is known. It has no noise at any level (`hold`), in training and in sampling. It also modulates every layer, since the
first action must depend on small differences of z_0.

A forward pass is `denoise` with the `modulation` of all layers. The modulation depends only on the level, z_0 and the
target, so a sampler can compute it once for all levels and candidates.
"""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_utils import ModelMixin  # noqa: F401  diffusers looks it up in a component's module
from torch import nn
from torch.nn.functional import pad

from mpdiffuser.errors import InputError
from mpdiffuser.models.base import Model
from mpdiffuser.models.normalizer import Normalizer
from mpdiffuser.models.unet import LevelEmbedding, TemporalUNet, check_horizon
from mpdiffuser.schedule import PREDICTIONS, NoiseSchedule


def hold(
    x: torch.Tensor,
    present: torch.Tensor,
    goal: torch.Tensor | None = None,
    committed: torch.Tensor | None = None,
) -> torch.Tensor:
    """In-painting: return a copy of x (B, H, d + m) with the known parts set.

    Args:
        x: the trajectories.
        present: z_0, (B, d).
        goal: the last latent z_{H-1}, (B, d); None: unknown.
        committed: the first actions u_0..u_{K-1}, (B, K, m); None: unknown.
    """
    d = present.shape[-1]
    states, actions = torch.cat([present[:, None], x[:, 1:, :d]], 1), x[..., d:]
    if goal is not None:
        states = torch.cat([states[:, :-1], goal[:, None]], 1)
    if committed is not None:
        actions = torch.cat([committed, actions[:, committed.shape[1] :]], 1)
    return torch.cat([states, actions], -1)


class Denoiser:
    """A diffusion model. Its configuration has `prediction`, the type of the network's output."""

    config: Any

    def to_clean(
        self, output: torch.Tensor, noisy: torch.Tensor, levels: torch.Tensor, schedule: NoiseSchedule
    ) -> torch.Tensor:
        """Convert an output (B, ...) at noisy x_t (B, ...) and levels (B,) to the estimate D of x_0, (B, ...)."""
        return schedule.to_clean(self.config["prediction"], output, noisy, levels)


class Planner(Denoiser, Model):
    """Joint diffusion model of states and actions, given z_0 and the target.

    Args:
        latent_dim, action_dim, horizon: d, m, H.
        condition_dim: number of targets (1: return_to_go; 2: return_to_go and cost_to_go).
        goal_dim: d if the planner is told a goal, a latent to reach, or else 0.
        goal_entries: numbers of the goal's entries that count, such as those of a place; empty: all.
        width, multipliers, embedding: see `TemporalUNet`.
        prediction: "epsilon", "sample" or "v_prediction".
        dropout: probability of dropping the condition in training, for classifier-free guidance (Ho and Salimans 2022).
        first_action_weight: weight of the loss on u_0, the action that is executed.
        level_draws: number of random levels for each example; training uses the highest. More levels train the high
            noise levels more often, which decide the first action.
        bounded: whether estimated actions are within -1..1 by a tanh (`to_clean`).

    Attributes:
        actions: normaliser of the actions; fit or copy it before training.

    Raises:
        InputError: for a horizon or a prediction type that is not allowed.
    """

    @register_to_config
    def __init__(
        self,
        latent_dim: int,
        action_dim: int,
        horizon: int = 32,
        condition_dim: int = 1,
        width: int = 32,
        multipliers: Sequence[int] = (1, 2),
        embedding: int = 64,
        prediction: str = "v_prediction",
        dropout: float = 0.1,
        first_action_weight: float = 50.0,
        level_draws: int = 2,
        bounded: bool = True,
        goal_dim: int = 0,
        goal_entries: Sequence[int] = (),
    ) -> None:
        super().__init__()
        check_horizon(horizon, multipliers)
        check_prediction(prediction)
        if level_draws < 1:
            raise InputError(f"planner.level_draws: must be at least 1, found {level_draws}")
        self.level = LevelEmbedding(embedding)
        told = len(goal_entries) or goal_dim
        self.context = perceptron(latent_dim + condition_dim + told + 1, embedding)
        self.actions = Normalizer(action_dim)
        drawn = len(range(latent_dim + action_dim)[self.columns(latent_dim)])
        self.unet = TemporalUNet(drawn, drawn, width, multipliers, embedding)

    @staticmethod
    def columns(latent_dim: int) -> slice:
        """Return the columns of a trajectory (of d + m) that the network gets and estimates."""
        return slice(None)

    def forward(
        self,
        x: torch.Tensor,
        levels: torch.Tensor,
        condition: torch.Tensor,
        keep: torch.Tensor,
        modulation: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Noisy x (B, H, d + m), levels (B,), condition (B, c), keep (B,), 0 = unconditional -> prediction, like x.

        The condition is that of `condition`. Given a modulation (B, F), the network uses it and does not compute it.
        """
        if modulation is None:
            modulation = self.modulation(levels, x[:, 0, : self.config["latent_dim"]], condition, keep)
        return self.denoise(x, modulation)

    def modulation(
        self, levels: torch.Tensor, present: torch.Tensor, condition: torch.Tensor, keep: torch.Tensor
    ) -> torch.Tensor:
        """Levels (B,), z_0 (B, d), condition (B, c), keep (B,) -> modulation of all layers (B, F)."""
        keep = keep[:, None].to(present.dtype)
        known = torch.cat([present, self._told(condition) * keep, keep], -1)
        return self.unet.modulation(self.level(levels) + self.context(known))

    def condition(self, targets: torch.Tensor, goal: torch.Tensor | None = None) -> torch.Tensor:
        """Return the condition (B, c).

        Args:
            targets: (B, c), normalised.
            goal: (B, d), normalised, for a planner that is told it.
        """
        return targets if goal is None else torch.cat([targets, goal], -1)

    def _told(self, condition: torch.Tensor) -> torch.Tensor:
        """Condition (B, c) -> without the goal's entries that do not count."""
        targets, entries = self.config["condition_dim"], self.config["goal_entries"]
        if not entries:
            return condition
        return torch.cat([condition[:, :targets], *(condition[:, targets + k, None] for k in entries)], -1)

    def denoise(self, x: torch.Tensor, modulation: torch.Tensor) -> torch.Tensor:
        """Noisy x (B, H, d + m), modulation (B, F) -> prediction, like x; zeros in columns that are not estimated."""
        first, after, _ = self.columns(self.config["latent_dim"]).indices(x.shape[-1])
        return pad(self.unet(x[..., first:after], modulation), (first, x.shape[-1] - after))

    def to_clean(
        self, output: torch.Tensor, noisy: torch.Tensor, levels: torch.Tensor, schedule: NoiseSchedule
    ) -> torch.Tensor:
        """Convert an output (B, H, d + m) at noisy x_t (B, H, d + m) and levels (B,) to the estimate D, like x_t.

        The estimate of the states is linear in the output. With `bounded`, that of the actions is D = tanh(y + o) in
        decoded units: o is the output's part of the linear estimate, and tanh(y) its other part, clipped to values
        inside -1..1. At pure noise D = tanh(o), the usual form of a policy.
        """
        clean = super().to_clean(output, noisy, levels, schedule)
        if not self.config["bounded"]:
            return clean
        d, scale = self.config["latent_dim"], self.actions.std
        known = schedule.to_clean(self.config["prediction"], torch.zeros_like(output), noisy, levels)[..., d:]
        _, sigma = schedule.coefficients(levels, clean.dim())
        edge = 1 - (sigma.square() / 2).clamp(min=1e-3)
        known_part = torch.atanh(self.actions.denormalize(known).clamp(-edge, edge))
        actions = torch.tanh(known_part + (clean[..., d:] - known) * scale)
        return torch.cat([clean[..., :d], self.actions.normalize(actions)], -1)

    def example(self) -> tuple[torch.Tensor, ...]:
        """Return inputs of `forward`, a batch of 2."""
        return (
            *_example(self.config),
            torch.zeros(2, self.config["condition_dim"] + self.config["goal_dim"]),
            torch.ones(2),
        )

    def draw(self, batch: int, schedule: NoiseSchedule, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Sample the random numbers of one training step: levels (B,), noise (B, H, d + m), keep (B,)."""
        c = self.config
        levels = torch.randint(schedule.config["num_levels"], (c["level_draws"], batch), generator=generator)
        return {
            "levels": levels.amax(0),
            "noise": torch.randn(batch, c["horizon"], c["latent_dim"] + c["action_dim"], generator=generator),
            "keep": (torch.rand(batch, generator=generator) >= c["dropout"]).float(),
        }

    def loss(
        self, batch: dict[str, torch.Tensor], random: dict[str, torch.Tensor], schedule: NoiseSchedule
    ) -> dict[str, torch.Tensor]:
        """Return the denoising loss of a batch of `Windows`."""
        clean = torch.cat([batch["latents"], batch["actions"]], -1)
        noisy = hold(schedule.add_noise(clean, random["noise"], random["levels"]), batch["latents"][:, 0])
        condition = self.condition(batch["condition"], batch["goal"] if self.config["goal_dim"] else None)
        output = self(noisy, random["levels"], condition, random["keep"])
        estimate = self.to_clean(output, noisy, random["levels"], schedule)
        scale = schedule.output_scale(self.config["prediction"], random["levels"], clean.dim())
        states = batch["mask"][..., None].expand_as(batch["latents"]).clone()
        actions = batch["action_mask"][..., None].expand_as(batch["actions"]).clone()
        states[:, 0] = 0  # z_0 is given, not predicted
        actions[:, 0] *= self.config["first_action_weight"]
        weight = torch.cat([states, actions], -1)
        drawn = self.columns(self.config["latent_dim"])
        return {"loss": weighted_error(scale * estimate[..., drawn], scale * clean[..., drawn], weight[..., drawn])}


class Dynamics(Denoiser, Model):
    """Diffusion model of the states, given z_0 and the actions. It does not get the target.

    In training the actions have independent noise of the same level as the states, as in the alternating sampler.

    With `hears`, it estimates the actions too, and either part can be hidden from it. In training both parts are seen
    in half of the examples; in a quarter each the states or the actions are hidden. One network then gives E[z | z_t,
    u_t], E[u | z_t, u_t], E[z | z_t] and E[u | u_t], for the compositions heard and contrast (docs/theory.md, section
    8; a model of all these: Zhu et al. 2025, Unified World Models).

    Arguments and errors as `Planner`, and:

    Args:
        hears: whether it estimates the actions too.
    """

    noisy_actions = True

    @register_to_config
    def __init__(
        self,
        latent_dim: int,
        action_dim: int,
        horizon: int = 32,
        width: int = 32,
        multipliers: Sequence[int] = (1, 2),
        embedding: int = 64,
        prediction: str = "v_prediction",
        hears: bool = False,
    ) -> None:
        super().__init__()
        check_horizon(horizon, multipliers)
        check_prediction(prediction)
        self.level = LevelEmbedding(embedding)
        self.context = perceptron(latent_dim + 2 * hears, embedding)
        self.unet = TemporalUNet(
            latent_dim + action_dim, latent_dim + hears * action_dim, width, multipliers, embedding
        )

    def forward(
        self,
        x: torch.Tensor,
        levels: torch.Tensor,
        seen: torch.Tensor | None = None,
        modulation: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Noisy x (B, H, d + m), levels (B,) -> prediction of the states (B, H, d), with `hears` (B, H, d + m).

        Args:
            x, levels: as for the planner.
            seen: with `hears`, whether the states and whether the actions are seen, (B, 2) (see `hide`).
            modulation: as in `Planner`.
        """
        if modulation is None:
            modulation = self.modulation(levels, x[:, 0, : self.config["latent_dim"]], seen)
        return self.denoise(x, modulation)

    def modulation(self, levels: torch.Tensor, present: torch.Tensor, seen: torch.Tensor | None = None) -> torch.Tensor:
        """Levels (B,), z_0 (B, d), with `hears` what is seen (B, 2) -> modulation of all layers (B, F)."""
        known = present if seen is None else torch.cat([present, seen.to(present.dtype)], -1)
        return self.unet.modulation(self.level(levels) + self.context(known))

    def denoise(self, x: torch.Tensor, modulation: torch.Tensor) -> torch.Tensor:
        """Noisy x (B, H, d + m), modulation (B, F) -> prediction, as `forward`."""
        return self.unet(x, modulation)

    def example(self) -> tuple[torch.Tensor, ...]:
        """Return inputs of `forward`, a batch of 2."""
        return (*_example(self.config), torch.ones(2, 2)) if self.config["hears"] else _example(self.config)

    def draw(self, batch: int, schedule: NoiseSchedule, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Sample the random numbers of one training step: levels (B,), noise (B, H, d + m), and seen (B, 2)."""
        random = levels_and_noise(self.config, batch, schedule, generator)
        if self.config["hears"]:
            kind = torch.randint(4, (batch,), generator=generator)
            random["seen"] = torch.stack([kind != 0, kind != 1], -1).float()
        return random

    def loss(
        self, batch: dict[str, torch.Tensor], random: dict[str, torch.Tensor], schedule: NoiseSchedule
    ) -> dict[str, torch.Tensor]:
        """Return the denoising loss on the states of a batch of `Windows`, with `hears` of all that is seen.

        The condition is not used.
        """
        latents = batch["latents"]
        d = latents.shape[-1]
        clean = torch.cat([latents, batch["actions"]], -1)
        known = None if self.noisy_actions else batch["actions"]
        noisy = hold(schedule.add_noise(clean, random["noise"], random["levels"]), latents[:, 0], committed=known)
        weight = batch["mask"][..., None].expand_as(latents).clone()
        weight[:, 0] = 0
        drawn, seen = d, random.get("seen")
        if seen is not None:
            drawn = clean.shape[-1]
            actions = batch["action_mask"][..., None].expand_as(batch["actions"])
            weight = torch.cat([weight * seen[:, None, :1], actions * seen[:, None, 1:]], -1)
            noisy = hide(noisy, seen, d)
        output = self(noisy, random["levels"], seen)
        target = schedule.training_target(
            self.config["prediction"], clean[..., :drawn], random["noise"][..., :drawn], random["levels"]
        )
        return {"loss": weighted_error(output, target, weight)}


def hide(x: torch.Tensor, seen: torch.Tensor, latent_dim: int) -> torch.Tensor:
    """Return x (B, H, d + m) with 0 in the parts that are not seen; z_0 stays.

    Args:
        x: noisy trajectories.
        seen: (B, 2), whether the states and whether the actions are seen.
        latent_dim: d.
    """
    parts = [latent_dim, x.shape[-1] - latent_dim]
    keep = torch.repeat_interleave(seen, torch.tensor(parts, device=x.device), -1)[:, None].repeat(1, x.shape[1], 1)
    keep[:, 0, :latent_dim] = 1
    return x * keep


def levels_and_noise(
    config: Any, batch: int, schedule: NoiseSchedule, generator: torch.Generator
) -> dict[str, torch.Tensor]:
    """Sample levels (B,) and noise (B, H, d + m) for a model with this configuration."""
    return {
        "levels": torch.randint(schedule.config["num_levels"], (batch,), generator=generator),
        "noise": torch.randn(
            batch, config["horizon"], config["latent_dim"] + config["action_dim"], generator=generator
        ),
    }


def _example(config: Any) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.zeros(2, config["horizon"], config["latent_dim"] + config["action_dim"])
    return x, torch.zeros(2, dtype=torch.long)


def perceptron(inputs: int, outputs: int, hidden: int = 512) -> nn.Sequential:
    """Build a perceptron with three hidden layers and layer norm: (B, inputs) -> (B, outputs)."""
    return nn.Sequential(
        nn.Linear(inputs, hidden),
        nn.LayerNorm(hidden),
        nn.SiLU(),
        nn.Linear(hidden, hidden),
        nn.LayerNorm(hidden),
        nn.SiLU(),
        nn.Linear(hidden, hidden),
        nn.LayerNorm(hidden),
        nn.SiLU(),
        nn.Linear(hidden, outputs),
    )


def weighted_error(output: torch.Tensor, target: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return the mean over the batch of each window's weighted mean squared error. All arguments are (B, ...).

    Each window has its own normalisation, so that the mean over processes equals the mean over the whole batch.
    """
    error = (weight * (output - target) ** 2).flatten(1).sum(1)
    return (error / weight.flatten(1).sum(1).clamp(min=1)).mean()


def check_prediction(prediction: str) -> None:
    """Raise InputError for an unknown prediction type."""
    if prediction not in PREDICTIONS:
        raise InputError(f"prediction: must be one of {', '.join(PREDICTIONS)}, found {prediction!r}")
