"""What episodes go through before training: units of actions, the dynamics model's own data, imitation or not."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from omegaconf import DictConfig

from mpdiffuser.episodes import Episodes
from mpdiffuser.errors import InputError
from mpdiffuser.models.normalizer import Normalizer
from mpdiffuser.record import DECLARED, SEEN, Actions
from mpdiffuser.windows import step_rows


def unit_actions(episodes: Episodes, out_of_bounds: str) -> tuple[Episodes, Actions]:
    """Return the episodes with actions in [-1, 1], as models see them, and the bounds in the data's units.

    Args:
        episodes: their record has the bounds.
        out_of_bounds: what to do with actions beyond the bounds: "refuse", "clip" them, or "widen" the bounds.

    Raises:
        InputError: for another choice, or for actions beyond the bounds with "refuse".
    """
    if out_of_bounds not in ("refuse", "clip", "widen"):
        raise InputError(f"out_of_bounds: must be refuse, clip or widen, found {out_of_bounds!r}")
    bounds, steps, actions = episodes.record.actions, step_rows(episodes), np.asarray(episodes["actions"])
    beyond = bounds.beyond(actions)
    beyond[episodes.offsets[1:] - 1] = False  # no action is taken at the final observation
    if beyond.any():
        number = int(np.argmax(beyond.any(0)))
        name = f" ({bounds.names[number]})" if bounds.names else ""
        seen = Actions.seen(actions, episodes.offsets[1:] - 1)
        found = (
            f"{np.count_nonzero(beyond.any(1)):,} of {len(steps):,} actions are beyond the {bounds.bounds} bounds; "
            f"action {number}{name} lies in {seen.low[number]:.6g}..{seen.high[number]:.6g}, its bounds are "
            f"{bounds.low[number]:.6g}..{bounds.high[number]:.6g}"
        )
        if out_of_bounds == "refuse":
            raise InputError(
                f"{episodes.path or 'dataset'}: {found}; set out_of_bounds=clip to clip them, or out_of_bounds=widen "
                "if the bounds are wrong"
            )
        print(f"note: {found}; out_of_bounds={out_of_bounds}")
        if out_of_bounds == "widen":
            low, high = tuple(map(min, bounds.low, seen.low)), tuple(map(max, bounds.high, seen.high))
            bounds = Actions(low, high, SEEN, bounds.names)
    scale = bounds.scale()
    if scale.identity and not beyond.any():
        return episodes, bounds
    unit = scale.to_unit(actions).clip(-1, 1)
    unit[episodes.offsets[1:] - 1] = 0
    record = replace(episodes.record, actions=Actions.unit(unit.shape[1]))
    arrays = episodes.arrays | {"actions": unit}
    return Episodes(arrays, episodes.offsets, episodes.info, episodes.path, episodes.numbers, record), bounds


def dynamics_episodes(
    cfg: DictConfig, more: Episodes, episodes: Episodes, bounds: Actions, kinds: Sequence[str]
) -> Episodes:
    """Return the data of the dynamics model alone, with actions in the units that models see.

    The bounds of the planner's data map actions to [-1, 1]. If they are declared, cfg.out_of_bounds tells what to do
    with actions beyond them; with "widen", and beyond bounds that are only the range of the planner's data, the model
    sees numbers beyond [-1, 1].

    Args:
        more: the data.
        episodes: the planner's data.
        bounds: of their actions, in the data's units; result of `unit_actions`.
        kinds: of the observations that are trained on (see `mpdiffuser.record.KINDS`).

    Raises:
        InputError: for a share that is not allowed, or if the data are not of the same robot: other observations,
            actions, bounds or seconds a decision.
    """
    if not 0 < cfg.dynamics_share < 1:
        raise InputError(f"dynamics_share: must lie between 0 and 1, found {cfg.dynamics_share}")
    theirs = more.record.actions
    facts: dict[str, Any] = {
        "observations": [_shapes(each, kinds) for each in (more, episodes)],
        "number of actions": [len(each.low) for each in (theirs, bounds)],
    }
    if DECLARED == bounds.bounds == theirs.bounds:
        facts["bounds of actions"] = [(each.low, each.high) for each in (theirs, bounds)]
    seconds = [each.info.get("decision_seconds") for each in (more, episodes)]
    if None not in seconds:
        facts["decision_seconds"] = seconds
    for name, (found, expected) in facts.items():
        if found != expected:
            raise InputError(
                f"dynamics_data: {more.path}: {name}: found {found}, but the planner's data have {expected}"
            )
    keep = bounds.bounds != DECLARED or cfg.out_of_bounds == "widen"
    if not keep:
        unit, _ = unit_actions(replace(more, record=more.record.with_actions(bounds)), cfg.out_of_bounds)
        return unit
    unit = bounds.scale().to_unit(np.array(more["actions"]))
    unit[more.offsets[1:] - 1] = 0
    record = more.record.with_actions(Actions.seen(unit, more.offsets[1:] - 1))
    return replace(more, arrays=more.arrays | {"actions": unit}, record=record)


def within(episodes: Episodes, latents: Normalizer) -> Episodes:
    """Return latent episodes with each entry in the range of the planner's data, as plans are (`Sampler`).

    In units of the planner's data a few states far beyond its range would have most of the loss.
    """
    low, high = (bound.detach().cpu().numpy() for bound in (latents.low, latents.high))
    return replace(episodes, arrays=episodes.arrays | {"observations": episodes["observations"].clip(low, high)})


def _shapes(episodes: Episodes, kinds: Sequence[str]) -> dict[str, tuple[int, ...]]:
    return {name: episodes.record.observations[name].shape for name in episodes.record.names(*kinds)}


def with_cost_limits(cfg: DictConfig, episodes: Episodes) -> Episodes:
    """Return the episodes with the limits of cfg.cost_limits in their info; without that option as they are.

    A budget is spread over the info's `episode_steps`: the task's, or the length of the longest episode.

    Raises:
        InputError: for limits that are not positive numbers, or if the data have no costs or no rewards.
    """
    if cfg.cost_limits is None:
        return episodes
    limits = [each for each in cfg.cost_limits if type(each) in (int, float) and 0 < each < math.inf]
    if len(limits) < len(cfg.cost_limits):
        raise InputError(f"cost_limits: must be positive numbers, such as [20,40], found {list(cfg.cost_limits)}")
    if "costs" not in episodes or imitates(cfg, episodes):
        lacking = "costs" if "costs" not in episodes else "rewards that are used"
        raise InputError(f"cost_limits: {episodes.path or 'the data'} have no {lacking}; leave the option out")
    steps = episodes.info.get("episode_steps") or int(episodes.lengths.max())
    info = episodes.info | {"cost_limits": sorted({float(each) for each in limits}), "episode_steps": steps}
    return replace(episodes, info=info)


def goal_entries(cfg: DictConfig, episodes: Episodes, kinds: Sequence[str]) -> list[int] | None:
    """Return the numbers of the entries of a latent that a goal is, from cfg.goal_entries; None: all.

    Args:
        kinds: of the observations that latents are made of; with one of them a latent is an observation.

    Raises:
        InputError: for an entry that is not there or given twice, or where entries cannot be chosen.
    """
    chosen = cfg.goal_entries
    if chosen is None:
        return None
    if not cfg.goals or cfg.get("history") != 1:
        raise InputError("goal_entries: is for goals=true from states, with history=1; leave it out")
    parts = [episodes.record.observations[name] for name in episodes.record.names(*kinds)]
    names = [name for part in parts for name in (part.names or [""] * part.shape[0])]
    found = []
    for entry in chosen:
        number = names.index(entry) if isinstance(entry, str) and entry in names else entry
        if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < len(names):
            named = f", or a name: {', '.join(filter(None, names))}" if any(names) else ""
            raise InputError(f"goal_entries: must be numbers in 0..{len(names) - 1}{named}; found {entry!r}")
        found.append(number)
    if not found or len(set(found)) < len(found):
        raise InputError(f"goal_entries: must be one or more entries, each once, found {list(chosen)}")
    return found


def imitates(cfg: DictConfig, episodes: Episodes) -> bool:
    """Return whether the planner imitates and there is no ranker: with goals, or if data have no rewards and costs."""
    return cfg.goals or ("rewards" in episodes.info.get("missing", ()) and "costs" not in episodes)


def dynamics_info(cfg: DictConfig, more: Episodes) -> dict[str, Any]:
    """Return what a pipeline's info tells of the dynamics model's own data."""
    steps = int(more.lengths.sum())
    return {
        **{"source": str(more.path), "data": more.checksum(*more.record.observations, "actions")},
        **{"episodes": len(more), "steps": steps, "planner_share": cfg.dynamics_share},
    }
