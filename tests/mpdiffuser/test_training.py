"""What each model depends on, which folders are refused, and what training leaves."""

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from omegaconf import DictConfig, OmegaConf

from mpdiffuser.config import load, settings
from mpdiffuser.controller import Controller
from mpdiffuser.errors import InputError
from mpdiffuser.files import read_json
from mpdiffuser.identity import differences, plain
from mpdiffuser.launch import Clock
from mpdiffuser.methods import METHODS, recipes_of
from mpdiffuser.pipeline import MPDiffuserPipeline
from mpdiffuser.sampler import SamplerConfig
from mpdiffuser.trainer import MAY_CHANGE
from mpdiffuser.training import (
    WITHOUT_EFFECT,
    assemble,
    check_folder,
    common_options,
    identities,
    save_whole,
    train_pipeline,
    training_data,
)
from vision.encoder import IdentityEncoder

DATA = {"data": "abc"}
TINY = ["debug=true", "trackers=[]", "horizon=8", "rounds=2", "checkpoint_every=2", "ranker.hidden=8"]
TINY += [f"{model}.{size}" for model in ("planner", "dynamics") for size in ("width=8", "embedding=16")]


@pytest.fixture(scope="module")
def state() -> DictConfig:
    return load("state", [])


@pytest.fixture(scope="module")
def vision() -> DictConfig:
    return load("vision", [])


def changed(cfg: DictConfig, key: str, value: Any) -> DictConfig:
    """A copy of cfg with one option set."""
    copy = OmegaConf.create(settings(cfg))
    OmegaConf.update(copy, key, value, force_add=True)
    return copy


def models_changed(cfg: DictConfig, key: str, value: Any, methods: Any = METHODS, data: Any = DATA) -> set[str]:
    """Names of the models whose identity changes with an option."""
    old, new = identities(cfg, data, list(methods)), identities(changed(cfg, key, value), data, list(methods))
    assert old.keys() == new.keys()
    return {name for name in old if old[name] != new[name]}


ALL = set(recipes_of(METHODS))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[("validation", 0.2), ("seed", 1), ("horizon", 8), ("discount", 0.9), ("td_lambda", 0.5), ("occupancy", 0.1)],
        *[("rounds", 3), ("an_option_of_tomorrow", 1)],
    ],
)
def test_common_options_are_part_of_every_models_identity(state, vision, key: str, value: Any) -> None:
    """Also those that nobody has thought of yet: what does not matter must be listed."""
    for cfg in (state, vision):
        assert models_changed(cfg, key, value) == ALL


@pytest.mark.slow
def test_options_without_effect_are_part_of_none(state, vision) -> None:
    for cfg in (state, vision):
        for key in WITHOUT_EFFECT:
            assert models_changed(cfg, key, "something else") == set(), key
    assert set(WITHOUT_EFFECT) - set(MAY_CHANGE) <= {*state, *vision}  # no name of an option that is gone


def test_every_option_is_common_without_effect_or_of_a_section(state, vision) -> None:
    """Sections belong to the recipes that name them, to training, to evaluation, or to the dataset."""
    recipes = recipes_of(METHODS).values()
    named = {section.partition(".")[0] for recipe in recipes for section in recipe.sections}
    for cfg in (state, vision):
        sections = {key for key, value in cfg.items() if isinstance(value, DictConfig)}
        assert sections == named | {"train", "sampler", "evaluation", "task", "keys"} | ({"encoder"} & set(cfg))
        assert set(common_options(cfg)) == set(cfg) - sections - WITHOUT_EFFECT


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("train.dynamics.steps", 9, {"dynamics", "student"}),
        ("train.cloning.batch_size", 9, {"cloning"}),
        ("train.student.steps", 9, {"student"}),
        ("train.ranker.steps", 9, {"ranker", "planner", "dynamics", "student"}),  # upstream of all three
        ("advantage.temperature", 9.0, {"planner", "student"}),
        ("baselines.iql.expectile", 0.9, {"iql"}),
        ("baselines.td3_bc.alpha", 9.0, {"td3_bc"}),
        ("dynamics.width", 64, {"dynamics", "clean_dynamics", "student"}),
        ("ranker.hidden", 64, {"ranker", "planner", "dynamics", "student", "critic"}),
        ("sampler.steps", 9, {"student"}),  # its teacher's
        ("sampler.candidates", 9, set()),
        ("baselines.d_mpc.candidates", 9, set()),
        ("evaluation.episodes", 9, set()),
    ],
)
def test_options_of_sections(state, key: str, value: Any, expected: set[str]) -> None:
    assert models_changed(state, key, value) == expected


