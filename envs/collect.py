"""Collects datasets: policies act in dm_control tasks, and frames, states, actions and rewards are kept as Episodes.

Qualities:
    expert  the committed expert
    medium  the policy of the ladder whose return is nearest to half of the expert's
    mixed   equal shares of all policies of the ladder, from uniform random to the expert; one policy begins each
            episode, and another takes over at a random decision (seeded)
    random  actions uniform in [-1, 1], each held for the action repeat

Episodes are disturbed, in turn, at the rates in `DISTURBANCES`: with that chance per decision, a random action replaces
the policy's for a few decisions. So the data hold recoveries from states that the policy alone would not reach, and
also undisturbed episodes.
The data depend on the arguments alone, whatever the number of processes.
"""

import contextlib
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from envs.doctor import versions
from envs.experts import ladder, load_policy, policy_names, tasks
from envs.record import check_record
from envs.rendering import check_camera
from envs.simulator import DMControlEnv
from envs.vector import VectorEnv
from mpdiffuser.console import progress
from mpdiffuser.episodes import Episodes, EpisodesWriter
from mpdiffuser.errors import InputError
from mpdiffuser.files import claimed
from mpdiffuser.record import PICTURE, TRUE_STATE, Actions, Observation, Record

COLLECTION_QUALITIES = ("expert", "medium", "mixed", "random")
DISTURBANCES = (0.0, 0.02, 0.04, 0.08)
DISTURBED = (2, 10)  # fewest and most decisions of a disturbance
# argument of an environment -> option of the configuration
OPTIONS = {name: f"task.{name}" for name in ("action_repeat", "size", "camera")}
OPTIONS |= {"task": "task.name", "time_limit": "episode_seconds"}
PARALLEL = 16  # most episodes at a time; the same on every machine, as a policy's rounding depends on its batch


def collect(
    environment: Mapping[str, Any],
    quality: str,
    episodes: int,
    seed: int,
    data_root: str | Path,
    processes: int | None = None,
) -> Path:
    """Collect a dataset, or reuse it if it exists. Waits for another process that collects it.

    Args:
        environment: the record of a dm_control task; see `envs.record.dm_control_record`.
        quality: one of COLLECTION_QUALITIES.
        episodes: their number.
        seed: of the episodes' starts, the disturbances and the order.
        data_root: folder of datasets.
        processes: of the simulators; None: one for each core.

    Returns:
        Its folder, `<data_root>/<task>-<quality>-ar<action_repeat>-<episodes>ep-seed<seed>`, which Episodes.load opens:
        `frames` (M, size, size, 3) uint8, `observations` (M, o) float32 dm_control's states, `physics` (M, p) float64,
        actions, rewards, terminations, truncations. info["environment"] is the record.

    Raises:
        InputError: on a bad argument, a full disk, or a folder of that name that holds something else.
    """
    path, info, env = check_collection(environment, quality, episodes, seed, data_root)
    unfinished = path.with_name(path.name + ".partial")
    while not path.exists():
        if claimed(unfinished):
            _wait(unfinished)
            continue
        try:
            _write(path, info, env, processes)
            return path
        except InputError:
            if not path.exists() and not claimed(unfinished):  # otherwise another process was faster
                raise
    _check_reuse(path, info, env.action_repeat)
    return path


def _wait(folder: Path) -> None:
    """Wait until no other process collects in a folder."""
    print(f"{folder}: waiting for another process that collects there", flush=True)
    while claimed(folder):
        time.sleep(0.5)


def check_collection(
    environment: Mapping[str, Any],
    quality: str,
    episodes: int,
    seed: int,
    data_root: str | Path,
    given: str | None = None,
) -> tuple[Path, dict[str, Any], DMControlEnv]:
    """Check the arguments of `collect`; return the dataset's folder, its info, and an environment of the task.

    Args:
        environment, quality, episodes, seed, data_root: see `collect`.
        given: the option `environment`, which is for a dataset that exists.

    Raises:
        InputError: on a bad argument.
    """
    if given is not None:
        raise InputError(f"environment={given}: is for a dataset that exists; give dataset= too, or task= alone")
    for option, value, least in (("episodes", episodes, 1), ("seed", seed, 0)):
        if not isinstance(value, int) or value < least:
            raise InputError(f"{option}={value!r}: must be a whole number of at least {least}")
    env = _environment(environment, quality)
    check_camera(env.model, env.camera)
    record = {name: value for name, value in environment.items() if value is not None}
    info = {"task": env.task, "quality": quality, "episodes": episodes, "seed": seed, "environment": record}
    info |= {"disturbance_rates": list(DISTURBANCES), "disturbance_decisions": list(DISTURBED)}
    path = Path(data_root) / f"{env.task}-{quality}-ar{env.action_repeat}-{episodes}ep-seed{seed}"
    if not path.exists():
        plan_policies(env.task, quality, episodes, env.action_repeat, seed)
    return path, info, env


