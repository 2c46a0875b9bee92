"""Collecting datasets: policies act in the simulator at rendering speed and everything is kept as Episodes.

Qualities:
    expert  the committed expert
    medium  the ladder's rung whose return is nearest half of the expert's
    mixed   equal shares of all rungs, from uniform random to the expert; each episode is begun by one and, at a random
            decision, taken over by another (seeded)
    random  actions uniform in [-1, 1], each held for the action repeat

Episodes are disturbed in turn at each rate in `DISTURBANCES`: with that chance a decision, a random action takes over
for a while. So the data also hold how a policy recovers from where it would not go by itself, and what it
does of its own is kept clean.
The data are a function of the arguments alone, whatever the number of processes.
"""

import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from envs.doctor import versions
from envs.simulator import DMControlEnv
from envs.vector import VectorEnv
from mpdiffuser.episodes import Episodes, EpisodesWriter
from mpdiffuser.errors import InputError

QUALITIES = ("expert", "medium", "mixed", "random")
DISTURBANCES = (0.0, 0.02, 0.04, 0.08)
DISTURBED = (2, 10)  # decisions that a disturbance lasts
PARALLEL = 16  # episodes at a time at most; the same everywhere, so that batched policies round alike


def collect(
    task: str = "cartpole_swingup",
    quality: str = "mixed",
    episodes: int = 100,
    seed: int = 0,
    data_root: str | Path = "data",
    action_repeat: int = 4,
    size: int = 64,
    camera: int = 0,
    rendering: str = "fast",
    time_limit: float | None = None,
    processes: int | None = None,
) -> Path:
    """Collect a dataset, or reuse it where it is there already.

    Args:
        task, action_repeat, size, camera, rendering, time_limit: see DMControlEnv.
        quality: one of QUALITIES.
        episodes: their number.
        seed: of the episodes' starts, the disturbances and the order.
        data_root: folder of datasets.
        processes: workers; None: one a core.

    Returns:
        Its folder, `<data_root>/<task>-<quality>-ar<action_repeat>-<episodes>ep-seed<seed>`, which Episodes.load opens:
        `frames` (M, size, size, 3) uint8, `observations` (M, o) float32 dm_control's states, `physics` (M, p) float64,
        actions, rewards, terminations, truncations.

    Raises:
        InputError: on a bad argument, a full disk, or a folder of that name that holds something else.
    """
    for option, value, least in (("episodes", episodes, 1), ("seed", seed, 0)):
        if not isinstance(value, int) or value < least:
            raise InputError(f"{option}={value!r}: must be a whole number of at least {least}")
    if quality not in QUALITIES:
        raise InputError(f"quality={quality!r}: unknown; choose one of {', '.join(QUALITIES)}")
    options = dict(task=task, action_repeat=action_repeat, size=size, camera=camera, rendering=rendering)
    env = DMControlEnv(observation="states", time_limit=time_limit, **options)  # type: ignore[arg-type]
    if not math.isfinite(env.step_limit):
        raise InputError(f"task={task!r} has no time limit of its own; give time_limit in seconds")
    info = {**options, "quality": quality, "episodes": episodes, "seed": seed, "time_limit": env.time_limit}
    info |= {"disturbance_rates": list(DISTURBANCES), "disturbance_decisions": list(DISTURBED)}
    path = Path(data_root) / f"{task}-{quality}-ar{action_repeat}-{episodes}ep-seed{seed}"
    if path.exists():
        _check_reuse(path, info)
        return path
    _write(path, info, env, processes)
    return path


def _check_reuse(path: Path, info: dict[str, Any]) -> None:
    try:
        found = Episodes.load(path)
    except InputError as error:
        raise InputError(f"{error} (remove {path} first)") from error
    differ = [
        f"{key} is {found.info.get(key)!r}, not {value!r}"
        for key, value in info.items()
        if found.info.get(key) != value
    ]
    if differ:
        raise InputError(
            f"{path}: exists with other settings: {'; '.join(differ)}; remove it, or choose another seed or data_root"
        )
    print(f"{path}: there already, reused ({len(found)} episodes, mean return {found.returns.mean():.1f})")


