"""One decision of a controller as one network: observations, history and noise in, action and plan out.

`mpdiffuser.export` writes it as a graph. Encoder, normalisers, targets, all noise levels, both models, the ranker and
the choice are in it, so that a robot needs no more than a runtime of such graphs.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from mpdiffuser.errors import InputError
from mpdiffuser.history import joined_features, standing_latents
from mpdiffuser.pipeline import MPDiffuserPipeline
from mpdiffuser.plan import Plan
from mpdiffuser.plan_graph import LARGEST, PlanGraph
from mpdiffuser.sampler import SamplerConfig

GOAL, NEXT = "goal_", "next_"  # of the names of inputs and outputs
RESERVED = ("start", "features", "actions", "noise", "action", "sound", "plan_latents", "plan_actions", "score")


class PolicyGraph(torch.nn.Module):
    """A decision of `Controller`, for a fixed number of robots.

    Inputs, in this order (`example`):

        <name>      each observation of the record, (B, ...), as the data have it
        goal_<name> what the robot is to see, if the planner was trained with goals
        start       (B,) bool, whether this is the first decision of an episode      | only if the latent
        features    (B, history, F), the last result `next_features`                 | depends on earlier
        actions     (B, history - 1, m), the last result `next_actions`              | observations
        noise       standard normal numbers, (B, draws, K, H, d + m)

    Outputs: `action` (B, m) in the data's units; `sound` (B,) bool, false if there is no finite plan and the action is
    the safe action; the followed plan, `plan_latents` (B, H, d) and `plan_actions` (B, H, m); its `score` (B,); and
    `next_features`, `next_actions` where the inputs have them. If the robot executes another action, write it into the
    last row of `next_actions`.

    Args:
        pipeline: the loaded pipeline, on the CPU.
        config: the sampler settings.
        robots: B.

    Raises:
        InputError: for a pipeline without planner or record, with weights that are not finite, or settings that keep a
            plan over several decisions. Also for a history of actions, if the robot has changed so much that no action
            has the effect of 0 (`mpdiffuser.adaptation`).
    """

    def __init__(self, pipeline: MPDiffuserPipeline, config: SamplerConfig, robots: int = 1) -> None:
        super().__init__()
        if pipeline.planner is None or pipeline.record is None:
            raise InputError("pipeline: holds no planner of MPDiffuser, or does not say what its observations are")
        config.check_single("a graph")
        if not isinstance(robots, int) or robots < 1:
            raise InputError(f"robots: must be a whole number from 1 on, found {robots}")
        for name in pipeline.record.observations:
            if name in RESERVED or name.startswith((GOAL, NEXT)):
                raise InputError(f"observations: {name}: the graph has another input or output of this name")
        config.check_fit(pipeline.planner.config["horizon"], pipeline.action_bounds, pipeline.stride)
        self.pipeline, self.robots, self.record = pipeline, robots, pipeline.record
        self.plans = PlanGraph(pipeline, config)
        if not all(weight.isfinite().all() for weight in self.plans.parameters()):
            raise InputError("pipeline: some weights are not finite; train it again")
        self.safe = torch.from_numpy(pipeline.safe_action(config))[None]
        self.remembers = pipeline.encoder.history > 1
        still = np.zeros((1, self.action_dim), np.float32)
        if self.remembers and np.abs(pipeline.action_scale.to_unit(pipeline.action_scale.to_data(still))).max() > 1e-4:
            raise InputError("pipeline: no action of the changed robot has the effect of 0, which the history needs")
        self.inputs = list(self.example())

    @property
    def action_dim(self) -> int:
        """m."""
        return self.pipeline.actions.config["dim"]

    @property
    def outputs(self) -> list[str]:
        """The names of the results, in order."""
        names = ["action", "sound", "plan_latents", "plan_actions", "score"]
        return names + [f"{NEXT}features", f"{NEXT}actions"] * self.remembers

    def example(self) -> dict[str, torch.Tensor]:
        """Return name -> value of all inputs, for the first decision of an episode."""
        seen = self.record.observations
        names = [*seen, *(f"{GOAL}{name}" for name in seen if self.pipeline.takes_goals)]
        found = {
            name: torch.zeros(self.robots, *each.shape, dtype=getattr(torch, each.dtype))
            for name, each in zip(names, [*seen.values()] * 2)
        }
        if self.remembers:
            history = self.pipeline.encoder.history
            width = self._features(found).shape[-1]
            found["start"] = torch.ones(self.robots, dtype=torch.bool)
            found["features"] = torch.zeros(self.robots, history, width)
            found["actions"] = torch.zeros(self.robots, history - 1, self.action_dim)
        found["noise"] = torch.zeros(self.robots, *self.plans.noise_shape)
        return found

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Compute the outputs of the inputs; see the class for their names and shapes."""
        given = dict(zip(self.inputs, inputs, strict=True))
        pipeline, scale = self.pipeline, self.pipeline.action_scale
        latents, features, past = self._latents(given)
        goal = None
        if pipeline.takes_goals:
            wanted = {name: given[f"{GOAL}{name}"] for name in self.record.observations}
            goal = standing_latents(pipeline.encoder, self._features(wanted))
        candidates, candidate_actions, scores, weights = self.plans(latents, given["noise"], goal=goal)
        plan = Plan(candidates, candidate_actions, scores, weights, 0.0)
        states, actions = plan.executed_latents, plan.executed_actions
        sound = plan.sound
        # also of the inputs: a runtime's clamp may hide that the networks overflow
        for part in (latents, *([] if goal is None else [goal])):
            sound = sound & (part.abs() < LARGEST).flatten(1).all(1)
        low, high = (actions.new_tensor(end) for end in (scale.low, scale.high))
        action = actions[:, 0].where(sound[:, None], self.safe).maximum(low).minimum(high)
        score = torch.where(plan.weights > 0, plan.weights * plan.scores, 0).sum(1)
        found = [action, sound, states, actions, score]
        if self.remembers:
            found += [features, torch.cat([scale.to_data(past[:, 1:]), action[:, None]], 1)]
        return tuple(found)

    def _features(self, observations: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Observations (B, ...) -> features (B, F): those of all pictures, then the vectors."""
        return joined_features(self.record, self.pipeline.encoder.features, observations)

    def _latents(self, given: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the latents (B, d), the features (B, history, F), and the actions (B, history - 1, m) in [-1, 1]."""
        if not self.remembers:
            features = self._features(given)[:, None]
            actions = features.new_zeros(self.robots, 0, self.action_dim)
            return self.pipeline.encoder(features, actions), features, actions
        start, newest = given["start"][:, None, None], self._features(given)[:, None]
        shifted = torch.cat([given["features"][:, 1:], newest], 1)
        features = torch.where(start, newest.expand_as(shifted), shifted)
        actions = self.pipeline.action_scale.to_unit(given["actions"])
        actions = actions.where(~start, 0.0)
        return self.pipeline.encoder(features, actions), features, actions


def described(graph: PolicyGraph) -> dict[str, Any]:
    """Return what a program must know to run the graph, as a JSON object."""
    config, info, bounds = graph.plans.sampler.config, graph.pipeline.config["info"], graph.pipeline.action_bounds
    return {
        "inputs": {name: {"shape": [*part.shape], "dtype": _dtype(part)} for name, part in graph.example().items()},
        "outputs": graph.outputs,
        "observations": graph.record.to_json()["observations"],
        "action_low": [*bounds.low],
        "action_high": [*bounds.high],
        "decision_seconds": info.get("decision_seconds"),
        "stride": graph.pipeline.stride,
        "candidates": config.candidates,
        "levels": len(graph.plans.sampler.moves),
        "composition": config.composition,
    }


def _dtype(part: torch.Tensor) -> str:
    return str(part.dtype).removeprefix("torch.")
