"""Which sampler settings act well, and why: python -m experiments.acting --help

Takes finished runs. On held-out windows it measures how the first action forms along the noise levels, and for each
setting the error of the executed action. It then controls the task with each setting. Each result is a file under
--folder, and is reused. Writes docs/acting.md and docs/acting.png. For example, after train_vision.py and
train_state.py:

    python -m experiments.acting cartpole=results/cartpole_swingup-mixed,data/cartpole_swingup-mixed-ar4-200ep-seed0 \
        hopper=results/hopper-medium-replay-v2,$HOME/.d4rl/datasets

The second part of an argument is the dataset's folder, from states the folder of the suite's file.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf

from envs.datasets import open_task
from evaluation.record import folder_fingerprint
from experiments import pages
from experiments.figures import plt, save
from experiments.measuring import closed_loop, describe, file_name, load_pipeline, measure_once
from mpdiffuser.controller import Controller
from mpdiffuser.episodes import Episodes
from mpdiffuser.errors import InputError
from mpdiffuser.files import read_json, write_whole
from mpdiffuser.methods.planner import planner_windows
from mpdiffuser.pipeline import MPDiffuserPipeline
from mpdiffuser.sampler import Sampler, SamplerConfig
from mpdiffuser.training import training_data
from mpdiffuser.tuning import ROWS, action_errors, clustered_error, sample
from mpdiffuser.windows import Windows
from vision.data import cached_features, encode, encode_frames
from vision.states import with_latents

FIRST_SEED = 5000  # of the episodes; no table of results uses them
OBSERVATIONS, DRAWS = 128, 32
SPREAD_LEVELS = 8  # noise levels of the first part

# settings of all runs unless a run changes them
BASE: dict[str, Any] = {"composition": "planner", "steps": 3, "engine": "openvino"}
GROUPS: dict[str, dict[str, dict[str, Any]]] = {
    "levels": {f"levels {n}": {"steps": n} for n in (1, 2, 3, 4, 8, 20)},
    "temperature": {
        f"levels {n}, temperature {t}": {"steps": n, "temperature": t}
        for n, t in ((3, 0.0), (3, 0.5), (4, 0.5), (8, 0.25), (8, 0.5))
    },
    "candidates": {f"{n} candidates": {"candidates": n} for n in (1, 2, 16)}
    | {"levels 4, temperature 0.5, 1 candidate": {"steps": 4, "temperature": 0.5, "candidates": 1}},
    "choice": {
        "best score of 4": {"rank_temperature": 0.0},
        "best score of 64": {"candidates": 64, "rank_temperature": 0.0},
        "mean of 64 by score (t = 0.5)": {"candidates": 64, "rank_temperature": 0.5},
    },
    "solver": {
        "levels 4, ddpm": {"solver": "ddpm", "steps": 4},
        "levels 4, dpmpp_2m": {"solver": "dpmpp_2m", "steps": 4},
        "levels 4, uniform grid": {"grid": "uniform", "steps": 4},
    },
    "condition": {
        "guidance 0": {"guidance": 0.0},
        "guidance 2": {"guidance": 2.0},
        "target 0.5": {"target": 0.5},
        "target 0.99": {"target": 0.99},
    },
    "composition": {name: {"composition": name} for name in ("fused", "joint", "sequential")}
    | {"levels 4, release, ddpm": {"composition": "release", "solver": "ddpm", "steps": 4}},
}
SETTINGS = {name: settings for group in GROUPS.values() for name, settings in group.items()}
DEFAULT = "levels 3"


@dataclass(frozen=True)
class Run:
    """A finished training and its data.

    Args:
        folder: of the run; its planner has a checkpoint.
        data: folder of the episodes, or of the suite's file.
    """

    folder: Path
    data: Path

    @classmethod
    def parse(cls, text: str) -> "Run":
        """Read RUN,DATA."""
        folder, _, data = text.partition(",")
        if not data:
            raise InputError(f"{text}: must be RUN,DATA, the folder of a finished run and that of its data")
        return cls(Path(folder), Path(data))

    @property
    def pipeline(self) -> MPDiffuserPipeline:
        return load_pipeline(self.folder / "pipeline")

    @cached_property
    def windows(self) -> Windows:
        """The held-out windows, weighted like the planner's training windows."""
        last = (self.folder / "planner" / "last").read_text().strip()
        options = read_json(self.folder / "planner" / last / "state" / "trainer.json")["identity"]["options"]
        data = training_data(OmegaConf.create(options), self._latents()).limited_to(options)
        data.trained["ranker"] = self.pipeline.ranker
        data.shared |= {"targets": data.logged_targets, "condition": self.pipeline.condition}
        return planner_windows(data, 1)

    def _latents(self) -> Episodes:
        """The episodes of the training, with latents (M, d) as `observations`.

        Raises:
            InputError: for other data.
        """
        info, encoder = self.pipeline.config["info"], self.pipeline.encoder
        pixels = self.pipeline.sees_pixels
        episodes = Episodes.load(self.data) if pixels else open_task(info["task"], info["suite"], self.data)
        if episodes.checksum() != info["data"]:
            raise InputError(f"{self.data}: not the data of {self.folder}, which was trained on {info['data']}")
        if not pixels:
            return episodes
        if encoder.config["trainable"]:
            return with_latents(episodes, encode_frames(encoder, episodes))
        features = cached_features(encoder, episodes, self.data.parent / "cache")
        return with_latents(episodes, encode(encoder, episodes, features))


