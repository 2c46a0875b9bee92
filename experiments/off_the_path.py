"""Off the demonstrated path, with more data for the dynamics model: python -m experiments.off_the_path --help

The planner is trained on 20 clean episodes of an expert. A network cloned from them plays with noisy actions and
pushes. The dynamics model is trained on this play too. Then noise and pushes disturb the robot, and all rows control it
from the same starts, under the same disturbances and with the same planner noise. The folder keeps all results, so a
command that was cut off resumes. Writes docs/off_the_path.md. For example:

    python -m experiments.off_the_path --data-dir ../shared/data
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

import train_state
import train_vision
from envs.collect import collect
from envs.record import dm_control_record
from envs.robots import Disturbance, Robots, episodes_of
from experiments import pages
from experiments.demonstrations import experts
from experiments.hearing import known, section
from experiments.study import SAME, Row, Run, Study, difference
from mpdiffuser.config import settings
from mpdiffuser.episodes import Episodes
from mpdiffuser.files import write_whole
from mpdiffuser.pipeline import MPDiffuserPipeline
from mpdiffuser.preparation import within
from mpdiffuser.windows import split

DEMONSTRATIONS = 20
LEVELS = 6
FIRST_SEED, FIRST_PLAYED = 1000, 20_000
COPIES = 10  # robots that play together


@dataclass(frozen=True)
class Task:
    """A task of the experiment.

    Args:
        options: of the training command.
        push: see `Disturbance`; that of the evaluation.
        played: number of decisions of play.
        pixels: whether the policy sees pictures.
    """

    options: tuple[str, ...]
    push: float
    played: int
    pixels: bool = False

    @property
    def disturbances(self) -> tuple[Disturbance, ...]:
        """Of the evaluation."""
        return Disturbance(), Disturbance(noise=0.3), Disturbance(push=self.push)

    @property
    def play(self) -> tuple[Disturbance, ...]:
        """Of the play, in turn."""
        return (
            Disturbance(noise=0.2),
            Disturbance(noise=0.5),
            Disturbance(push=self.push),
            Disturbance(noise=0.2, push=2 * self.push),
        )


TASKS = {
    "hopper": Task(("task=d4rl/hopper-medium-expert-v2",), 0.5, 50_000),
    "halfcheetah": Task(("task=d4rl/halfcheetah-medium-expert-v2",), 1.0, 50_000),
    "cartpole": Task(("task=cartpole_swingup",), 1.0, 10_000, pixels=True),
}
RUNS = {
    SAME: Run(),
    "more": Run(data="play"),
    "hearing": Run(data="play", options=("dynamics.hears=true",)),
    "pooled": Run(("planner", "cloning"), "play", pooled=True),
}
FIRST = "planner only"  # the row that the others are compared with
AS_TRAINED = "planner only, levels chosen in training"
ROWS = {
    "cloning": Row(SAME, method="cloning"),
    AS_TRAINED: Row(SAME, {"composition": "planner"}),
    FIRST: Row(SAME, {"composition": "planner"}),
    "same data, fused": Row(SAME, {"composition": "fused"}),
    "more data, fused": Row("more", {"composition": "fused"}),
    "more data, fused, p = 2": Row("hearing", {"composition": "fused", "dynamics_power": 2.0}),
    "more data, heard, p = 2": Row("hearing", {"composition": "heard", "dynamics_power": 2.0}),
    "more data, contrast, p = 4": Row("hearing", {"composition": "contrast", "dynamics_power": 4.0}),
    "all in the planner": Row("pooled", {"composition": "planner"}),
}


def demonstrations(task: Task, seed: int, cfg: DictConfig) -> Episodes:
    """Clean episodes of the expert: of the file, or collected."""
    if not task.pixels:
        return experts(train_state.dataset(cfg), DEMONSTRATIONS, seed)
    record = dm_control_record(settings(cfg.task), cfg.rendering)
    episodes = Episodes.load(collect(record, "expert", 4 * DEMONSTRATIONS, seed, cfg.data_root, cfg.processes))
    clean = np.flatnonzero(np.array(episodes.info["disturbances"]) == 0)[:DEMONSTRATIONS]
    found = episodes.select(clean)
    return replace(found, arrays={key: array for key, array in found.arrays.items() if key != "physics"})


def robots(study: Study, count: int, whole: bool = False) -> Robots:
    """Copies of the study's robot; `whole`: with all that the demonstrations hold."""
    seen = ("both" if whole else "frames") if study.module is train_vision else "states"
    return Robots(study.demonstrated.info["environment"], count, seen)


def play(task: Task, study: Study) -> Episodes:
    """The play of the cloned network: it is not the expert, and the dynamics model does not see its rewards."""
    policy, played, found, first = study.policy("cloning"), 0, [], FIRST_PLAYED
    copies = robots(study, COPIES, whole=True)
    disturbances = [task.play[i % len(task.play)] for i in range(COPIES)]
    while played < task.played:
        found += copies.run(policy, range(first, first + COPIES), disturbances)
        played, first = sum(len(one["rewards"]) for one in found), first + COPIES
    own = study.demonstrated.info
    return episodes_of(
        found, {key: own[key] for key in ("task", "environment") if key in own}, study.demonstrated.record
    )


