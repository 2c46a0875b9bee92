"""Random episodes for the dynamics model alone, in FetchPickAndPlace: python -m experiments.fetch --help

The planner is trained on 10 or 50 demonstrations of a scripted controller. The dynamics model sees 0 to 10,000 random
episodes more, as in the paper's curve of sample efficiency (Balim, Li and Du 2025). Needs pip install
'mpdiffuser[robotics]'. The folder keeps all results, so a command that was cut off resumes. Writes docs/fetch.md.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

import train_state
from envs.record import GivenRecord
from envs.robots import Robots, episodes_of
from evaluation.statistics import standard_error
from experiments import pages
from experiments.study import SAME, Row, Run, Study
from mpdiffuser.controller import Policy
from mpdiffuser.episodes import Episodes
from mpdiffuser.files import write_whole
from mpdiffuser.record import PROPRIOCEPTION, Actions, Observation, Record

ENVIRONMENT = GivenRecord(kind="user", factory="envs.robotics:make_fetch_pick_and_place")
NOISE = 0.1  # standard deviation, on the script's actions
COUNTS = (2_000, 4_000, 6_000, 8_000, 10_000)
LEVELS = 6
FIRST = "planner only"  # the row that the others are compared with
COPIES = 50
FIRST_SEED, FIRST_DEMONSTRATED, FIRST_RANDOM = 1000, 10_000, 20_000
HELD = 10  # most decisions of one random action
GOAL, GRIP, BLOCK, FINGERS = slice(0, 3), slice(3, 6), slice(6, 9), slice(12, 14)  # entries of an observation


class Script(Policy):
    """Moves above the block, grasps it, and carries it to the goal."""

    def reset(self, seeds: Sequence[int]) -> None:
        self.random = np.random.default_rng([*seeds])

    def act(self, observations: Any, active: np.ndarray | None = None) -> np.ndarray:
        goal, grip, block, fingers = (observations[:, part] for part in (GOAL, GRIP, BLOCK, FINGERS))
        apart = block - grip
        there = np.linalg.norm(apart, axis=1) < 0.015
        held = (there & (fingers.sum(1) < 0.052))[:, None]
        above = np.linalg.norm(apart[:, :2], axis=1)[:, None] < 0.015
        target = np.where(held, goal, np.where(above, block, block + np.array([0, 0, 0.08])))
        move = np.where(there[:, None] & ~held, 0, 8 * (target - grip))
        actions = np.concatenate([move, np.where(there, -1.0, 1.0)[:, None]], 1)
        return (actions + NOISE * self.random.normal(size=actions.shape)).clip(-1, 1).astype(np.float32)


class Random(Policy):
    """Actions uniform in [-1, 1], each held for 1 to `HELD` decisions."""

    def reset(self, seeds: Sequence[int]) -> None:
        self.random = np.random.default_rng([*seeds])
        self.left, self.actions = np.zeros(len(seeds), int), np.zeros((len(seeds), 4), np.float32)

    def act(self, observations: Any, active: np.ndarray | None = None) -> np.ndarray:
        over = np.flatnonzero(self.left == 0)
        self.left[over] = self.random.integers(1, HELD, len(over), endpoint=True)
        self.actions[over] = self.random.uniform(-1, 1, (len(over), 4))
        self.left -= 1
        return self.actions.copy()


def succeeded(episode: dict[str, Any]) -> bool:
    """Whether the block is at the goal in the end."""
    return bool(episode["rewards"][-1] == 0)


def demonstrations(count: int, seed: int, cfg: DictConfig) -> Episodes:
    """Episodes of the script that end at the goal."""
    copies, first = Robots(ENVIRONMENT, COPIES), FIRST_DEMONSTRATED + 1_000 * seed
    found: list[dict[str, Any]] = []
    while len(found) < count:
        found += filter(succeeded, copies.run(Script(), range(first, first + COPIES)))
        first += COPIES
    return _episodes(found[:count])


def random_episodes(count: int, folder: Path) -> Episodes:
    """The first `count` of the random episodes, which are made once."""
    if not folder.exists():
        copies, most = Robots(ENVIRONMENT, COPIES), max(COUNTS)
        found = [copies.run(Random(), range(first, first + COPIES)) for first in _firsts(most)]
        _episodes([episode for part in found for episode in part]).save(folder)
    return Episodes.load(folder).select(np.arange(count))


def _firsts(count: int) -> range:
    return range(FIRST_RANDOM, FIRST_RANDOM + count, COPIES)


def _episodes(found: Sequence[dict[str, Any]]) -> Episodes:
    seen = Observation(PROPRIOCEPTION, found[0]["observations"][0].shape)
    return episodes_of(found, {"task": "FetchPickAndPlace"}, Record({"observations": seen}, Actions.unit(4)))


def make_study(demonstrated: int, seed: int, folder: Path, counts: Sequence[int], options: Sequence[str]) -> Study:
    """The study of a number of demonstrations and a training seed."""
    methods = ("cloning", "planner", "mpdiffuser", "d_mpc")
    runs = {SAME: Run(methods), "hearing same": Run(methods[:3], options=("dynamics.hears=true",))}
    rows = {
        "cloning": Row(SAME, method="cloning"),
        FIRST: Row(SAME, {"composition": "planner"}),
        "fused": Row(SAME, {"composition": "fused"}),
        "D-MPC": Row(SAME, method="d_mpc"),
        "heard, p = 2": Row("hearing same", {"composition": "heard", "dynamics_power": 2.0}),
    }
    data = {}
    for count in counts:
        name, last = f"{count} random", count == max(counts)
        data[name] = lambda study, count=count: random_episodes(count, folder / "random")  # type: ignore[misc]
        runs[name] = Run(methods if last else methods[:3], name)
        rows[f"fused, {name}"] = Row(name, {"composition": "fused"})
        if last:
            runs[f"hearing {name}"] = Run(methods[:3], name, ("dynamics.hears=true",))
            rows[f"D-MPC, {name}"] = Row(name, method="d_mpc")
            rows[f"heard, p = 2, {name}"] = Row(f"hearing {name}", {"composition": "heard", "dynamics_power": 2.0})
    chosen = [f"seed={seed}", *options]
    own = partial(demonstrations, demonstrated, seed)
    return Study(folder / f"fetch-{demonstrated}-{seed}", train_state, chosen, own, data, runs, rows)


def measure(study: Study, row: str, episodes: int) -> dict[str, Any]:
    """Which of a row's episodes succeeded."""
    more = {} if study.rows[row].sampler is None else {"steps": LEVELS}
    policy, copies, found = study.policy(row, **more), Robots(ENVIRONMENT, COPIES), []
    for first in range(FIRST_SEED, FIRST_SEED + episodes, COPIES):
        found += copies.run(policy, range(first, first + COPIES))
    return {"succeeded": [100 * succeeded(one) for one in found]}


