"""Simulated robots that a policy controls together: changed robots, and robots that are disturbed.

The disturbances depend on the seeds alone, so that all policies meet the same.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from envs import make
from envs.observations import Observation, Observed, stack
from mpdiffuser.episodes import Episodes
from mpdiffuser.record import Record

if TYPE_CHECKING:
    from mpdiffuser.controller import Policy


@dataclass(frozen=True)
class Disturbance:
    """What disturbs a robot.

    Args:
        noise: standard deviation of normal noise on the actions, in halves of their range.
        push: standard deviation of a sudden change of all joint velocities, in m/s or rad/s.
        chance: of a push, at each decision.
    """

    noise: float = 0.0
    push: float = 0.0
    chance: float = 0.05

    def __str__(self) -> str:
        parts = [f"noise {self.noise:g}"] * bool(self.noise) + [f"pushes {self.push:g}"] * bool(self.push)
        return ", ".join(parts) or "nothing"


class Robots:
    """Copies of a robot, which a policy controls together.

    Args:
        environment: the record of a MuJoCo environment (see `envs.record`).
        count: number of copies.
        observation: see `envs.make`; with "both" the policy sees the frames.
        change: changes MuJoCo's model of each copy; None: the robot stays as it is.
    """

    def __init__(
        self,
        environment: Mapping[str, Any],
        count: int,
        observation: Observed = "states",
        change: Callable[[Any], None] | None = None,
    ) -> None:
        self.envs: list[Any] = [make(environment, observation) for _ in range(count)]
        if change is not None:
            for env in self.envs:
                change(env.model)

    def run(
        self,
        policy: "Policy",
        seeds: Sequence[int],
        disturbances: Disturbance | Sequence[Disturbance] = Disturbance(),
        steps: int | None = None,
    ) -> list[dict[str, Any]]:
        """Control one episode of each copy.

        Args:
            policy: acts for all copies.
            seeds: of the episodes' starts, of the policy and of the disturbances.
            disturbances: of all copies, or one for each.
            steps: largest number of steps; None: until the episodes end.

        Returns:
            For each copy `observations`, a list of T + 1, arrays `actions` (T, m) and `rewards` (T,), and `terminated`,
            whether the robot fell or the like.
        """
        each = [disturbances] * len(seeds) if isinstance(disturbances, Disturbance) else list(disturbances)
        randoms = [np.random.default_rng([seed, 7]) for seed in seeds]
        policy.reset(seeds)
        seen = [env.reset(seed=seed)[0] for env, seed in zip(self.envs, seeds)]
        found: list[dict[str, list[Any]]] = [{"observations": [o], "actions": [], "rewards": []} for o in seen]
        going, fell = np.ones(len(seeds), bool), np.zeros(len(seeds), bool)
        while going.any() and (steps is None or max(len(one["rewards"]) for one in found) < steps):
            actions = policy.act(_for_policy(stack(seen)), going)
            for i in np.flatnonzero(going).tolist():
                action = disturb(self.envs[i], actions[i], each[i], randoms[i])
                seen[i], reward, terminated, truncated, _ = self.envs[i].step(action)
                for key, value in (("observations", seen[i]), ("actions", action), ("rewards", reward)):
                    found[i][key].append(value)
                going[i], fell[i] = not (terminated or truncated), terminated
        arrays = [{key: np.array(one[key], np.float32) for key in ("actions", "rewards")} for one in found]
        return [one | more | {"terminated": bool(end)} for one, more, end in zip(found, arrays, fell)]


def disturb(env: Any, action: np.ndarray, disturbance: Disturbance, random: np.random.Generator) -> np.ndarray:
    """Push the robot by chance, and return the action (m,) with noise, within its bounds."""
    if disturbance == Disturbance():
        return action
    noise, pushed = random.normal(size=action.shape), random.random() < disturbance.chance
    push = random.normal(size=env.model.nv)
    if pushed:
        env.data.qvel += disturbance.push * push
    low, high = env.action_space.low, env.action_space.high
    noisy = action + disturbance.noise * (high - low) / 2 * noise
    return noisy.clip(low, high).astype(np.float32)


def _for_policy(observations: Any) -> Any:
    """The frames, where the environment gives frames and states."""
    both = isinstance(observations, dict) and set(observations) == {"frames", "states"}
    return observations["frames"] if both else observations


def stacked(observations: Sequence[Observation]) -> Any:
    """Observations of an episode as one array (T + 1, ...)."""
    return stack(list(observations))


def episodes_of(found: Sequence[Mapping[str, Any]], info: dict[str, Any], record: Record) -> Episodes:
    """Return controlled episodes (see `Robots.run`) as a dataset with this info and this record."""
    pad = lambda values: np.concatenate([values, np.zeros_like(values[:1])])  # noqa: E731
    arrays = {key: np.concatenate([pad(one[key]) for one in found]) for key in ("actions", "rewards")}
    seen = [stacked(one["observations"]) for one in found]
    if isinstance(seen[0], dict):
        arrays |= {"frames": np.concatenate([one["frames"] for one in seen])}
        seen = [one["states"] for one in seen]
    arrays["observations"] = np.concatenate(seen).astype(np.float32)
    lengths = np.array([len(one["rewards"]) + 1 for one in found])
    for key, ended in (("terminations", True), ("truncations", False)):
        arrays[key] = np.zeros(len(arrays["rewards"]), bool)
        arrays[key][np.cumsum(lengths) - 2] = [one["terminated"] == ended for one in found]
    return Episodes(arrays, np.append(0, np.cumsum(lengths)), info, record=record)