class Recorded(Sampler):
    """A sampler that keeps the first action of the planner's estimate at each level.

    Attributes:
        first: one tensor (B, m) a level, normalised.
    """

    def __init__(self, *models: Any) -> None:
        super().__init__(*models)
        self.first: list[torch.Tensor] = []

    def guided(self, x: torch.Tensor, level: int, condition: torch.Tensor, g: float) -> torch.Tensor:
        clean = super().guided(x, level, condition, g)
        self.first.append(clean[:, 0, self.planner.config["latent_dim"] :])
        return clean


def two_means(values: np.ndarray) -> np.ndarray:
    """Return the share of the variance of values (B, n) that the best two groups explain, (B,).

    For a normal distribution it is 2 / pi = 0.64, for a uniform one 0.75, for two points 1.
    """
    ordered = np.sort(values - values.mean(1, keepdims=True), 1)
    count = np.arange(1, values.shape[1])
    left = np.cumsum(ordered, 1)[:, :-1]  # sums of the lower group; the sum of all is 0
    between = left**2 * (1 / count + 1 / (values.shape[1] - count))
    return between.max(1) / np.maximum((ordered**2).sum(1), 1e-12)


@torch.inference_mode()
def along_levels(run: Run) -> dict[str, Any]:
    """How the first action forms: measures of many independent draws from the same observations, by noise level.

    Returns:
        JSON. `sigma`: of each level. `spread`: root mean square deviation of a draw from the mean draw, in the actions'
        units. `error`, `error_of_mean`: mean squared distance from the logged action of a draw, and of the mean draw.
        `two_means`: see there; of the last level, along the direction of largest variance. `scores`: deviation of the
        candidates' scores within an observation, in deviations between observations.
    """
    pipeline, m = run.pipeline, run.pipeline.actions.config["dim"]
    config = SamplerConfig(composition="planner", steps=SPREAD_LEVELS, candidates=1)
    order = np.random.default_rng(1).choice(len(run.windows), OBSERVATIONS, replace=False)
    batch = run.windows.batch(torch.from_numpy(order))
    latents = pipeline.latents.denormalize(batch["latents"][:, 0]).repeat_interleave(DRAWS, 0)
    logged = pipeline.actions.denormalize(batch["actions"][:, 0])
    plain = pipeline.sampler(config)
    sampler = Recorded(plain.planner, None, plain.schedule, plain.low, plain.high, config)
    plan = pipeline(latents, sampler, [torch.Generator().manual_seed(row) for row in range(len(latents))])
    levels = [pipeline.actions.denormalize(first).view(-1, DRAWS, m).clamp(-1, 1) for first in sampler.first]
    mean = [draws.mean(1, keepdim=True) for draws in levels]
    centred = (levels[-1] - mean[-1]).double()
    leading = torch.linalg.svd(centred, full_matrices=False).Vh[:, :1]
    scores = plan.scores.view(-1, DRAWS)
    return {
        "sigma": [float(plain.schedule.sigmas[move.level]) for move in sampler.moves],
        "spread": [float((a - b).square().mean().sqrt()) for a, b in zip(levels, mean)],
        "error": [float((draws - logged[:, None]).square().mean()) for draws in levels],
        "error_of_mean": [float((each[:, 0] - logged).square().mean()) for each in mean],
        "two_means": float(two_means((centred * leading).sum(-1).numpy()).mean()),
        "scores": float(scores.std(1).mean() / scores.mean(1).std()),
    }


