"""Checks of the evaluation settings, before any training and before any episode."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from omegaconf import DictConfig

import envs
from envs.observations import Observed
from envs.protocol import Environments
from envs.record import check_record, environment_of, whole_episodes
from envs.rendering import back_end
from envs.vector import VectorEnv
from mpdiffuser.episodes import Episodes
from mpdiffuser.errors import InputError, NotInstalled
from mpdiffuser.methods import METHODS
from mpdiffuser.pipeline import MPDiffuserPipeline
from mpdiffuser.recipe import Recipe
from mpdiffuser.record import Record
from mpdiffuser.safe_loading import check_component


def check_evaluation(cfg: DictConfig) -> None:
    """Raise InputError for a value of the configuration that evaluation does not allow."""
    section = cfg.evaluation
    if set(section.methods) - set(METHODS):
        raise InputError(f"evaluation.methods: must be of {', '.join(METHODS)}; found {list(section.methods)}")
    least_values = {"episodes": 1, "first_seed": 0, "probe_every": 0, "parallel_controllers": 1, "max_decisions": 1}
    for name, least in least_values.items():
        if section[name] is not None and section[name] < least:
            raise InputError(f"evaluation.{name}: must be at least {least}, found {section[name]}")
    if section.first_seed + section.episodes > 2**32:
        raise InputError(
            f"evaluation.first_seed: must be at most {2**32 - section.episodes}, found {section.first_seed}"
        )
    if not 0 <= (section.safety_probability or 0) < 1:
        raise InputError(
            f"evaluation.safety_probability: must be at least 0 and below 1, found {section.safety_probability}"
        )


def check_real_time(cfg: DictConfig, info: Mapping[str, Any]) -> None:
    """Raise InputError if the evaluation is to be in real time, and the data or the plans do not allow it.

    Args:
        cfg: the whole configuration; only that of a training has a stride.
        info: of the data or of the pipeline.
    """
    if cfg.evaluation.real_time:
        stride = cfg.get("stride", info.get("stride", 1))
        if stride > 1:
            raise InputError(f"evaluation.real_time: not with plans of stride={stride}; set it to false")
        if info.get("decision_seconds") is None:
            raise InputError("evaluation.real_time: decision_seconds is missing in the data; set it to false")
        if info.get("cost_limits"):
            raise InputError("evaluation.real_time: not with limits on costs, as these data have; set it to false")


def observed(record: Record | None) -> Observed:
    """Return what an environment is asked for (`envs.make`), so that it gives the observations of a record."""
    names = tuple(record.observations) if record else ("observations",)
    usual: dict[tuple[str, ...], Observed] = {("observations",): "states", ("frames",): "frames"}
    return usual.get(names, names)


def check_simulator(cfg: DictConfig, environment: Mapping[str, Any], observation: Observed = "frames") -> None:
    """Raise InputError unless the environment can be made and gives what the methods see. It runs in another process.

    Args:
        cfg: the whole configuration; its pipeline sees pixels.
        environment: record of the environment.
        observation: what the pipeline sees; see `observed`.
    """
    states = all(METHODS[name].sees_states for name in cfg.evaluation.methods)
    vector = VectorEnv(whole_episodes(environment), 1, 1, "states" if states else observation)
    try:
        vector.reset(seed=[cfg.evaluation.first_seed])
    finally:
        vector.close()


def gives_goals(environment: Mapping[str, Any], observation: Observed) -> bool:
    """Return whether an environment gives goals at its reset (see `envs.protocol`). It runs in another process.

    Args:
        environment: record of the environment.
        observation: what the pipeline sees; see `observed`.
    """
    vector = VectorEnv(whole_episodes(environment), 1, 1, observation)
    try:
        return "goal" in vector.reset(seed=[0])[1]
    finally:
        vector.close()


def require_models(method: str, folder: Path, limits: Sequence[float] = ()) -> None:
    """Raise InputError unless a pipeline folder has the models that the method needs.

    A pipeline that imitates has no ranker (`mpdiffuser.preparation.imitates`).
    """
    recipes = _needed(method, folder, limits)
    missing = _missing(recipes, folder)
    if missing:
        others = [name for name in METHODS if (need := _needed(name, folder)) and not _missing(need, folder)]
        held = f"give evaluation.methods=[{','.join(others)}], whose models it holds, or " if others else ""
        raise InputError(
            f"evaluation.methods: {method} needs {', '.join(missing)}, which {folder} does not hold; "
            f"{held}train with method={method}, or method=all"
        )
    for recipe in recipes:
        check_component(folder / recipe.name, (recipe.kind.__module__, recipe.kind.__name__))


def _needed(method: str, folder: Path, limits: Sequence[float] = ()) -> list[Recipe]:
    """Return the recipes of the models with which the method acts."""
    recipes = [recipe for recipe in METHODS[method].recipes(limits) if recipe.acts]
    imitates = (folder / "planner").is_dir() and not (folder / "ranker").is_dir()
    if imitates and not METHODS[method].needs_rewards:
        return [recipe for recipe in recipes if recipe.name != "ranker"]
    return recipes


def _missing(recipes: Sequence[Recipe], folder: Path) -> list[str]:
    return [recipe.name for recipe in recipes if not (folder / recipe.name).is_dir()]


def check_info(info: Mapping[str, Any], given: str | None = None) -> Mapping[str, Any]:
    """Return the record of the environment to evaluate in: the option `environment`, or the pipeline's.

    Rendering back-ends differ only a little in their pictures, so another back-end than the data's prints a note.

    Args:
        info: of the pipeline.
        given: the option `environment`.

    Raises:
        InputError: unless the info has the entries that evaluation needs.
    """
    record = environment_of(given, info.get("environment"))
    if "data" not in info:
        raise InputError("the pipeline's info: data is missing: it cannot be evaluated in an environment")
    if record is None:
        raise InputError(
            "the pipeline's info: environment is missing: it cannot be evaluated; give environment=, a gymnasium id, "
            "ogbench/ID or package.module:factory"
        )
    check_record(record, "the pipeline's info.environment")
    if "back_end" in info and back_end() != info["back_end"].partition(":")[0]:
        print(f"note: rendering with {back_end()}, the data with {info['back_end']}; pixels differ a little")
    return record


def with_environment(episodes: Episodes, given: str | None, *kinds: str) -> Episodes:
    """Return the episodes with the record of their environment and its decision_seconds in `info`.

    Without an environment, the episodes are returned as they are. Where the environment of the data's info needs a
    package that is not installed, there is none.

    Args:
        episodes: the data to train on.
        given: the option `environment`; None: the environment of the data's info.
        kinds: of the observations that are trained on (see `mpdiffuser.record.KINDS`).

    Raises:
        InputError: if the environment cannot be made, or if its observations, actions, bounds of actions,
            decision_seconds or action_repeat do not fit the data.
    """
    record = environment_of(given, episodes.info.get("environment"))
    if record is None:
        return episodes
    compared = ("action_repeat", "task") if record["kind"] == "dm_control" else ("action_repeat",)
    facts = {key: (episodes.info.get(key), record.get(key)) for key in compared}
    differ = {key: pair for key, pair in facts.items() if None not in pair and pair[0] != pair[1]}
    if "action_repeat" in differ:
        known, found = differ["action_repeat"]
        raise InputError(
            f"environment: action_repeat {found}, but the data have {known}; set task.action_repeat={known}"
        )
    if "task" in differ:
        print(f"note: the data are of {differ['task'][0]}, the environment is {differ['task'][1]}")
    data = episodes.record.only(*kinds)
    try:
        env = envs.make(record, observed(data))
    except NotInstalled as error:
        if given is not None:
            raise
        print(f"note: not evaluated in an environment: {error}; then train again")
        return replace(episodes, info={k: v for k, v in episodes.info.items() if k != "environment"})
    try:
        seconds = env.decision_seconds
        _check_spaces(env, data, episodes.info.get("decision_seconds"), "the data have")
    finally:
        env.close()
    space: Any = env.action_space
    largest, bound = np.abs([data.actions.low, data.actions.high]).max(), np.abs([space.low, space.high]).max()
    if 0.95 <= largest <= 1 and 1.05 < bound < np.inf:
        print(f"note: the data's actions lie in [-1, 1], the environment's in {space}; both must have one unit")
    known = {} if seconds is None else {"decision_seconds": seconds}
    return replace(episodes, info=episodes.info | {"environment": record} | known)


def check_environments(environments: Environments, pipeline: MPDiffuserPipeline, states: bool) -> None:
    """Raise InputError unless the environments have the spaces and the decision time of the training data.

    Args:
        environments: a batch of environments.
        pipeline: the trained pipeline.
        states: whether the environments return true states; their space is then not compared.
    """
    record = pipeline.record or Record({}, pipeline.action_bounds)
    record = replace(record, observations={}) if states else record
    seconds = pipeline.config["info"].get("decision_seconds")
    _check_spaces(environments, record, seconds, "the pipeline was trained with")


def _check_spaces(environment: Any, data: Record, seconds: float | None, phrase: str) -> None:
    """Raise InputError unless an environment, or a batch of environments, fits the data.

    Args:
        environment: an `Environment` or `Environments`.
        data: the record of the data; without observations these are not compared.
        seconds: decision_seconds of the data; None: unknown.
        phrase: of the message.
    """
    batch = hasattr(environment, "single_action_space")
    actions = environment.single_action_space if batch else environment.action_space
    seen = environment.single_observation_space if batch else environment.observation_space
    assert isinstance(actions, gymnasium.spaces.Box)
    found: dict[str, Any] = {"actions": actions.shape, "decision_seconds": environment.decision_seconds}
    expected: dict[str, Any] = {"actions": (len(data.actions.low),)}
    if seconds is not None and environment.decision_seconds is not None:
        expected["decision_seconds"] = seconds
    spaces = dict(seen.spaces) if isinstance(seen, gymnasium.spaces.Dict) else {"": seen}
    wanted = data.observations
    if len(wanted) == 1 and "" in spaces:
        spaces = dict.fromkeys(wanted, seen)
    for name, each in wanted.items():
        space = spaces.get(name)
        found[name] = f"not among {list(spaces)}" if space is None else f"{space.dtype} {space.shape}"
        expected[name] = f"{each.dtype} {each.shape}"
    for key, value in expected.items():
        if found[key] != value:
            raise InputError(f"environment: {key} {found[key]}, but {phrase} {value}")
    low, high = np.array(data.actions.low), np.array(data.actions.high)
    margin = 0.01 * np.where(np.isfinite(actions.high - actions.low), actions.high - actions.low, 1.0)
    outside = np.flatnonzero((low < actions.low - margin) | (high > actions.high + margin))
    if len(outside):
        raise InputError(
            f"environment: actions[{outside[0]}] lies in [{actions.low[outside[0]]:g}, {actions.high[outside[0]]:g}], "
            f"but {phrase} [{low[outside[0]]:g}, {high[outside[0]]:g}]; give the data the environment's unit and bounds"
        )