HEAD = """# Random episodes for the dynamics model

{written_by}

FetchPickAndPlace of gymnasium-robotics. The planner learns from demonstrations by a script, all of which succeed. Only
the dynamics models see the random episodes, of 50 decisions each, whose actions are uniform and held for 1 to {held}
decisions. Success: the block is at the goal in the last decision, in %. {episodes} episodes a row and training seed;
all rows have the same starts and the same planner noise. {levels} noise levels; D-MPC has its own number. Difference:
to `planner only`, with the same demonstrations, with its standard error over all episodes. The paper's curve for 0 to
10,000 random episodes: 75 to 86 %, D-MPC 60 to 60 % (50 demonstrations).

"""


def page(results: dict[tuple[int, str], list[np.ndarray]], seeds: Sequence[int], episodes: int) -> str:
    """docs/fetch.md, from number of demonstrations and row -> success of each episode for each training seed."""
    rows = []
    for (demonstrated, row), parts in results.items():
        apart = np.concatenate(parts) - np.concatenate(results[demonstrated, FIRST])
        means = ", ".join(f"{part.mean():.0f}" for part in parts)
        cell = "" if row == FIRST else f"{apart.mean():+.1f} ± {standard_error(apart):.1f}"
        rows.append([demonstrated, row, means, cell])
    head = HEAD.format(written_by=pages.written_by("fetch"), held=HELD, episodes=episodes, levels=LEVELS)
    columns = ["demonstrations", "", f"success, training seeds {', '.join(map(str, seeds))}", "difference"]
    return head + pages.table(columns, rows)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = pages.parser(__doc__)
    pages.run_options(parser, "fetch", "train_state.py")
    parser.add_argument("--demonstrations", nargs="*", type=int, default=[10, 50], help="numbers of demonstrations")
    parser.add_argument("--counts", nargs="*", type=int, default=list(COUNTS), help="numbers of random episodes")
    parser.add_argument("--episodes", type=int, default=100, help=f"of a row, in multiples of {COPIES}")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    results: dict[tuple[int, str], list[np.ndarray]] = {}
    for demonstrated in args.demonstrations:
        for seed in args.seeds:
            study = make_study(demonstrated, seed, args.folder, args.counts, args.set)
            for row, about in study.rows.items():
                identity = {"seed": seed, "row": row, "options": args.set, "episodes": args.episodes}
                identity |= {"sampler": about.sampler, "levels": LEVELS}
                found = study.result(row, "", identity, partial(measure, study, row, args.episodes))["succeeded"]
                results.setdefault((demonstrated, row), []).append(np.array(found, float))
                print(f"fetch {demonstrated} {seed} | {row}: {np.mean(found):.0f} %", flush=True)
    write_whole(args.page, page(results, args.seeds, args.episodes))


if __name__ == "__main__":
    main()