@functools.cache
def errors(run: Run, name: str) -> np.ndarray:
    """Squared error (B,) of a setting's executed action on held-out windows (`tuning.sample`)."""
    return action_errors(run.pipeline, configuration(name), sample(run.windows)[0])


def error_and_gap(run: Run, name: str) -> dict[str, Any]:
    """Mean error of a setting, and its difference to the default with standard error, as JSON."""
    gap = errors(run, name) - errors(run, DEFAULT)
    gap_error = clustered_error(gap, sample(run.windows)[1])
    return {"error": float(errors(run, name).mean()), "gap": [float(gap.mean()), gap_error]}


def measure_levels(run: Run, results: Path) -> dict[str, Any]:
    """The result of `along_levels`, kept in a file."""
    identity = {"pipeline": folder_fingerprint(run.folder / "pipeline")}
    return measure_once(results / "levels.json", identity, lambda: along_levels(run))


def configuration(name: str) -> SamplerConfig:
    """The settings of a name."""
    return SamplerConfig(**BASE | SETTINGS[name])


def measure(run: Run, name: str, episodes: int, results: Path) -> dict[str, Any]:
    """Held-out error of a setting, and its metrics in closed loop."""
    settings = BASE | SETTINGS[name]
    identity = {"pipeline": folder_fingerprint(run.folder / "pipeline"), "settings": settings, "episodes": episodes}

    def measured() -> dict[str, Any]:
        controller = Controller(run.pipeline, configuration(name))
        seeds = range(FIRST_SEED, FIRST_SEED + episodes)
        return error_and_gap(run, name) | closed_loop(controller, run.pipeline, seeds, name, probe_every=10)

    return measure_once(results / file_name(name), identity, measured)


Results = dict[str, dict[str, dict[str, Any]]]  # metrics by task and setting


def figure(forms: dict[str, dict[str, Any]], results: Results, file: Path) -> None:
    """One row for each task: the first action along the levels; return against levels; return against error."""
    plot, axes = plt.subplots(len(results), 3, figsize=(13, 3.4 * len(results)), squeeze=False)
    for row, (task, found) in zip(axes, results.items()):
        form = forms[task]
        for key, label in (("error", "error of a draw"), ("error_of_mean", "error of the mean draw")):
            row[0].plot(form["sigma"], form[key], marker="o", label=label)
        row[0].plot(form["sigma"], np.square(form["spread"]), marker="o", label="variance of draws")
        row[0].set(xlabel="standard deviation of the noise", ylabel="squared action", title=task, yscale="log")
        row[0].invert_xaxis()
        row[0].legend(fontsize=8)
        done = [(SETTINGS[name]["steps"], found[name]) for name in GROUPS["levels"] if name in found]
        means, deviations = ([m[key] for _, m in done] for key in ("mean", "standard_error"))
        row[1].errorbar([n for n, _ in done], means, deviations, marker="o", capsize=2)
        row[1].set(xscale="log", xlabel="noise levels", ylabel="return ± standard error", title=task)
        for group, part in GROUPS.items():
            points = [found[name] for name in part if name in found]
            row[2].scatter([m["error"] for m in points], [m["mean"] for m in points], label=group, s=18)
        row[2].set(xscale="log", xlabel="held-out error of the executed action", ylabel="return", title=task)
        row[2].legend(fontsize=7)
    save(plot, file)


COLUMNS = ("group", "setting", "held-out error", "minus that of 3 levels", "return", "median", "worst", "decisions")
FORM_COLUMNS = (
    "task",
    "spread of draws",
    "two groups explain",
    "error of a draw",
    "of the mean draw",
    "spread of scores",
)


