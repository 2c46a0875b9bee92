"""python -m envs.experts: table of returns of the committed policies: random, checkpoints, expert

python -m envs.experts --mppi 3: the same, with 3 episodes of MPPI for each task
"""

import argparse
import sys
from collections.abc import Sequence

import numpy as np
from scipy.stats import sem

from envs.experts import SEEDS, ladder, load_policy, rollout_returns, tasks
from mpdiffuser.commands import entry_point


def format_returns(returns: np.ndarray) -> str:
    """'mean ± standard error' of the returns of episodes; the mean alone where there is one episode."""
    return f"{returns.mean():.0f}" + (f" ± {sem(returns):.0f}" if len(returns) > 1 else "")


def table_row(task: str, episodes: int, mppi: int) -> list[str]:
    """Cells of one task: task, random, checkpoints, expert, and MPPI if it is asked for."""
    seeds = range(SEEDS[0], SEEDS[0] + episodes)
    action_repeat = load_policy(task).info["action_repeat"]
    cells = [format_returns(rollout_returns(task, action_repeat, policy, seeds)) for policy in ladder(task)]
    row = [task, cells[0], ", ".join(cells[1:-1]), cells[-1]]
    if mppi:
        from envs.experts.mppi import mppi_returns

        row.append(format_returns(mppi_returns(task, range(SEEDS[0], SEEDS[0] + mppi))))
    return row


@entry_point
def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m envs.experts",
        description="Mean return ± standard error of the committed policies, over episodes from fixed seeds.",
    )
    parser.add_argument("tasks", nargs="*", help=f"default: all of {', '.join(tasks())}")
    parser.add_argument("--episodes", type=int, default=len(SEEDS), help="for each policy (default: %(default)s)")
    parser.add_argument("--mppi", type=int, default=0, help="episodes of MPPI for each task (default: %(default)s)")
    options = parser.parse_args(arguments)
    if options.episodes < 1 or options.mppi < 0:
        parser.error(f"--episodes must be at least 1 and --mppi at least 0, found {options.episodes}, {options.mppi}")
    head = ["task", "random", "checkpoints", "expert"] + (["MPPI"] if options.mppi else [])
    print("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|")
    for task in options.tasks or tasks():
        print("| " + " | ".join(table_row(task, options.episodes, options.mppi)) + " |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
