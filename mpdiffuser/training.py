"""Train the models of all chosen methods on latent episodes, each model once, and save the pipeline."""

import copy
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.models.modeling_utils import ModelMixin
from omegaconf import DictConfig

from mpdiffuser.budget import calibrate
from mpdiffuser.config import settings
from mpdiffuser.episodes import Episodes
from mpdiffuser.errors import InputError
from mpdiffuser.files import MANIFEST, check_manifest, publish, read_json, writing
from mpdiffuser.identity import check_run
from mpdiffuser.launch import Clock, train_config
from mpdiffuser.methods import METHODS, Recipe, TrainingData, recipes_of
from mpdiffuser.models.normalizer import Normalizer
from mpdiffuser.parallel import run_parallel
from mpdiffuser.pipeline import MPDiffuserPipeline
from mpdiffuser.preparation import imitates, within
from mpdiffuser.schedule import NoiseSchedule
from mpdiffuser.trainer import MAY_CHANGE, Trainer
from mpdiffuser.tuning import tune
from mpdiffuser.windows import split, step_rows

# components of the pipeline; other models are beside them in the folder
COMPONENTS = ("planner", "dynamics", "ranker", "forward")
ORIGIN = ("commit", "versions")  # entries of a pipeline's info that may differ between equal pipelines
# Options that no model depends on. The first group selects the dataset; the identity has the dataset's checksum
# instead; likewise for the data of dynamics models alone. No model depends on the decoder. All other options, including
# new ones, are part of each model's identity.
WITHOUT_EFFECT = {
    *("dataset", "data_root", "data_dir", "quality", "episodes", "episode_seconds", "collect_seed", "rendering"),
    *(
        "dynamics_data",
        "cost_limits",
        "dynamics_share",
        "environment",
        "decoder",
        "output_dir",
        "run",
        "suffix",
        "processes",
        "threads",
        "mixed_precision",
        "trackers",
    ),
    *("debug", "debug_rules"),
    *MAY_CHANGE,
}


def common_options(cfg: DictConfig) -> dict[str, Any]:
    """Return the options that every model may depend on: those outside of sections, without `WITHOUT_EFFECT`.

    A section is an option of the recipes that name it (`Recipe.sections`).
    """
    options = settings(cfg)
    return {k: v for k, v in options.items() if k not in WITHOUT_EFFECT and not isinstance(v, dict)}


def trained_methods(cfg: DictConfig, episodes: Episodes) -> list[str]:
    """Return the methods whose models are trained: those to be evaluated; if they have none, MPDiffuser with cloning.

    Raises:
        InputError: for a method that needs rewards, if there are none; without goals, for a task that asks for them;
            for a stride, if the data have costs.
    """
    methods = list(cfg.evaluation.methods)
    if not recipes_of(methods):
        methods = ["cloning", "planner", "mpdiffuser"]
    if cfg.stride > 1 and "costs" in episodes:
        raise InputError(f"stride: must be 1 for data with costs, of which each decision counts; found {cfg.stride}")
    if episodes.info.get("asks_for_goals") and not cfg.goals:
        raise InputError(f"goals=false: each episode of {episodes.info['task']} has a goal; give goals=true")
    if imitates(cfg, episodes):
        reason = "goals=true: rewards are not used" if cfg.goals else f"{episodes.path or 'the data'}: no rewards"
        need = [name for name in methods if METHODS[name].needs_rewards]
        if need:
            raise InputError(f"evaluation.methods: {', '.join(need)} need rewards. {reason}; choose other methods")
        print(f"note: {reason}: the planner imitates the data, and no ranker is trained")
    return methods


def run_recipes(
    output: Path, methods: Sequence[str], limits: Sequence[float] = (), imitating: bool = False
) -> dict[str, Recipe]:
    """Return the recipes of the methods' models and of all models that the run's pipeline has already.

    The pipeline keeps its models when a later run of the same folder names fewer methods.
    """
    wanted, all_recipes = recipes_of(methods, limits), recipes_of(METHODS, limits)
    chosen = {
        name: recipe for name, recipe in all_recipes.items() if name in wanted or (output / "pipeline" / name).is_dir()
    }
    if imitating:
        chosen.pop("ranker", None)
        chosen = {k: replace(r, after=tuple(n for n in r.after if n != "ranker")) for k, r in chosen.items()}
    return chosen


