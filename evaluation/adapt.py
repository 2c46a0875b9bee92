"""The command `python adapt.py` or `mpdiffuser adapt`: a pipeline is adapted to a changed robot.

Joints that became weaker or stronger, a load, another floor: record a few minutes of play with the changed robot,
without any reward. The command fits how its actions differ (`mpdiffuser.adaptation`), trains the dynamics model
further, and writes an adapted pipeline and adaptation.json. The old pipeline stays as it is. The form of the difference
is chosen on held-out play; if nothing changed, the actions stay as they are.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from omegaconf import DictConfig

from envs.datasets import import_datasets, open_datasets
from mpdiffuser.action_scale import ActionMap
from mpdiffuser.adaptation import Steps, choose, pieces, saturation, warnings
from mpdiffuser.config import configured, settings
from mpdiffuser.episodes import Episodes
from mpdiffuser.errors import InputError
from mpdiffuser.files import MANIFEST, check_manifest, claim, publish, read_json, write_manifest, write_whole, writing
from mpdiffuser.pipeline import MPDiffuserPipeline
from mpdiffuser.preparation import unit_actions, within
from mpdiffuser.trainer import TrainConfig, Trainer
from mpdiffuser.windows import Windows, split
from vision.data import encode_frames
from vision.states import encode_states, with_latents

FEWEST = 100  # steps of play


def play(cfg: DictConfig, pipeline: MPDiffuserPipeline) -> Episodes:
    """Open the play data, with actions in [-1, 1] by the pipeline's bounds.

    Raises:
        InputError: if they are not of the pipeline's robot: other observations or actions, or too few steps.
    """
    opened = (cfg.dataset, cfg.data_dir, settings(cfg["keys"]))
    if pipeline.sees_pixels:
        episodes = import_datasets(cfg.dataset, cfg.data_root, *opened[1:])
    else:
        episodes = open_datasets(*opened, pictures=False)
    record = pipeline.record
    assert record is not None
    found = {name: each.shape for name, each in episodes.record.observations.items() if name in record.observations}
    expected = {name: each.shape for name, each in record.observations.items()}
    widths = [episodes["actions"].shape[1], len(record.actions.low)]
    if found != expected or widths[0] != widths[1]:
        raise InputError(
            f"dataset: {episodes.path}: found {found} and {widths[0]} actions, but the pipeline has {expected} and "
            f"{widths[1]} actions"
        )
    if episodes.lengths.sum() < FEWEST:
        raise InputError(f"dataset: {episodes.path}: must have at least {FEWEST} steps, found {episodes.lengths.sum()}")
    if cfg.out_of_bounds == "widen":
        raise InputError("out_of_bounds: must be refuse or clip, since the pipeline's bounds stay; found widen")
    seen = replace(episodes.record, observations=record.observations, actions=record.actions)
    unit, _ = unit_actions(replace(episodes, record=seen), cfg.out_of_bounds)
    return unit.check_finite()


def encoded(pipeline: MPDiffuserPipeline, episodes: Episodes) -> Episodes:
    """Return the episodes with latents (M, d) as `observations`."""
    if pipeline.sees_pixels:
        return with_latents(episodes, encode_frames(pipeline.encoder, episodes))
    return encode_states(pipeline.encoder, episodes)


def as_nominal(episodes: Episodes, change: ActionMap) -> Episodes:
    """Return the episodes with the actions T u of the nominal robot."""
    actions = np.array(episodes["actions"], np.float32)
    actions = actions @ np.array(change.matrix, np.float32).T + np.array(change.bias, np.float32)
    actions[episodes.offsets[1:] - 1] = 0
    return replace(episodes, arrays=episodes.arrays | {"actions": actions})


def train_further(
    cfg: DictConfig, pipeline: MPDiffuserPipeline, parts: Any, output: Path, identity: Any
) -> list[float]:
    """Train the pipeline's dynamics model on play, and return its held-out loss before and after."""
    model, c = pipeline.dynamics, pipeline.planner.config
    windows = [
        Windows(
            part,
            np.zeros((len(part["actions"]), c["condition_dim"]), np.float32),
            c["horizon"],
            pipeline.latents,
            pipeline.actions,
            pipeline.condition,
            stride=pipeline.stride,
        )
        for part in parts
    ]
    config = TrainConfig(**settings(cfg.dynamics), seed=cfg.seed, patience=0)
    where = (output / "dynamics", Accelerator(cpu=True), pipeline.schedule, identity)
    trainer = Trainer("dynamics", model, windows[0], windows[1], config, *where)
    pipeline.register_modules(dynamics=trainer.train().eval())
    log = [json.loads(line) for line in (output / "dynamics" / "log.jsonl").read_text().splitlines()]
    losses = [line["validation_loss"] for line in log if "validation_loss" in line]
    return [losses[0], min(losses)]