def make_study(name: str, seed: int, folder: Path, options: Sequence[str]) -> Study:
    """The study of a task and a training seed."""
    task = TASKS[name]
    module = train_vision if task.pixels else train_state
    chosen = [*task.options, f"seed={seed}", *options]
    own = partial(demonstrations, task, seed)
    return Study(folder / f"{name}-{seed}", module, chosen, own, {"play": partial(play, task)}, RUNS, ROWS)


def measure(study: Study, row: str, disturbance: Disturbance, episodes: int) -> dict[str, Any]:
    """Returns and lengths of a row's episodes."""
    more = {} if ROWS[row].sampler is None or row == AS_TRAINED else {"steps": LEVELS}
    seeds = range(FIRST_SEED, FIRST_SEED + episodes)
    found = robots(study, episodes).run(study.policy(row, **more), seeds, disturbance)
    return {
        "returns": [round(float(one["rewards"].sum()), 2) for one in found],
        "lengths": [len(one["rewards"]) for one in found],
    }


def hearing(study: Study, seed: int) -> dict[str, Any]:
    """What the models know of held-out demonstrations and of held-out play."""
    pipeline = MPDiffuserPipeline.from_pretrained(study.train("hearing"))
    share = study.configuration("hearing").validation
    parts = {"demonstrations": study.demonstrated, "play": study.further("play")}
    held = {name: within(split(part, share, seed)[1], pipeline.latents) for name, part in parts.items()}
    return {name: known(pipeline, part, LEVELS) for name, part in held.items()}


HEAD = """# Off the demonstrated path

{written_by}

The planner learns from {demonstrations} clean episodes of an expert: the last half of the files of hopper and
halfcheetah medium-expert (stand-ins, not D4RL's data), or episodes of cartpole_swingup from pixels. `more data` are
{played} decisions of play by a network that was cloned from these episodes: with noise of standard deviation 0.2 or 0.5
on the actions, with pushes, or with both. Only the dynamics model sees them, without their rewards. `all in the
planner`: the planner and ranker learn from play too, with its rewards. Rows with the same network: `fused, p = 2`,
`heard` and `contrast`.

{levels} noise levels, {episodes} episodes a cell and training seed. All rows have the same starts, disturbances and
planner noise. A cell has the mean return of each training seed ({seeds}), and the mean difference to `{first}` with its
standard error over all episodes. A push adds a normal change of this standard deviation to all joint velocities, at one
decision in twenty.

"""


def page(
    results: dict[tuple[str, int, str, Disturbance], list[float]],
    weights: dict[tuple[str, int], dict[str, Any]],
    episodes: int,
) -> str:
    """docs/off_the_path.md: a table for each task, and one of `hearing` for task and training seed."""
    names, seeds = list(dict.fromkeys(key[0] for key in results)), list(dict.fromkeys(key[1] for key in results))
    text = HEAD.format(
        written_by=pages.written_by("off_the_path"),
        demonstrations=DEMONSTRATIONS,
        played=" or ".join(sorted({f"{TASKS[name].played:,}" for name in names}, reverse=True)),
        levels=LEVELS,
        episodes=episodes,
        seeds=", ".join(map(str, seeds)),
        first=FIRST,
    )
    for name in names:
        rows = []
        for row in ROWS:
            cells = []
            for disturbance in TASKS[name].disturbances:
                found, first = ([results[name, seed, each, disturbance] for seed in seeds] for each in (row, FIRST))
                means = ", ".join(f"{np.mean(each):.0f}" for each in found)
                cells.append(means + ("" if row == FIRST else f": {difference(found, first)}"))
            rows.append([row, *cells])
        text += f"## {name}\n\n" + pages.table(["", *map(str, TASKS[name].disturbances)], rows) + "\n"
    return text + section(weights)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = pages.parser(__doc__)
    parser.add_argument("--data-dir", help="where D4RL's files lie; the suite's own folder by default")
    parser.add_argument("--tasks", nargs="*", default=list(TASKS), choices=TASKS)
    pages.run_options(parser, "off_the_path", "the training commands")
    parser.add_argument("--episodes", type=int, default=10, help="of a cell")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    options = pages.training_options(args)
    results, weights = {}, {}
    for name in args.tasks:
        for seed in args.seeds:
            study = make_study(name, seed, args.folder, options)
            for row, about in ROWS.items():
                for disturbance in TASKS[name].disturbances:
                    identity = {"task": name, "seed": seed, "options": options, "row": row, **asdict(disturbance)}
                    identity |= {"episodes": args.episodes, "sampler": about.sampler, "levels": LEVELS}
                    measured = partial(measure, study, row, disturbance, args.episodes)
                    found = study.result(row, str(disturbance), identity, measured)["returns"]
                    results[name, seed, row, disturbance] = found
                    print(f"{name} {seed} | {row} | {disturbance}: {np.mean(found):.0f}", flush=True)
            if not TASKS[name].pixels:
                identity = {"task": name, "seed": seed, "options": options, "levels": LEVELS}
                found = study.result("hearing", "", identity, partial(hearing, study, seed))
                weights[name, seed] = {part: found[part] for part in ("demonstrations", "play")}
    write_whole(args.page, page(results, weights, args.episodes))


if __name__ == "__main__":
    main()
