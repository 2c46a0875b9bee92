"""What the command tells of datasets: a description of one, and the list of the public tasks."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from envs.datasets.tasks import OFFLINE_TASKS, PERCENT, cost_score, find_file, find_offline_task
from mpdiffuser.episodes import Episodes
from mpdiffuser.errors import InputError


def describe(episodes: Episodes) -> Iterator[str]:
    """The lines of `show`: origin, sizes, and mean +- standard deviation [minimum, maximum] of what episodes have."""
    info, returns, lengths = episodes.info, episodes.returns, episodes.lengths
    suite = info.get("suite")
    task = find_offline_task(info["task"], suite) if suite else None
    yield f"origin        {', '.join(f'{key} {value}' for key, value in info.items() if isinstance(value, str))}"
    if info.get("stand_in"):
        yield f"stand-in      not the public file: its results are no {suite} results"
    yield f"episodes      {len(episodes):,}, steps {lengths.sum():,}"
    for name, each in episodes.record.observations.items():
        yield f"observation   {name}: {each.kind}, {each.dtype} {each.shape}{_range(episodes[name], each.names)}"
    actions = episodes.record.actions
    taken = _ends(np.delete(episodes["actions"], episodes.offsets[1:] - 1, 0))
    yield f"actions       {len(actions.low)}, bounds {actions.bounds}{_names(actions.names)}"
    for number, ends in enumerate(zip(actions.low, actions.high, *taken)):
        yield f"  action {number:<7}bounds {ends[0]:.6g}..{ends[1]:.6g}, data {ends[2]:.6g}..{ends[3]:.6g}"
    others = sorted(set(episodes.arrays) - set(episodes.record.observations) - {"actions"})
    yield f"also there    {', '.join(others)}"
    seconds = info.get("decision_seconds")
    yield f"decision      {'unknown duration' if seconds is None else f'{seconds:g} s'}"
    environment = info.get("environment")
    yield f"environment   {'none' if environment is None else environment}"
    yield f"return        {_spread(returns)}"
    if task:
        scores = np.array([task.score(float(value)) for value in returns])
        factor = "100 " if suite in PERCENT else ""
        yield f"score         {_spread(scores)} = {factor}(R - {task.low}) / ({task.high} - {task.low})"
    if info.get("source") == "V-D4RL":
        yield f"score         {_spread(returns / 10)}, a tenth of the return"
    if "costs" in episodes:
        costs = np.add.reduceat(np.asarray(episodes["costs"], np.float64), episodes.offsets[:-1])
        yield f"cost          {_spread(costs)}"
        for limit in task.limits if task else ():
            share = f"{(costs <= limit).mean():.0%} of the episodes within it"
            yield f"  limit {limit:<8g}normalised {cost_score(costs.mean(), limit):.3g}, {share}"
    yield f"length        {_spread(lengths)}"
    yield f"terminations  {np.count_nonzero(episodes['terminations']):,} of {len(episodes):,} episodes"
    yield f"missing keys  {', '.join(info.get('missing', [])) or 'none'}"
    for name, reason in info.get("left_out", {}).items():
        yield f"left out      {name}: {reason}"
    for note in info.get("notes", []):
        yield f"note          {note}"


def _range(values: np.ndarray, names: tuple[str, ...]) -> str:
    """The range of a vector (M, n) and its names; empty for pictures."""
    if values.dtype == np.uint8:
        return ""
    low, high = _ends(values)
    return f", in {low.min():.6g}..{high.max():.6g}{_names(names)}"


def _ends(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return rows.min(0), rows.max(0)


def _names(names: tuple[str, ...]) -> str:
    return f": {', '.join(names)}" if names else ""


def _spread(values: np.ndarray) -> str:
    return f"{values.mean():.4g} +- {values.std():.3g} [{values.min():.4g}, {values.max():.4g}]"


def list_tasks(data_dir: str | Path | None) -> Iterator[str]:
    """The lines of `ls`, one a task: id, episode length, where it is evaluated, where its file is or comes from."""
    for task in OFFLINE_TASKS.values():
        try:
            file, stand_in = find_file(task, data_dir)
            place = f"{file}{' (stand-in)' if stand_in else ''}"
        except InputError:
            place = "can be made or downloaded" if task.can_be_made else "to be downloaded"
        name = task.evaluated_in
        evaluation = f"evaluated in {name}" if name else "trained without evaluation"
        reason = f" ({task.without})" if task.without else ""
        yield f"{task.id:48} {task.episode_steps:5} steps  {evaluation:27} {place}{reason}"