def identities(
    cfg: DictConfig,
    data: Mapping[str, Any],
    methods: Sequence[str],
    limits: Sequence[float] = (),
    imitating: bool = False,
    dynamics_data: Mapping[str, Any] | None = None,
) -> dict[str, dict[str, Any]]:
    """Return name -> identity of all models of the methods (see `mpdiffuser.identity`).

    Args:
        cfg: the whole configuration.
        data: the identity of the latent episodes: the dataset's checksum, and the encoder's identity if it is trained.
        methods: names of the methods.
        limits: the cost limits of an episode that the methods get.
        imitating: result of `imitates`.
        dynamics_data: result of `dynamics_info`; None: the dynamics model has no data of its own.

    Raises:
        InputError: if no model of the methods is trained on the dynamics data.
    """
    recipes = run_recipes(Path(cfg.output_dir), methods, limits, imitating)
    options, common = settings(cfg), common_options(cfg)
    own = {key: dynamics_data[key] for key in ("data", "planner_share")} if dynamics_data else {}
    if dynamics_data and not any(recipe.dynamics_data for recipe in recipes.values()):
        raise InputError(f"dynamics_data: none of {', '.join(methods)} has a dynamics model; leave the option out")

    def identity(recipe: Recipe) -> dict[str, Any]:
        after = {name: identity(recipes[name]) for name in recipe.after}
        train = settings(cfg.train[recipe.section or recipe.name]) if recipe.train is not None else None
        more = {"dynamics_data": own} if recipe.dynamics_data and own else {}
        return {**data, **more, "options": recipe.settings(options, common), "train_section": train, "after": after}

    return {name: identity(recipe) for name, recipe in recipes.items()}