def cells(group: str, name: str, m: dict[str, Any]) -> list[str]:
    """A row of a task's table."""
    gap = f"{m['gap'][0]:+.4f} ± {m['gap'][1]:.4f}" if name != DEFAULT else ""
    returns = (
        f"{m['mean']:.0f} ± {m['standard_error']:.0f}",
        f"{np.median(m['returns']):.0f}",
        f"{min(m['returns']):.0f}",
    )
    return [group, name, f"{m['error']:.4f}", gap, *returns, f"{np.mean(m['lengths']):.0f}"]


def tables(forms: dict[str, dict[str, Any]], results: Results, names: dict[str, str]) -> str:
    """The measured part of the page, in Markdown."""
    rows = []
    for task, form in forms.items():
        ends = [f"{form[key][-1]:.3f}" for key in ("error", "error_of_mean")]
        rows.append([task, f"{form['spread'][-1]:.3f}", f"{form['two_means']:.2f}", *ends, f"{form['scores']:.2f}"])
    text = f"## The first action of independent draws\n\n{pages.table(FORM_COLUMNS, rows)}\n"
    for task, found in results.items():
        rows = [cells(group, name, found[name]) for group, part in GROUPS.items() for name in part if name in found]
        text += f"## {task}: {names[task]}\n\n{pages.table(COLUMNS, rows)}\n"
    return text


HEAD = """{written_by}, {tasks} at one training seed each.
Each setting is that of a pipeline with 3 levels, planner alone, except for what its name says. Return: mean ± standard
error over {episodes} episodes, seeds from {first} up, their median and the worst. Decisions: mean length of an episode.
Held-out error: mean squared distance of the executed action from the logged one, {windows} windows weighted like the
planner's training windows; its difference is paired, and windows of one episode count as dependent. Spread of draws:
root mean square deviation of the first action among {draws} draws of {observations} observations, {levels} levels.
Two groups explain: share of that variance between the two best groups along its main direction (normal distribution:
0.64, two points: 1). Spread of scores: within an observation, relative to that between observations.

![First action, return and error](acting.png)

"""
MARK = "<!-- measured -->\n"


def page(text: str, measured: str) -> str:
    """The page with its measured part, which follows the line MARK, replaced."""
    return text.partition(MARK)[0] + MARK + measured


def main(arguments: Sequence[str] | None = None) -> None:
    parser = pages.parser(__doc__)
    parser.add_argument("runs", nargs="+", help="name=folder of a finished run,folder of its data")
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument(
        "--settings",
        nargs="*",
        default=list(SETTINGS),
        choices=list(SETTINGS),
        metavar="SETTING",
        help="all by default",
    )
    parser.add_argument("--folder", type=Path, default=Path("results/acting"), help="of the results")
    parser.add_argument("--docs", type=Path, default=pages.DOCS)
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    runs = {name: Run.parse(text) for name, _, text in (each.partition("=") for each in args.runs)}
    names = {task: describe(run.pipeline.config["info"]) for task, run in runs.items()}
    forms = {task: measure_levels(run, args.folder / task) for task, run in runs.items()}
    results: Results = {task: {} for task in runs}
    for task, run in runs.items():
        for group, name in [(group, name) for group, part in GROUPS.items() for name in part if name in args.settings]:
            if configuration(name).composition == "planner" or run.pipeline.dynamics is not None:
                results[task][name] = measure(run, name, args.episodes, args.folder / task)
                print(f"{task:10} {pages.row(cells(group, name, results[task][name]))}", end="", flush=True)
    head = HEAD.format(
        written_by=pages.written_by("acting cartpole=RUN,DATA hopper=RUN,DATA"),
        tasks=", ".join(names.values()),
        episodes=args.episodes,
        first=FIRST_SEED,
        windows=ROWS,
        draws=DRAWS,
        observations=OBSERVATIONS,
        levels=SPREAD_LEVELS,
    )
    figure(forms, results, args.docs / "acting.png")
    file = args.docs / "acting.md"
    write_whole(file, page(file.read_text() if file.exists() else "", head + tables(forms, results, names)))


if __name__ == "__main__":
    main()