def test_the_planners_size_is_its_own_and_its_likes(state) -> None:
    others = {
        "ranker",
        "dynamics",
        "clean_dynamics",
        "cloning",
        "iql",
        "td3_bc",
        "rebrac",
        "critic",
        "inverse",
        "logged_returns",
        "forward",
    }
    assert models_changed(state, "planner.width", 64) == ALL - others


def test_the_data_and_the_encoder_are_part_of_every_identity(vision) -> None:
    encoder = {"encoder": {"encoder": {"backbone": "conv"}, "train_section": {"steps": 9}, "backbone_weights": "aaa"}}
    first = identities(vision, DATA | encoder, list(METHODS))
    for data in (
        {"data": "other"} | encoder,
        DATA | {"encoder": encoder["encoder"] | {"backbone_weights": "bbb"}},
        DATA | {"encoder": encoder["encoder"] | {"train_section": {"steps": 10}}},
    ):
        second = identities(vision, data, list(METHODS))
        assert {name for name in first if first[name] != second[name]} == ALL


def test_an_identity_says_what_a_recipe_can_read(state) -> None:
    """By construction: the recipe's functions see `options`, and an identity holds all of them."""
    found = identities(state, DATA, list(METHODS))
    for name, recipe in recipes_of(METHODS).items():
        assert found[name]["options"] == recipe.settings(settings(state), common_options(state))
        assert set(found[name]["after"]) == set(recipe.after)
        assert json.loads(json.dumps(found[name])) == found[name]


def tree(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Time of the last change and content of all that lies in a folder."""
    paths = sorted(folder.rglob("*"))
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in [folder, *paths]
    }


def train(cfg: DictConfig, episodes: Any, methods: list[str], **info: Any) -> MPDiffuserPipeline:
    d, m = (episodes[key].shape[1] for key in ("observations", "actions"))
    info = {"task": "none", "data": episodes.checksum(), "seed": cfg.seed, **info}
    return train_pipeline(cfg, episodes, IdentityEncoder(d, m), None, Accelerator(cpu=True), Clock(), info, methods)


@functools.cache
def tiny_options() -> DictConfig:
    """Of a run of a few steps; composed once, as that takes longer than the run."""
    trained = {recipe.section or recipe.name for recipe in recipes_of(METHODS).values() if recipe.train is not None}
    return load("state", [*TINY, *(f"train.{name}.steps=4" for name in sorted(trained))])


def tiny(output: Path, *more: str) -> DictConfig:
    cfg = OmegaConf.merge(tiny_options(), OmegaConf.from_dotlist([f"output_dir={output}", *more]))
    assert isinstance(cfg, DictConfig)
    return cfg


@pytest.fixture(scope="module")
def run(make_episodes, tmp_path_factory) -> tuple[Path, Any, MPDiffuserPipeline]:
    """A run of some steps of MPDiffuser's models and a copy, its episodes, its pipeline."""
    output, episodes = tmp_path_factory.mktemp("run") / "out", make_episodes([30, 25, 20, 28], costs=True)
    return output, episodes, train(tiny(output), episodes, ["cloning", "mpdiffuser"], cost_limits=[5])


@pytest.mark.slow
def test_what_training_leaves(run) -> None:
    """A whole folder that draws as the configuration says, with the other methods' models beside it."""
    output, episodes, pipeline = run
    loaded = MPDiffuserPipeline.from_pretrained(output / "pipeline")
    info = loaded.config["info"]
    assert info["data"] == episodes.checksum() and info["cost_limits"] == [5]
    assert info["cost_margins"]["steps"][0] == 1 and loaded.ranker.cost_scale is not None
    assert (loaded.sampler_defaults.candidates, loaded.sampler_defaults.chunk) == (2, 4)
    record = info["levels"]["planner"]
    assert record["levels"] == loaded.sampler_defaults.steps == Controller(loaded).sampler.config.steps
    assert list(record["errors"]) == ["1", "2", "3", "4", "6", "8"] and min(record["errors"].values()) > 0
    assert (output / "pipeline" / "cloning").is_dir() and (output / "pipeline" / "cloning_within_5").is_dir()
    assert {log.parent.relative_to(output).as_posix() for log in output.rglob("log.jsonl")} == {
        *("ranker", "ranker/round_1", "planner", "dynamics", "forward", "cloning", "cloning_within_5")
    }
    observations = np.zeros((1, 3), np.float32)
    np.testing.assert_allclose(Controller(loaded).act(observations), Controller(pipeline).act(observations), atol=1e-4)


def test_the_same_run_again_changes_nothing(run, capsys) -> None:
    output, episodes, _ = run
    before = tree(output)
    train(tiny(output, "threads=2", "skip_bad_steps=1"), episodes, ["cloning", "mpdiffuser"], cost_limits=[5])
    assert capsys.readouterr().out.count("trained already") == 7
    kept = {name: content for name, (_, content) in before.items() if not name.endswith("log.jsonl")}
    after = tree(output)
    assert {name: after[name][1] for name in kept} == kept


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("validation=0.4", r"validation: 0\.1 there, 0\.4 now"),
        ("seed=1", r"seed: 0 there, 1 now"),
        ("horizon=16", r"horizon: 8 there, 16 now"),
        ("train.ranker.steps=5", r"train_section\.steps: 4 there, 5 now"),
        ("advantage.bound=2", r"planner: holds .*advantage\.bound: 1\.0 there, 2"),
        ("dynamics.width=16", r"dynamics: holds .*dynamics\.width: 8 there, 16 now"),
    ],
)
def test_a_run_that_does_not_fit_is_refused_before_anything_is_touched(run, option: str, words: str) -> None:
    output, episodes, _ = run
    before = tree(output)
    with pytest.raises(InputError, match=words):
        train(tiny(output, option), episodes, ["cloning", "mpdiffuser"], cost_limits=[5])
    assert tree(output) == before


