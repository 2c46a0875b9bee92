"""Off the demonstrated path, with more data for the dynamics model: python -m experiments.off_the_path --help

The planner is trained on 20 clean episodes of an expert. A network cloned from them plays with noisy actions and pushes;
the dynamics model is trained on this play too, which has no rewards. Then noise and pushes disturb the robot, and all
rows control it from the same starts, under the same disturbances and with the same planner noise. The folder keeps all
results, so a command that was cut off resumes. Writes docs/off_the_path.md. For example:

    python -m experiments.off_the_path --data-dir ../shared/data
"""

import shutil
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
from envs.datasets.importing import joined
from envs.record import dm_control_record
from evaluation.statistics import standard_error
from experiments import pages
from experiments.demonstrations import experts
from experiments.measuring import file_name, load_pipeline, measure_once
from experiments.robots import Disturbance, Robots, stacked
from mpdiffuser.config import load
from mpdiffuser.controller import Controller, Policy
from mpdiffuser.episodes import Episodes
from mpdiffuser.files import write_whole
from mpdiffuser.launch import Clock, start
from mpdiffuser.methods import METHODS, Setup

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
# trained models of one seed: name -> further options; the planner of `pooled` learns from all data
RUNS: dict[str, tuple[str, ...]] = {"same": (), "more": (), "hearing": ("dynamics.hears=true",), "pooled": ()}
SHARED = ("cloning", "planner", "ranker", "representation", "decoder")  # models that are equal in all runs but `pooled`
# row -> run, and settings of the sampler; None: cloning
ROWS: dict[str, tuple[str, dict[str, Any] | None]] = {
    "cloning": ("same", None),
    "planner only": ("same", {"composition": "planner"}),
    "same data, fused": ("same", {"composition": "fused"}),
    "more data, fused": ("more", {"composition": "fused"}),
    "more data, fused, p = 2": ("hearing", {"composition": "fused", "dynamics_power": 2.0}),
    "more data, heard, p = 2": ("hearing", {"composition": "heard", "dynamics_power": 2.0}),
    "more data, contrast, p = 4": ("hearing", {"composition": "contrast", "dynamics_power": 4.0}),
    "all in the planner": ("pooled", {"composition": "planner"}),
}
FIRST = "planner only"  # the row that the others are compared with


def demonstrations(task: Task, cfg: DictConfig, seed: int) -> Episodes:
    """Clean episodes of the expert: of the file, or collected."""
    if not task.pixels:
        return experts(train_state.dataset(cfg), DEMONSTRATIONS, seed)
    record = dm_control_record(cfg.task, cfg.rendering)
    episodes = Episodes.load(collect(record, "expert", 4 * DEMONSTRATIONS, seed, cfg.data_root, cfg.processes))
    clean = np.flatnonzero(np.array(episodes.info["disturbances"]) == 0)[:DEMONSTRATIONS]
    found = episodes.select(clean)
    return replace(found, arrays={key: array for key, array in found.arrays.items() if key != "physics"})


