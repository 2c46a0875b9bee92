"""Checks of the evaluation settings, before any training and before any episode."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium
from omegaconf import DictConfig

from envs.protocol import Environments
from envs.record import check_record, whole_episodes
from envs.rendering import back_end
from envs.vector import VectorEnv
from mpdiffuser.errors import InputError
from mpdiffuser.methods import METHODS
from mpdiffuser.pipeline import MPDiffuserPipeline
from mpdiffuser.safe_loading import check_component


def check_evaluation(cfg: DictConfig) -> None:
    """Raise InputError for a value of the configuration that evaluation does not allow."""
    section = cfg.evaluation
    if not section.methods or set(section.methods) - set(METHODS):
        raise InputError(f"evaluation.methods: must be of {', '.join(METHODS)}; found {list(section.methods)}")
    for name, least in (("episodes", 1), ("first_seed", 0), ("probe_every", 0), ("parallel_controllers", 1)):
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


def check_simulator(cfg: DictConfig, environment: Mapping[str, Any]) -> None:
    """Raise InputError unless the environment can be made and gives what the methods see. It runs in another process.

    Args:
        cfg: the whole configuration; its pipeline sees pixels.
        environment: record of the environment.
    """
    states = all(METHODS[name].sees_states for name in cfg.evaluation.methods)
    vector = VectorEnv(whole_episodes(environment), 1, 1, "states" if states else "frames")
    try:
        vector.reset(seed=[cfg.evaluation.first_seed])
    finally:
        vector.close()


def require_models(method: str, folder: Path, limits: Sequence[float] = ()) -> None:
    """Raise InputError unless a pipeline folder has the models that the method needs."""
    recipes = METHODS[method].recipes(limits)
    missing = [recipe.name for recipe in recipes if not (folder / recipe.name).is_dir()]
    if missing:
        raise InputError(
            f"evaluation.methods: {method} needs {', '.join(missing)}, which {folder} does not hold; "
            f"train with method={method}, or method=all"
        )
    for recipe in recipes:
        check_component(folder / recipe.name, (recipe.kind.__module__, recipe.kind.__name__))


def check_info(info: Mapping[str, Any]) -> None:
    """Raise InputError unless a pipeline's info has the entries that evaluation needs.

    Rendering back-ends differ only a little in their pictures, so another back-end than the data's prints a note.
    """
    missing = [key for key in ("task", "data", "environment") if key not in info]
    if missing:
        raise InputError(f"the pipeline's info: {missing[0]} is missing: it cannot be evaluated in an environment")
    check_record(info["environment"], "the pipeline's info.environment")
    if "back_end" in info and back_end() != info["back_end"].partition(":")[0]:
        print(f"note: rendering with {back_end()}, the data with {info['back_end']}; pixels differ a little")


def check_environments(environments: Environments, pipeline: MPDiffuserPipeline, states: bool) -> None:
    """Raise InputError unless the environments have the spaces and the decision time of the training data.

    Args:
        environments: a batch of environments.
        pipeline: the trained pipeline.
        states: whether the environments return true states; their space is then not compared.
    """
    actions, seen = environments.single_action_space, environments.single_observation_space
    assert isinstance(actions, gymnasium.spaces.Box)
    info = pipeline.config["info"]
    found: dict[str, Any] = {
        "actions": actions.shape,
        "low": float(actions.low.min()),
        "high": float(actions.high.max()),
    }
    expected: dict[str, Any] = {"actions": (pipeline.actions.config["dim"],), "low": -1.0, "high": 1.0}
    if not states and "observation" in info:
        found |= {"observations": seen.shape, "dtype": str(seen.dtype)}
        expected |= {"observations": tuple(info["observation"]["shape"]), "dtype": info["observation"]["dtype"]}
    if "decision_seconds" in info:
        found["decision_seconds"] = environments.decision_seconds
        expected["decision_seconds"] = info["decision_seconds"]
    for key, value in expected.items():
        if found[key] != value:
            raise InputError(f"environment: {key} {found[key]}, but the pipeline was trained with {value}")
