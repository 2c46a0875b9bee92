"""What the command tells of datasets: a description of one, and the list of the public tasks."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from envs.datasets.tasks import OFFLINE_TASKS, cost_score, find_file, find_offline_task
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
    yield f"arrays        {', '.join(f'{key} {array.shape[1:]}' for key, array in sorted(episodes.arrays.items()))}"
    yield f"return        {_spread(returns)}"
    if task and task.score(0.0) is not None:
        scores = np.array([task.score(float(value)) for value in returns])
        factor = "100 " if suite == "d4rl" else ""
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


def _spread(values: np.ndarray) -> str:
    return f"{values.mean():.4g} +- {values.std():.3g} [{values.min():.4g}, {values.max():.4g}]"


def list_tasks(data_dir: str | Path | None) -> Iterator[str]:
    """The lines of `ls`, one a task: id, episode length, where it is evaluated, where its file lies."""
    for task in OFFLINE_TASKS.values():
        try:
            file, stand_in = find_file(task, data_dir)
            place = f"{file}{' (stand-in)' if stand_in else ''}"
        except InputError:
            place = "not here"
        evaluation = f"evaluated in {task.env_id}" if task.environment else "trained without evaluation"
        yield f"{task.id:48} {task.episode_steps:5} steps  {evaluation:27} {place}"