class Study:
    """The models and results of one task and one training seed, in one folder."""

    def __init__(self, name: str, seed: int, folder: Path, options: Sequence[str]) -> None:
        self.task, self.seed, self.folder = TASKS[name], seed, folder / f"{name}-{seed}"
        self.options = [*self.task.options, f"seed={seed}", "trackers=[]", *options]
        self.identity = {"task": name, "seed": seed, "options": list(options)}
        self.module = train_vision if self.task.pixels else train_state
        self.demonstrated = demonstrations(self.task, self._configuration("same"), seed)

    def _configuration(self, run: str) -> DictConfig:
        methods = "planner,cloning" if run == "pooled" else "cloning,planner,mpdiffuser"
        chosen = [*self.options, f"evaluation.methods=[{methods}]", f"output_dir={self.folder / run}", *RUNS[run]]
        return load("vision" if self.task.pixels else "state", chosen)

    def train(self, run: str) -> Path:
        """Train a run, unless it is trained, and return its folder."""
        folder = self.folder / run
        if (folder / "pipeline").exists():
            return folder
        episodes, more = self.demonstrated, None
        if run != "same":
            more = self.play()
        if run == "pooled":
            assert more is not None
            episodes, more = joined([episodes, more]), None
        elif run != "same":  # the planner and all before it are those of `same`, to the bit
            for model in SHARED:
                if (self.folder / "same" / model).exists() and not (folder / model).exists():
                    shutil.copytree(self.folder / "same" / model, folder / model)
        cfg = self._configuration(run)
        self.module.train(cfg, episodes, start(cfg), Clock(), more)
        return folder

    def robots(self, count: int, whole: bool = False) -> Robots:
        """Copies of the robot; `whole`: with all that the demonstrations hold."""
        seen = ("both" if whole else "frames") if self.task.pixels else "states"
        return Robots(self.demonstrated.info["environment"], count, seen)

    def play(self) -> Episodes:
        """The play of the cloned network: no data of the expert, and no rewards for the dynamics model."""
        folder = self.folder / "play"
        if not folder.exists():
            policy, robots, found, first = self.policy("cloning"), self.robots(COPIES, whole=True), [], FIRST_PLAYED
            disturbances = [self.task.play[i % len(self.task.play)] for i in range(COPIES)]
            while sum(len(one["rewards"]) for one in found) < self.task.played:
                found += robots.run(policy, range(first, first + COPIES), disturbances)
                first += COPIES
            self._episodes(found).save(folder)
        return Episodes.load(folder)

    def _episodes(self, found: Sequence[dict[str, Any]]) -> Episodes:
        """Controlled episodes with the arrays of the demonstrations."""
        lengths = np.array([len(one["rewards"]) + 1 for one in found])
        pad = lambda values: np.concatenate([values, np.zeros_like(values[:1])])  # noqa: E731
        arrays = {key: np.concatenate([pad(one[key]) for one in found]) for key in ("actions", "rewards")}
        seen = [stacked(one["observations"]) for one in found]
        if self.task.pixels:
            arrays |= {"frames": np.concatenate([one["frames"] for one in seen])}
            seen = [one["states"] for one in seen]
        arrays["observations"] = np.concatenate(seen).astype(np.float32)
        lasts = np.cumsum(lengths) - 2
        for key, ended in (("terminations", True), ("truncations", False)):
            arrays[key] = np.zeros(len(arrays["rewards"]), bool)
            arrays[key][lasts] = [one["terminated"] == ended for one in found]
        info = {key: self.demonstrated.info[key] for key in ("task", "environment") if key in self.demonstrated.info}
        return Episodes(arrays, np.append(0, np.cumsum(lengths)), info, record=self.demonstrated.record)

    def policy(self, row: str) -> Policy:
        """The policy of a row; trains what it needs."""
        run, settings = ROWS[row]
        folder = self.train(run) / "pipeline"
        pipeline = load_pipeline(folder)
        if settings is None:
            return METHODS["cloning"].policy(Setup(pipeline, folder, pipeline.sampler_defaults, {}))
        return Controller(pipeline, replace(pipeline.sampler_defaults, steps=LEVELS, **settings))

    def measure(self, row: str, disturbance: Disturbance, episodes: int) -> dict[str, Any]:
        """Returns and lengths of a row's episodes."""
        found = self.robots(episodes).run(self.policy(row), range(FIRST_SEED, FIRST_SEED + episodes), disturbance)
        return {
            "returns": [round(float(one["rewards"].sum()), 2) for one in found],
            "lengths": [len(one["rewards"]) for one in found],
        }

    def result(self, row: str, disturbance: Disturbance, episodes: int) -> dict[str, Any]:
        """The same, from its file if it is measured."""
        settings = {"row": row, **asdict(disturbance), "episodes": episodes, "sampler": ROWS[row][1], "levels": LEVELS}
        file = self.folder / file_name(f"{row} {disturbance}")
        return measure_once(file, self.identity | settings, partial(self.measure, row, disturbance, episodes))


HEAD = """# Off the demonstrated path

{written_by}

"""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = pages.parser(__doc__)
    parser.add_argument("--data-dir", help="where D4RL's files lie; the suite's own folder by default")
    parser.add_argument("--tasks", nargs="*", default=list(TASKS), choices=TASKS)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1], help="of the draw and of the training")
    parser.add_argument("--rows", nargs="*", default=list(ROWS), choices=ROWS)
    parser.add_argument("--episodes", type=int, default=10, help="of a cell")
    parser.add_argument("--folder", type=Path, default=Path("results/off_the_path"), help="of the runs")
    parser.add_argument("--page", type=Path, default=pages.DOCS / "off_the_path.md")
    parser.add_argument("--set", nargs="*", default=[], help="options of the training commands, such as horizon=32")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    options = [*([f"data_dir={args.data_dir}"] if args.data_dir else []), *args.set]
    for name in args.tasks:
        for seed in args.seeds:
            study = Study(name, seed, args.folder, options)
            for row in args.rows:
                for disturbance in TASKS[name].disturbances:
                    found = study.result(row, disturbance, args.episodes)
                    returns = np.array(found["returns"])
                    print(f"{name} {seed} | {row} | {disturbance}: {returns.mean():.0f} ± {standard_error(returns):.0f}")


if __name__ == "__main__":
    main()