def check_folder(output: Path, expected: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise InputError if the run's folder has a model with another identity. Nothing is written."""
    for name, identity in expected.items():
        for folder in (output / name, *sorted((output / name).glob("round_*"))):
            check_run(folder, dict(identity))


def train_pipeline(
    cfg: DictConfig,
    episodes: Episodes,
    encoder: ModelMixin,
    decoder: ModelMixin | None,
    accelerator: Accelerator,
    clock: Clock,
    info: dict[str, Any],
    methods: Sequence[str] = ("cloning", "planner", "mpdiffuser"),
    data_identity: Mapping[str, Any] | None = None,
    more: Episodes | None = None,
) -> MPDiffuserPipeline:
    """Train the models of the methods under cfg.output_dir, and save the pipeline there.

    Args:
        cfg: the whole configuration.
        episodes: the `observations` are latents (M, d).
        encoder, decoder: components of the pipeline; decoder None: no decoder.
        accelerator, clock: of the run.
        info: saved in the pipeline. Its `cost_limits` are the limits that the methods get, its `dynamics_data` is
            `dynamics_info`.
        methods: names of the methods.
        data_identity: the identity of the latents; None: info["data"], the dataset's checksum.
        more: latent episodes of the dynamics model alone; None: there are none.

    Returns:
        The pipeline. The folder `pipeline` has its components and the models of the other methods.

    Raises:
        InputError: if the folder has a run with another identity, or the data are not finite.
    """
    output, limits = Path(cfg.output_dir), info.get("cost_limits", ())
    imitating = imitates(cfg, episodes)
    identity = data_identity or {"data": info["data"]}
    expected = identities(cfg, identity, methods, limits, imitating, info.get("dynamics_data"))
    check_folder(output, expected)
    data = training_data(cfg, episodes, more)

    def fit(recipe: Recipe, name: str, model: Any, train: Any, held_out: Any) -> Any:
        config = train_config(cfg, recipe.section or recipe.name)
        with clock(name):
            where = (config, output / name, accelerator, data.schedule, expected[recipe.name])
            return Trainer(name, model, train, held_out, *where).train()

    recipes = run_recipes(output, methods, limits, imitating)
    train_recipes(cfg, recipes, data, fit, accelerator)
    pipeline = assemble(cfg, data, encoder, decoder, info).to(accelerator.device)

    def held_out(model: str) -> Any:
        recipe = recipes[model]
        return recipe.examples(data.limited_to(recipe.settings(settings(cfg), common_options(cfg))), 1)

    with clock("levels"):
        tune(pipeline, settings(cfg), data.trained, held_out)
    if accelerator.is_main_process:
        others = {name: model for name, model in data.trained.items() if name not in COMPONENTS}
        save_whole(pipeline, others, output / "pipeline")
    accelerator.wait_for_everyone()
    return pipeline


def assemble(
    cfg: DictConfig, data: TrainingData, encoder: ModelMixin, decoder: ModelMixin | None, info: Mapping[str, Any]
) -> MPDiffuserPipeline:
    """Return a pipeline of the trained models. Arguments as `train_pipeline`; `data` has the models."""
    parts: dict[str, Any] = {name: data.trained.get(name) for name in COMPONENTS}
    if parts["ranker"] is not None and "costs" in data.parts[0]:
        data.info["cost_margins"] = calibrate(parts["ranker"], data.parts[1])
    return MPDiffuserPipeline(
        encoder,
        copy.deepcopy(data.latents),  # the pipeline may move to another device, where no data are
        copy.deepcopy(data.actions),
        copy.deepcopy(data.condition) if parts["planner"] is not None else None,
        **parts,
        schedule=data.schedule,
        decoder=decoder,
        sampler_defaults=settings(cfg.sampler) | ({"composition": "planner"} if parts["dynamics"] is None else {}),
        info={**info, "stride": cfg.stride, **data.info},
    )


def training_data(cfg: DictConfig, episodes: Episodes, more: Episodes | None = None) -> TrainingData:
    """Split the episodes, and fit the normalisers to the training part of the planner's episodes.

    Args:
        cfg: the whole configuration.
        episodes: latent episodes.
        more: latent episodes of the dynamics model alone; None: there are none.

    Raises:
        InputError: if the data are not finite.
    """
    train, held_out = split(episodes.check_finite(), cfg.validation, cfg.seed)
    latents = Normalizer(train["observations"].shape[1]).fit(train["observations"])
    actions = Normalizer(train["actions"].shape[1]).fit(train["actions"][step_rows(train)])
    data = TrainingData(common_options(cfg), (train, held_out), latents, actions, NoiseSchedule())
    if more is not None:
        data.dynamics_parts = split(within(more.check_finite(), latents), cfg.validation, cfg.seed)
        data.planner_share = cfg.dynamics_share
    return data


def train_recipes(
    cfg: DictConfig, recipes: Mapping[str, Recipe], data: TrainingData, fit: Any, accelerator: Accelerator
) -> None:
    """Train all models and store them in data.trained. Models that do not depend on each other train in parallel.

    Args:
        cfg: the whole configuration.
        recipes: name -> recipe.
        data: the training data.
        fit: trains a model; called with (recipe, name, model, training data, held-out data).
        accelerator: of the run.
    """
    views = {name: data.limited_to(r.settings(settings(cfg), common_options(cfg))) for name, r in recipes.items()}
    torch.manual_seed(cfg.seed)
    models = {name: recipe.build(views[name]) for name, recipe in recipes.items() if not recipe.own_seed}
    while left := [recipe for recipe in recipes.values() if recipe.name not in data.trained]:
        ready = [recipe for recipe in left if set(recipe.after) <= set(data.trained)]
        for recipe in ready:
            if recipe.own_seed:
                torch.manual_seed(cfg.seed)
                models[recipe.name] = recipe.build(views[recipe.name])
        jobs = [partial(r.fit, partial(fit, r), models[r.name], views[r.name]) for r in ready]
        trained = run_parallel(jobs, accelerator.device, accelerator.num_processes)
        data.trained |= dict(zip([recipe.name for recipe in ready], trained))


def save_whole(pipeline: MPDiffuserPipeline, others: dict[str, Any], folder: Path) -> None:
    """Save a pipeline and the models of other methods in one folder, which appears only when it is complete.

    An existing folder with the same content is not changed.

    Args:
        pipeline: the pipeline.
        others: name -> model of another method.
        folder: the folder to write.

    Raises:
        InputError: if the folder cannot be written.
    """
    partial_folder = folder.with_name(folder.name + ".partial")
    with writing(folder):
        shutil.rmtree(partial_folder, ignore_errors=True)
        for name, model in others.items():
            model.save_pretrained(partial_folder / name)
        pipeline.save_pretrained(partial_folder)
        if _content(partial_folder) == _content(folder):
            shutil.rmtree(partial_folder)
        else:
            publish(partial_folder, folder)


def _content(folder: Path) -> dict[str, Any] | None:
    """Return the checksums and the index of a complete pipeline folder; None for other folders.

    They are without `ORIGIN`, and of the chosen numbers of levels without the errors, whose last digits differ.
    """
    try:
        check_manifest(folder, "")
    except InputError:
        return None
    files, index = read_json(folder / MANIFEST)["files"], read_json(folder / "model_index.json")
    del files["model_index.json"], index["_diffusers_version"]
    info = {key: value for key, value in index["info"].items() if key not in ORIGIN}
    info["levels"] = {name: record["levels"] for name, record in info.get("levels", {}).items()}
    return files | {"index": index | {"info": info}}