def test_other_data_are_refused_before_anything_is_touched(run, make_episodes) -> None:
    output, _, _ = run
    before = tree(output)
    with pytest.raises(InputError, match=r"data: \w+ there, \w+ now"):
        train(tiny(output), make_episodes([30, 25, 20, 28], costs=True, seed=1), ["cloning"], cost_limits=[5])
    assert tree(output) == before


def test_folders_are_checked_by_model_and_by_round(run) -> None:
    """A folder of a round that was cut off counts too."""
    output, episodes, _ = run
    expected = identities(tiny(output), {"data": episodes.checksum()}, ["mpdiffuser"])
    check_folder(output, expected)
    check_folder(output / "nowhere", expected)
    state = next((output / "ranker" / "round_1").glob("step_*")) / "state" / "trainer.json"
    kept = state.read_text()
    try:
        state.write_text(kept.replace('"td_lambda": 0.9', '"td_lambda": 0.8'))
        with pytest.raises(InputError, match=r"round_1: holds .*td_lambda: 0\.8 there, 0\.9 now"):
            check_folder(output, expected)
    finally:
        state.write_text(kept)


def test_what_a_checkpoint_says_is_the_identity(run) -> None:
    output, episodes, _ = run
    expected = identities(tiny(output), {"data": episodes.checksum()}, ["cloning", "mpdiffuser"], [5])
    for name, identity in expected.items():
        found = read_json(output / name / "step_00000004" / "state" / "trainer.json")["identity"]
        assert not differences({key: found[key] for key in identity}, plain(identity))


def test_a_later_run_of_fewer_methods_keeps_the_other_models(run, tmp_path: Path) -> None:
    output, episodes, _ = run
    copy = shutil.copytree(output, tmp_path / "out")
    train(tiny(copy), episodes, ["iql"], cost_limits=[5])
    models = {file.parent.name for file in (copy / "pipeline").glob("*/diffusion_pytorch_model.safetensors")}
    assert {"iql", "planner", "dynamics", "ranker", "cloning", "cloning_within_5"} <= models
    for name in ("planner", "cloning_within_5"):
        weights = f"pipeline/{name}/diffusion_pytorch_model.safetensors"
        assert (copy / weights).read_bytes() == (output / weights).read_bytes()