@contextlib.contextmanager
def option_names(seed: str = "seed") -> Iterator[None]:
    """Context manager: an InputError about an argument, such as "size=0: ...", names the option, such as task.size.

    Args:
        seed: the option that is the seed of the collection.
    """
    try:
        yield
    except InputError as error:
        name, equals, rest = str(error).partition("=")
        raise InputError(f"{(OPTIONS | {'seed': seed}).get(name, name)}{equals}{rest}") from error


def _environment(environment: Mapping[str, Any], quality: str) -> DMControlEnv:
    """Return the environment that episodes of this quality are collected in.

    Raises:
        InputError: for an unknown task or quality, or a quality that needs an expert where there is none.
    """
    if quality not in COLLECTION_QUALITIES:
        raise InputError(f"quality={quality!r}: unknown; choose one of {', '.join(COLLECTION_QUALITIES)}")
    check_record(environment)
    if environment["kind"] != "dm_control":
        raise InputError(f"environment.kind: data are collected in dm_control only, found {environment['kind']!r}")
    env = DMControlEnv(**{name: value for name, value in environment.items() if name != "kind"})
    if not math.isfinite(env.step_limit):
        raise InputError(f"task={env.task!r} has no time limit of its own; give one, in seconds (episode_seconds=)")
    if quality != "random" and env.task not in tasks():
        raise InputError(f"quality={quality!r}: there is no expert of {env.task}; use quality=random (docs/extend.md)")
    plan_policies(env.task, quality, 1, env.action_repeat, 0)
    return env


def _check_reuse(path: Path, info: dict[str, Any], action_repeat: int) -> None:
    try:
        found = Episodes.load(path)
    except InputError as error:
        raise InputError(f"{error} (remove {path} first)") from error
    wanted, present = _flat(info), _flat(found.info)
    differ = [
        f"{key} is {present.get(key)!r}, not {wanted.get(key)!r}"
        for key in (*wanted, *(key for key in present if key.startswith("environment.") and key not in wanted))
        if present.get(key) != wanted.get(key)
    ]
    if differ:
        raise InputError(
            f"{path}: exists with other settings: {'; '.join(differ)}; remove it, or choose another seed or data_root"
        )
    _, policies = plan_policies(info["task"], info["quality"], info["episodes"], action_repeat, info["seed"])
    if found.info.get("policy_info") != _policy_info(policies):
        raise InputError(f"{path}: exists, of other policies than today's; remove it, or choose another data_root")
    print(f"{path}: exists already, reused ({len(found)} episodes, mean return {found.returns.mean():.1f})")