def plan_policies(
    task: str, quality: str, episodes: int, action_repeat: int, seed: int
) -> tuple[list[tuple[str, ...]], dict[str, Any]]:
    """(names of each episode's policies, one or the two that take turns; name -> policy). The policy "random" is None.

    Raises:
        InputError: if the task has no policies, or they were made for another action repeat.
    """
    if quality == "random":
        return [("random",)] * episodes, {"random": None}
    from envs.experts import ladder, load_policy, names

    expert = load_policy(task)
    if expert.info["action_repeat"] != action_repeat:
        raise InputError(
            f"action_repeat={action_repeat}: the policies of {task} were made for {expert.info['action_repeat']}; "
            "use that, or quality=random"
        )
    rungs = dict(zip(["random", *names(task)], ladder(task), strict=True))
    if quality == "expert":
        return [("expert",)] * episodes, {"expert": expert}
    if quality == "medium":
        half = expert.info["return_mean"] / 2
        medium = min(names(task), key=lambda name: abs(rungs[name].info["return_mean"] - half))  # type: ignore[union-attr]
        return [(medium,)] * episodes, {medium: rungs[medium]}
    random = np.random.default_rng(seed)
    turns = [[list(rungs)[index % len(rungs)] for index in random.permutation(episodes)] for _ in range(2)]
    return list(zip(*turns)), {name: policy for name, policy in rungs.items() if name in turns[0] + turns[1]}


def _write(path: Path, info: dict[str, Any], env: DMControlEnv, processes: int | None) -> None:
    episodes, steps = info["episodes"], math.ceil(env.step_limit / env.action_repeat)
    chosen, policies = plan_policies(info["task"], info["quality"], episodes, info["action_repeat"], info["seed"])
    shapes: dict[str, tuple[tuple[int, ...], Any]] = {
        "frames": ((env.size, env.size, 3), np.uint8),
        "observations": (env.observation_space.shape or (), np.float32),
        "actions": (env.action_space.shape or (), np.float32),
        "rewards": ((), np.float32),
        "terminations": ((), bool),
        "truncations": ((), bool),
        "physics": (env.get_physics().shape, np.float64),
    }
    rows = episodes * (steps + 1)
    size = rows * sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in shapes.values())
    print(f"{path}: collecting {episodes} episodes of {steps} steps, {size / 1e9:.3f} GB")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"data_root={str(path.parent)!r}: cannot make this folder ({error})") from error
    seeds = np.random.SeedSequence([info["seed"], QUALITIES.index(info["quality"])]).generate_state(episodes)
    rates = [0.0 if info["quality"] == "random" else DISTURBANCES[i % len(DISTURBANCES)] for i in range(episodes)]
    actors = [
        Actor([policies[name] for name in names], rate, seed, steps)
        for names, rate, seed in zip(chosen, rates, seeds.tolist())
    ]
    options = {key: info[key] for key in ("task", "action_repeat", "size", "camera", "rendering", "time_limit")}
    rounds = math.ceil(episodes / PARALLEL)
    vector = VectorEnv(math.ceil(episodes / rounds), processes, observation="both", **options)
    try:
        origin = info | {
            "MUJOCO_GL": os.environ.get("MUJOCO_GL", ""),
            "back_end": vector.gl_name(),
            "policies": [list(names) for names in chosen],
            "handovers": [actor.handover for actor in actors],
            "disturbances": rates,
            "episode_seeds": seeds.tolist(),
            "policy_info": {name: policy.info if policy else {} for name, policy in policies.items()},
            "decision_seconds": env.decision_seconds,
            "joints": env.joints(),
            "versions": versions(),
        }
        with EpisodesWriter(path, rows, origin) as writer:
            _fill(writer, {key: writer.create(key, *spec) for key, spec in shapes.items()}, vector, steps, actors)
            writer.offsets = np.arange(episodes + 1) * (steps + 1)
    finally:
        vector.close()