def test_a_planner_alone_is_saved_with_settings_that_draw(make_episodes, tmp_path: Path) -> None:
    episodes = make_episodes([12, 9, 15, 11], costs=False)
    train(tiny(tmp_path), episodes, ["planner"])
    loaded = MPDiffuserPipeline.from_pretrained(tmp_path / "pipeline")
    assert loaded.dynamics is None and loaded.sampler_defaults.composition == "planner"
    assert np.isfinite(Controller(loaded).act(np.zeros((1, 3), np.float32))).all()


def test_models_that_wait_for_no_other_do_not_depend_on_each_other(run, make_episodes, tmp_path: Path) -> None:
    """A method's own model is the same whichever methods are trained with it."""
    _, episodes, _ = run
    runs = [["iql"], ["iql", "d_mpc"]]
    for number, methods in enumerate(runs):
        train(tiny(tmp_path / str(number)), episodes, methods)
    weights = "pipeline/iql/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "0" / weights).read_bytes() == (tmp_path / "1" / weights).read_bytes()


def test_the_split_and_the_normalisers(make_episodes, state) -> None:
    """Fitted to the training part alone, actions without the row that holds none."""
    episodes = make_episodes([9, 8, 7, 6])
    data = training_data(changed(state, "validation", 0.5), episodes)
    assert [len(part) for part in data.parts] == [2, 2]
    assert not {*data.parts[0].numbers} & {*data.parts[1].numbers}
    np.testing.assert_allclose(data.latents.mean.detach(), data.parts[0]["observations"].mean(0), rtol=1e-4, atol=1e-6)
    rows = np.delete(np.arange(len(data.parts[0]["actions"])), data.parts[0].offsets[1:] - 1)
    np.testing.assert_allclose(data.actions.mean.detach(), data.parts[0]["actions"][rows].mean(0), rtol=1e-4, atol=1e-6)


def test_a_pipeline_that_moves_to_a_gpu_leaves_the_data_where_they_are(make_episodes, state) -> None:
    """Windows of held-out data are made after that."""
    data = training_data(state, make_episodes([9, 8, 7]))
    info = {"task": "none", "data": "none"}
    pipeline = assemble(state, data, IdentityEncoder(3), None, info)
    moved = {part.data_ptr() for each in (pipeline.latents, pipeline.actions) for part in each.parameters()}
    assert not moved & {part.data_ptr() for each in (data.latents, data.actions) for part in each.parameters()}


def test_a_pipeline_folder_is_replaced_by_other_models_or_facts_and_by_nothing_else(
    tiny_pipeline: MPDiffuserPipeline, tmp_path: Path
) -> None:
    folder, pipeline = tmp_path / "pipeline", tiny_pipeline
    save_whole(pipeline, {}, folder)
    first = pipeline.config["info"]

    def saved(**facts: Any) -> dict[str, Any]:
        pipeline.register_to_config(info=dict(first) | facts)
        save_whole(pipeline, {}, folder)
        return read_json(folder / "model_index.json")["info"]

    assert "commit" not in saved(commit="another")  # as it was
    assert saved(cost_margins=[1.0])["cost_margins"] == [1.0]
    for levels, error in ((2, 0.5), (3, 0.5)):
        record = {"diffuser": {"levels": levels, "errors": {"2": error}}}
        assert saved(cost_margins=[1.0], levels=record)["levels"] == record
    assert saved(cost_margins=[1.0], levels={"diffuser": {"levels": 3, "errors": {"2": 0.501}}})["levels"] == record
    with torch.no_grad():
        next(pipeline.planner.parameters()).add_(1)
    before = (folder / "planner").stat().st_ino
    saved(cost_margins=[1.0])
    assert (folder / "planner").stat().st_ino != before


def test_other_settings_replace_a_pipeline_folder(make_pipeline: Callable[..., Any], tmp_path: Path) -> None:
    for solver in ("ddim", "ddpm"):
        save_whole(make_pipeline(sampler={"solver": solver}), {}, tmp_path / "pipeline")
        found = MPDiffuserPipeline.from_pretrained(tmp_path / "pipeline").sampler_defaults
        assert found.solver == SamplerConfig(solver=solver).solver == solver