def _policy_info(policies: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Name of a policy -> what is known of it; nothing of "random"."""
    return {name: policy.info if policy else {} for name, policy in policies.items()}


def _flat(info: dict[str, Any]) -> dict[str, Any]:
    """The info with each field of its environment as `environment.FIELD`."""
    fields = info.get("environment")
    flat = {key: value for key, value in info.items() if key != "environment"}
    return flat | {f"environment.{key}": value for key, value in (fields if isinstance(fields, dict) else {}).items()}


def plan_policies(
    task: str, quality: str, episodes: int, action_repeat: int, seed: int
) -> tuple[list[tuple[str, ...]], dict[str, Any]]:
    """(names of each episode's policies, one or the two that take turns; name -> policy). The policy "random" is None.

    Raises:
        InputError: if the task has no policies, or they were made for another action repeat.
    """
    if quality == "random":
        return [("random",)] * episodes, {"random": None}
    expert = load_policy(task)
    if expert.info["action_repeat"] != action_repeat:
        raise InputError(
            f"action_repeat={action_repeat}: the policies of {task} were made for {expert.info['action_repeat']}; "
            "use that, or quality=random"
        )
    policies = dict(zip(["random", *policy_names(task)], ladder(task), strict=True))
    if quality == "expert":
        return [("expert",)] * episodes, {"expert": expert}
    if quality == "medium":
        half = expert.info["return_mean"] / 2
        medium = min(policy_names(task), key=lambda name: abs(policies[name].info["return_mean"] - half))  # type: ignore[union-attr]
        return [(medium,)] * episodes, {medium: policies[medium]}
    random = np.random.default_rng(seed)
    turns = [[list(policies)[index % len(policies)] for index in random.permutation(episodes)] for _ in range(2)]
    return list(zip(*turns)), {name: policy for name, policy in policies.items() if name in turns[0] + turns[1]}


def _write(path: Path, info: dict[str, Any], env: DMControlEnv, processes: int | None) -> None:
    """Collect the episodes of a checked info into a new folder."""
    episodes, steps = info["episodes"], math.ceil(env.step_limit / env.action_repeat)
    chosen, policies = plan_policies(env.task, info["quality"], episodes, env.action_repeat, info["seed"])
    shapes = _shapes(env)
    rows = episodes * (steps + 1)
    size = rows * sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in shapes.values())
    print(f"{path}: collecting {episodes} episodes of {steps} steps, {size / 1e9:.3f} GB")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"data_root={str(path.parent)!r}: cannot make this folder ({error})") from error
    quality = COLLECTION_QUALITIES.index(info["quality"])
    seeds = np.random.SeedSequence([info["seed"], quality]).generate_state(episodes)
    rates = [0.0 if info["quality"] == "random" else DISTURBANCES[i % len(DISTURBANCES)] for i in range(episodes)]
    actors = [
        Actor([policies[name] for name in names], rate, seed, steps)
        for names, rate, seed in zip(chosen, rates, seeds.tolist())
    ]
    rounds = math.ceil(episodes / PARALLEL)
    vector = VectorEnv(info["environment"], math.ceil(episodes / rounds), processes, observation="both")
    try:
        origin = info | {
            "MUJOCO_GL": os.environ.get("MUJOCO_GL", ""),
            "back_end": vector.gl_name(),
            "policies": [list(names) for names in chosen],
            "handovers": [actor.handover for actor in actors],
            "disturbances": rates,
            "episode_seeds": seeds.tolist(),
            "policy_info": _policy_info(policies),
            "decision_seconds": env.decision_seconds,
            "joints": env.joints(),
            "versions": versions(),
        }
        with EpisodesWriter(path, rows, origin, _record(shapes)) as writer:
            _fill(writer, {key: writer.create(key, *spec) for key, spec in shapes.items()}, vector, steps, actors)
            writer.offsets = np.arange(episodes + 1) * (steps + 1)
    finally:
        vector.close()


def _record(shapes: Mapping[str, tuple[tuple[int, ...], Any]]) -> Record:
    """The record of collected data: the observations are the simulator's states."""
    kinds = {"frames": PICTURE, "observations": TRUE_STATE}
    observations = {name: Observation(kind, shapes[name][0]) for name, kind in kinds.items()}
    return Record(observations, Actions.unit(shapes["actions"][0][0]))


def _shapes(env: DMControlEnv) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Array -> shape of a row, and type."""
    return {
        "frames": ((env.size, env.size, 3), np.uint8),
        "observations": (env.observation_space.shape or (), np.float32),
        "actions": (env.action_space.shape or (), np.float32),
        "rewards": ((), np.float32),
        "terminations": ((), bool),
        "truncations": ((), bool),
        "physics": (env.get_physics().shape, np.float64),
    }


class Actor:
    """Chooses one episode's actions.

    Args:
        policies: one, or two of which the second takes over; None stands for uniform random actions.
        rate: chance that a disturbance begins at a decision.
        seed: of the handover, the disturbances and the random actions.
        decisions: length of the episode.
    """

    def __init__(self, policies: Sequence[Any], rate: float, seed: int, decisions: int) -> None:
        self.policies, self.rate, self.seed = policies, rate, seed
        self.random = np.random.default_rng([seed, 1])
        self.handover = int(self.random.integers(decisions)) if len(policies) > 1 else decisions
        self.decision = 0
        self.disturbed = 0  # decisions left of the disturbance
        self.disturbance = np.zeros(0)  # its action

    @property
    def policy(self) -> Any:
        """The policy of the next decision."""
        return self.policies[0 if self.decision < self.handover else -1]

    def decide(self, action: np.ndarray) -> np.ndarray:
        """The action to carry out (m,): the policy's action, or a random one in its place. Ends the decision."""
        policy = self.policy
        self.decision += 1
        if policy is None:
            return self.random.uniform(-1, 1, action.shape)
        if self.disturbed == 0 and self.random.random() < self.rate:
            self.disturbed = int(self.random.integers(*DISTURBED, endpoint=True))
            self.disturbance = self.random.uniform(-1, 1, action.shape)
        if self.disturbed == 0:
            return np.clip(action, -1, 1)
        self.disturbed -= 1
        return self.disturbance


def choose_actions(actors: list[Actor], states: np.ndarray, dimension: int) -> np.ndarray:
    """Actions (B, m) float32 of B actors in their states (B, o); each policy is called once, for all its actors."""
    actions = np.zeros((len(actors), dimension), np.float32)
    for policy in {id(actor.policy): actor.policy for actor in actors}.values():
        index = [i for i, actor in enumerate(actors) if actor.policy is policy]
        if policy is not None:
            actions[index] = policy(states[index])
    return np.stack([actor.decide(action) for actor, action in zip(actors, actions)]).astype(np.float32)


def _fill(
    writer: EpisodesWriter, arrays: dict[str, np.ndarray], vector: VectorEnv, steps: int, actors: list[Actor]
) -> None:
    """Run the episodes that the writer does not hold yet, `vector.num_envs` at a time, and write their rows."""
    done, start = writer.progress, time.perf_counter()
    if done:
        print(f"continuing after {done} episodes")
    dimension, rewards = arrays["actions"].shape[1], arrays["rewards"]
    with progress(len(rewards), "collect", done * (steps + 1), unit="frames") as bar:
        for first in range(done, len(actors), vector.num_envs):
            batch = actors[first : first + vector.num_envs]
            count, padding = len(batch), vector.num_envs - len(batch)
            # at first all, also those without an episode: an environment steps only after a reset
            mask = (np.arange(vector.num_envs) < count) | (first == done)
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