@configured("adapt")
def main(cfg: DictConfig) -> None:
    """Adapt the pipeline `cfg.pipeline` to the robot of the play data `cfg.dataset`."""
    torch.set_num_threads(cfg.threads)
    print(f"Pipeline: {adapt(cfg)}")


def adapt(cfg: DictConfig) -> Path:
    """Adapt a pipeline, print the result, and return the folder of the adapted pipeline.

    Raises:
        InputError: for a pipeline that cannot be adapted, data that do not fit, or a folder with another adaptation.
    """
    folder = Path(cfg.pipeline)
    pipeline = MPDiffuserPipeline.from_pretrained(folder)
    if pipeline.planner is None or pipeline.record is None or pipeline.forward is None:
        raise InputError(
            f"pipeline: {folder}: has no planner, no forward model or no record; train one with method=planner"
        )
    if not pipeline.sees_pixels and pipeline.encoder.history > 1:
        raise InputError(
            f"pipeline: {folder}: its latents hold past actions (history={pipeline.encoder.history}), by which their "
            "change cannot be fitted; train one with history=1"
        )
    output = Path(cfg.output_dir or folder.absolute().parent.with_name(f"{folder.absolute().parent.name}-adapted"))
    episodes = play(cfg, pipeline)
    data = episodes.checksum(*pipeline.record.observations, "actions")
    chosen = {key: settings(cfg)[key] for key in ("dynamics", "validation", "seed", "out_of_bounds")}
    origin = {"play": {"source": str(episodes.path), "data": data}, "options": chosen}
    origin["of"] = read_json(folder / MANIFEST)["files"]["model_index.json"]
    if (output / "pipeline").resolve() == folder.resolve():
        raise InputError(f"output_dir: {output} holds the pipeline that is adapted; choose another")
    claim(output, "wait for it, or choose another output_dir=")
    check_origin(output / "adaptation.json", origin)
    train, held_out = split(pieces(encoded(pipeline, episodes)), cfg.validation, cfg.seed)
    change, found = choose(pipeline.forward.requires_grad_(False), Steps.of(train), Steps.of(held_out))
    mean, std = (each.detach().numpy() for each in (pipeline.actions.mean, pipeline.actions.std))
    told = warnings(change, saturation(change, mean, std), pipeline.record.actions.names)
    found |= {"map": change.to_json(), "warnings": told} | origin
    if pipeline.dynamics is not None and cfg.dynamics.steps:
        plan_steps = pipeline.stride * (pipeline.planner.config["horizon"] - 1) + 1
        again = pieces(encoded(pipeline, as_nominal(episodes, change)), plan_steps)
        parts = split(within(again, pipeline.latents), cfg.validation, cfg.seed)
        found["dynamics"] = train_further(cfg, pipeline, parts, output, origin | {"map": change.to_json()})
    save(pipeline, folder, output / "pipeline", found)
    write_whole(output / "adaptation.json", json.dumps(found, indent=1))
    print(table(found))
    return output / "pipeline"


def check_origin(file: Path, origin: dict[str, Any]) -> None:
    """Raise InputError if a folder holds the adaptation of another pipeline, to other data, or with other options."""
    found = read_json(file) if file.exists() else origin
    for key, value in json.loads(json.dumps(origin)).items():
        if found.get(key) != value:
            raise InputError(
                f"{file}: another adaptation: {key} {found.get(key)} there, {value} now; choose another output_dir="
            )


def save(pipeline: MPDiffuserPipeline, folder: Path, target: Path, found: dict[str, Any]) -> None:
    """Write the adapted pipeline, with the other models of the old folder, under a temporary name; then rename it."""
    partial = target.with_name(f"{target.name}.partial")
    pipeline.register_to_config(info=pipeline.config["info"] | {"adaptation": found})
    with writing(target):
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(folder, partial)
        pipeline.save_pretrained(partial)
        write_manifest(partial)
        check_manifest(partial, "")
        publish(partial, target)


def table(found: dict[str, Any]) -> str:
    """Return the adaptation as text."""
    lines = [f"Actions: {found['form']}; error of the next latent on held-out play (mpdiffuser.adaptation):"]
    lines += [f"    {form:18}{error:g}" for form, error in found["errors"].items()]
    gains = ", ".join(f"{row[i]:.2f}" for i, row in enumerate(found["map"]["matrix"]))
    lines.append(f"  gains {gains}; biases {', '.join(f'{bias:.2f}' for bias in found['map']['bias'])}")
    if "dynamics" in found:
        before, after = found["dynamics"]
        lines.append(f"Dynamics model: held-out loss {before:.4g} before, {after:.4g} after")
    return "\n".join([*lines, *(f"warning: {sentence}" for sentence in found["warnings"])])
