"""What the experiments with more data share: a planner's data, runs that differ in the dynamics model's data, and rows.

The models of a run are trained once. The planner and all before it are copied from the run `SAME`, since the dynamics
model's data do not change them by a bit.
"""

import functools
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from omegaconf import DictConfig

import train_state
import train_vision
from envs.datasets.importing import joined
from evaluation.statistics import standard_error
from experiments.measuring import file_name, measure_once
from mpdiffuser.config import load, settings
from mpdiffuser.controller import Policy
from mpdiffuser.episodes import Episodes
from mpdiffuser.launch import Clock, start
from mpdiffuser.methods import METHODS, Setup
from mpdiffuser.pipeline import MPDiffuserPipeline

SAME = "same"  # the run in which the dynamics model sees the planner's data only
SHARED = ("cloning", "planner", "ranker", "action_planner", "critic", "representation", "decoder")


loaded = functools.cache(MPDiffuserPipeline.from_pretrained)  # each folder is read once


@dataclass(frozen=True)
class Run:
    """Trained models.

    Args:
        methods: of which the models are trained.
        data: name of the dynamics model's further data; None: there are none.
        options: further options of the training command.
        pooled: whether the planner is trained on the further data too.
    """

    methods: tuple[str, ...] = ("cloning", "planner", "mpdiffuser")
    data: str | None = None
    options: tuple[str, ...] = ()
    pooled: bool = False


@dataclass(frozen=True)
class Row:
    """A policy.

    Args:
        run: the name of its models.
        sampler: settings of the section `sampler`; None: the method has its own.
        method: its name.
    """

    run: str
    sampler: Mapping[str, Any] | None = None
    method: str = "mpdiffuser"


class Study:
    """The models and results of one training seed, in one folder.

    Args:
        folder: of the models and results.
        module: train_state or train_vision.
        options: of the training command.
        demonstrated: the planner's data; called with the configuration.
        data: name -> further data; called with the study.
        runs: name -> run. rows: name -> row.

    Raises:
        InputError: if the folder holds models of other options.
    """

    def __init__(
        self,
        folder: Path,
        module: ModuleType,
        options: Sequence[str],
        demonstrated: Callable[[DictConfig], Episodes],
        data: Mapping[str, Callable[["Study"], Episodes]],
        runs: Mapping[str, Run],
        rows: Mapping[str, Row],
    ) -> None:
        self.folder, self.module, self.options = folder, module, [*options, "trackers=[]"]
        self.data, self.runs, self.rows = data, runs, rows
        measure_once(folder / "study.json", {"options": list(options)}, dict)
        self.demonstrated = demonstrated(self.configuration(SAME))

    def configuration(self, run: str) -> DictConfig:
        """The configuration of a run's training."""
        about = self.runs[run]
        methods = f"evaluation.methods=[{','.join(about.methods)}]"
        name = {train_state: "state", train_vision: "vision"}[self.module]
        return load(name, [*self.options, methods, f"output_dir={self.folder / run}", *about.options])

    def train(self, run: str) -> Path:
        """Train a run, unless it is trained, and return its pipeline's folder."""
        folder, about = self.folder / run, self.runs[run]
        if (folder / "pipeline").exists():
            return folder / "pipeline"
        episodes, more = self.demonstrated, self.further(about.data) if about.data else None
        if about.pooled and more is not None:
            episodes, more = joined([episodes, more]), None
        elif run != SAME:
            copy_models(self.folder / SAME, folder)
        cfg = self.configuration(run)
        self.module.train(cfg, episodes, start(cfg), Clock(), more)
        return folder / "pipeline"

    def further(self, name: str) -> Episodes:
        """Further data, which are made once."""
        folder = self.folder / name
        if not folder.exists():
            self.data[name](self).save(folder)
        return Episodes.load(folder)

    def policy(self, row: str, **more: Any) -> Policy:
        """The policy of a row; trains what it needs. `more` are further settings of the sampler."""
        about = self.rows[row]
        folder = self.train(about.run)
        pipeline = loaded(folder)
        sampler = replace(pipeline.sampler_defaults, **more, **(about.sampler or {}))
        section = settings(self.configuration(about.run).baselines).get(about.method, {})
        return METHODS[about.method].policy(Setup(pipeline, folder, sampler, section))

    def result(self, row: str, name: str, identity: Mapping[str, Any], measure: Callable[[], dict[str, Any]]) -> Any:
        """What `measure` returns for a row, from its file if it is measured (see `measure_once`)."""
        return measure_once(self.folder / file_name(f"{row} {name}"), identity, measure)


def copy_models(source: Path, folder: Path, models: Sequence[str] = SHARED) -> None:
    """Copy the checkpoints of trained models from one run's folder to another's, which lacks them."""
    for model in models:
        if (source / model).exists() and not (folder / model).exists():
            shutil.copytree(source / model, folder / model)


def difference(found: Sequence[Sequence[float]], first: Sequence[Sequence[float]]) -> str:
    """Mean ± standard error of paired differences, over all episodes of all training seeds."""
    values = np.concatenate([np.subtract(*pair) for pair in zip(found, first, strict=True)])
    return f"{values.mean():+.0f} ± {standard_error(values):.0f}"