class Actor:
    """Chooses one episode's actions.

    Args:
        policies: one, or two of which the second takes over; None stands for uniform random.
        rate: chance of a disturbance to begin at a decision.
        seed: of the handover, disturbances and random actions.
        decisions: of the episode.
    """

    def __init__(self, policies: Sequence[Any], rate: float, seed: int, decisions: int) -> None:
        self.policies, self.rate, self.seed = policies, rate, seed
        self.random = np.random.default_rng([seed, 1])
        self.handover = int(self.random.integers(decisions)) if len(policies) > 1 else decisions
        self.decision = 0
        self.disturbed = 0  # decisions that the disturbance still lasts
        self.push = np.zeros(0)

    @property
    def policy(self) -> Any:
        """Whose turn it is."""
        return self.policies[0 if self.decision < self.handover else -1]

    def finish(self, action: np.ndarray) -> np.ndarray:
        """What is done (m,): the policy's action, or a random one in its place; on to the next decision."""
        policy = self.policy
        self.decision += 1
        if policy is None:
            return self.random.uniform(-1, 1, action.shape)
        if self.disturbed == 0 and self.random.random() < self.rate:
            self.disturbed = int(self.random.integers(*DISTURBED, endpoint=True))
            self.push = self.random.uniform(-1, 1, action.shape)
        if self.disturbed == 0:
            return np.clip(action, -1, 1)
        self.disturbed -= 1
        return self.push


def choose_actions(actors: list[Actor], states: np.ndarray, dimension: int) -> np.ndarray:
    """Actions (B, m) float32 of B actors in their states (B, o); each policy is called once."""
    actions = np.zeros((len(actors), dimension), np.float32)
    for policy in {id(actor.policy): actor.policy for actor in actors}.values():
        index = [i for i, actor in enumerate(actors) if actor.policy is policy]
        if policy is not None:
            actions[index] = policy(states[index])
    return np.stack([actor.finish(action) for actor, action in zip(actors, actions)]).astype(np.float32)


def _fill(
    writer: EpisodesWriter, arrays: dict[str, np.ndarray], vector: VectorEnv, steps: int, actors: list[Actor]
) -> None:
    """Run all episodes, `vector.num_envs` at a time, and write their rows; goes on after those that the writer kept."""
    done, start = writer.progress, time.perf_counter()
    if done:
        print(f"going on after {done} episodes")
    dimension, rewards = arrays["actions"].shape[1], arrays["rewards"]
    with tqdm(total=len(rewards), initial=done * (steps + 1), unit=" frames", dynamic_ncols=True) as bar:
        for first in range(done, len(actors), vector.num_envs):
            batch = actors[first : first + vector.num_envs]
            count, padding = len(batch), vector.num_envs - len(batch)
            mask = (np.arange(vector.num_envs) < count) | (first == done)  # at first all: none was reset before
            observations, infos = vector.reset(
                seed=[a.seed for a in batch] + [None] * padding, options={"reset_mask": mask}
            )
            rows = (first + np.arange(count)) * (steps + 1)
            for step in range(steps):
                _write_rows(arrays, rows + step, observations, infos)
                actions = choose_actions(batch, observations["states"][:count], dimension)  # type: ignore[call-overload]
                padded = np.concatenate([actions, np.zeros((padding, dimension), np.float32)])
                observations, gained, terminations, truncations, infos = vector.step(padded)
                ended = (terminations | truncations)[:count]
                if ended.any() != (step == steps - 1) or terminations[:count].any():
                    raise InputError(
                        "an episode ended before its time limit; only tasks of fixed length can be collected"
                    )
                for key, values in (("actions", actions), ("rewards", gained), ("truncations", truncations)):
                    arrays[key][rows + step] = values[:count]
                bar.update(count)
            _write_rows(arrays, rows + steps, observations, infos)
            bar.update(count)
            writer.keep(first + count)
            bar.set_postfix_str(f"mean return {rewards.sum(dtype=float) / (first + count):.1f}")
    speed = (len(actors) - done) * (steps + 1) / (time.perf_counter() - start)
    print(f"{len(actors)} episodes, mean return {rewards.sum(dtype=float) / len(actors):.1f}, {speed:.0f} frames/s")


def _write_rows(arrays: dict[str, np.ndarray], rows: np.ndarray, observations: Any, infos: dict[str, Any]) -> None:
    arrays["frames"][rows] = observations["frames"][: len(rows)]
    arrays["observations"][rows] = observations["states"][: len(rows)]
    arrays["physics"][rows] = infos["physics"][: len(rows)]
