"""Checks of a pipeline folder before diffusers opens it.

Without these checks diffusers would download a missing folder from its hub, import the modules that model_index.json
names, run .py files and unpickle .bin files.

    python -m mpdiffuser.safe_loading FOLDER     write the manifest of a folder that you trust

A pipeline folder has the components that model_index.json names, and the models of other methods, one folder for each
model (see `load_model`).
"""

import importlib
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_type_hints

import torch
from safetensors import SafetensorError, safe_open

from mpdiffuser.action_scale import ActionMap
from mpdiffuser.errors import InputError
from mpdiffuser.files import MANIFEST, check_manifest, read_json, write_manifest
from mpdiffuser.record import PICTURE, Record
from mpdiffuser.sampler import SamplerConfig

WEIGHTS = "diffusion_pytorch_model.safetensors"
SCHEDULE = ("mpdiffuser.schedule", "NoiseSchedule")
# component -> allowed (module, class); a program with another encoder adds its class here
ALLOWED: dict[str, set[tuple[str, str]]] = {
    "encoder": {("vision.encoder", "PixelEncoder"), ("vision.encoder", "IdentityEncoder")},
    "decoder": {("vision.decoder", "Decoder")},
    "latents": {("mpdiffuser.models.normalizer", "Normalizer")},
    "actions": {("mpdiffuser.models.normalizer", "Normalizer")},
    "condition": {("mpdiffuser.models.normalizer", "Marginals")},
    "planner": {("mpdiffuser.models.denoisers", "Planner")},
    "dynamics": {("mpdiffuser.models.denoisers", "Dynamics")},
    "ranker": {("mpdiffuser.models.ranker", "Ranker")},
    "forward": {("mpdiffuser.models.forward", "ForwardModel")},
    "schedule": {SCHEDULE},
}
OPTIONAL = ("decoder", "condition", "planner", "dynamics", "ranker", "forward")
FORMAT_VERSION = 7  # version of the format of a pipeline folder
SAME = (
    "encoder.latent_dim latents.dim planner.latent_dim dynamics.latent_dim ranker.latent_dim forward.latent_dim "
    "decoder.latent_dim record.latent_dim",
    "encoder.action_dim actions.dim planner.action_dim dynamics.action_dim ranker.action_dim forward.action_dim "
    "record.action_dim",
    "encoder.cameras record.cameras",
    "encoder.proprioception record.proprioception",
    "planner.horizon dynamics.horizon",
    "planner.condition_dim condition.dim",
)
LARGEST = 100_000  # largest number in a configuration; real widths, levels and horizons are far smaller
MOST_CANDIDATES = 1000  # their comparison takes memory in proportion to the square
LONGEST = 100  # largest length of a list or text in a configuration
REMEDY = "get it again; for a folder that you made and trust: python -m mpdiffuser.safe_loading FOLDER"


def check_pipeline(folder: Path) -> None:
    """Raise InputError unless a folder is a complete pipeline folder of this format version.

    A folder that passes the check cannot run code, point to other files, or fill the memory. The error names the file
    or field, the value found and the allowed values.
    """
    if not (folder / "model_index.json").is_file():
        raise InputError(f"{folder}: not a pipeline folder (no model_index.json in it)")
    check_manifest(folder, REMEDY)
    classes = _components(folder / "model_index.json")
    files = {f"{name}/{file}" for name, kind in classes.items() for file in _files(kind)}
    others = {path.name for path in folder.iterdir() if path.is_dir() and path.name not in ALLOWED}
    files |= {f"{name}/{file}" for name in others for file in ("config.json", WEIGHTS)}
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    found -= {"model_index.json", MANIFEST}
    for name in sorted(files ^ found):
        raise InputError(
            f"{folder / name}: {'missing' if name in files else 'not a file of a pipeline; remove it'}; {REMEDY}"
        )
    configs = {name: check_component(folder / name, kind) for name, kind in classes.items()}
    if record := read_json(folder / "model_index.json")["info"].get("record"):
        configs["record"] = _sizes(
            Record.from_json(record, f"{folder}: info.record"), classes["encoder"][1], configs["encoder"]
        )
    _check_agreement(folder, configs)


def load_model(folder: Path, kind: type[Any], dims: Mapping[str, int]) -> Any:
    """Load the model of a method from its folder, in eval mode.

    Args:
        folder: the folder of the model.
        kind: the class of the model.
        dims: required values in its configuration (latent_dim, action_dim, ...). Missing names are not checked.

    Raises:
        InputError: if the folder is missing, has another class, or has a model with other dimensions.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such model; train the method that needs it")
    config = check_component(folder, (kind.__module__, kind.__name__))
    for key, value in dims.items():
        if config.get(key, value) != value:
            raise InputError(f"{folder}: {key} must be {value}, as in the pipeline, found {config[key]}; {REMEDY}")
    return kind.from_pretrained(folder, use_safetensors=True).eval()


def _files(kind: tuple[str, str]) -> tuple[str, ...]:
    return ("schedule_config.json",) if kind == SCHEDULE else ("config.json", WEIGHTS)


def _components(file: Path) -> dict[str, tuple[str, str]]:
    """Return component -> (module, class) of model_index.json. Raise InputError for one that is not allowed."""
    index = {key: value for key, value in read_json(file).items() if key != "_diffusers_version"}
    if index.pop("_class_name", None) != "MPDiffuserPipeline":
        raise InputError(f"{file}: _class_name must be MPDiffuserPipeline; {REMEDY}")
    version = index.pop("format_version", None)
    if version != FORMAT_VERSION:
        raise InputError(
            f"{file}: format_version {str(version)[:80]} found, this program reads {FORMAT_VERSION}; train the "
            "pipeline again, or use the version of mpdiffuser that wrote it (info.versions)"
        )
    _check_sampler(file, index.pop("sampler_defaults", None))
    _check_info(file, index.pop("info", None))
    classes = {}
    for name in sorted({*index, *ALLOWED}):
        value, allowed = index.get(name), ALLOWED.get(name, set())
        if name in OPTIONAL and value in (None, [None, None]):
            continue
        kind = tuple(value) if isinstance(value, list) and all(isinstance(word, str) for word in value) else ()
        if kind not in allowed:
            named = " or ".join(sorted(" ".join(pair) for pair in allowed)) or "no component of a pipeline"
            raise InputError(f"{file}: {name[:80]}: must be {named}, found {str(value)[:80]}; {REMEDY}")
        classes[name] = (kind[0], kind[1])
    return classes


def _check_sampler(file: Path, settings: Any) -> None:
    _check_sizes(file, settings)
    try:
        for name, usual in asdict(SamplerConfig()).items():
            value = settings.get(name, usual)
            fits = value is None or type(value) is int if name == "steps" else type(value) is type(usual)
            if not (fits or (isinstance(usual, float) and type(value) is int) or isinstance(usual, tuple)):
                raise TypeError(f"{name} must be like {usual!r}, found {value!r}")
        if SamplerConfig(**settings).candidates > MOST_CANDIDATES:
            raise InputError(f"candidates must be at most {MOST_CANDIDATES}, found {settings['candidates']}")
    except (InputError, TypeError, AttributeError) as error:
        raise InputError(f"{file}: sampler_defaults: {error}; {REMEDY}") from error


def _check_info(file: Path, info: Any) -> None:
    if not isinstance(info, dict):
        raise InputError(f"{file}: info must be an object; {REMEDY}")
    limits = info.get("cost_limits", [])
    fits = isinstance(limits, list) and all(type(each) in (int, float) and 0 <= each < math.inf for each in limits)
    if not fits:
        raise InputError(f"{file}: info.cost_limits must be a list of finite numbers, found {str(limits)[:80]}")
    for key in ("task", "suite", "back_end"):
        if not isinstance(info.get(key, ""), str):
            raise InputError(f"{file}: info.{key} must be a text, found {str(info[key])[:80]}")
    if "record" in info:
        record = Record.from_json(info["record"], f"{file}: info.record")
        if not record.observations:
            raise InputError(f"{file}: info.record: observations: must not be empty; {REMEDY}")
        if "adaptation" in info:
            dim = len(ActionMap.from_json(info["adaptation"], f"{file}: info.adaptation").bias)
            if dim != len(record.actions.low):
                raise InputError(
                    f"{file}: info.adaptation: must be of {len(record.actions.low)} actions, found {dim}; {REMEDY}"
                )


def _sizes(record: Record, encoder: str, config: dict[str, Any]) -> dict[str, Any]:
    """Return the values that the record demands of the components; `encoder` is a class and `config` its arguments."""
    pictures, m = record.names(PICTURE), len(record.actions.low)
    size = sum(each.shape[0] for name, each in record.observations.items() if name not in pictures)
    sizes = {"action_dim": m, "latent_dim": config.get("latent_dim")}
    if encoder == "PixelEncoder":
        return sizes | {"cameras": len(pictures), "proprioception": size}
    if encoder == "IdentityEncoder":
        history = config.get("history", 1)
        return sizes | {"latent_dim": history * size + (history - 1) * m}
    return sizes


def _check_agreement(folder: Path, configs: dict[str, dict[str, Any]]) -> None:
    """Raise InputError unless all components have the same dimensions and horizon."""
    for names in SAME:
        found = {}
        for name in names.split():
            component, _, key = name.partition(".")
            if component in configs:
                found[name] = configs[component].get(key)
        if len(set(map(repr, found.values()))) > 1:
            raise InputError(f"{folder}: its components do not fit each other: {found}; {REMEDY}")


def check_component(folder: Path, kind: tuple[str, str]) -> dict[str, Any]:
    """Check that the configuration and the weights in a folder fit each other. The weights are not allocated.

    Args:
        folder: the folder of the component.
        kind: its (module, class).

    Returns:
        The configuration.

    Raises:
        InputError: if they do not fit. The message names the file, the value found and the allowed values.
    """
    module, name = kind
    file = folder / _files(kind)[0]
    config = read_json(file)
    if config.get("_class_name") != name:
        raise InputError(f"{file}: _class_name must be {name}, found {str(config.get('_class_name'))[:80]!r}; {REMEDY}")
    config = {key: value for key, value in config.items() if not key.startswith("_")}
    _check_sizes(file, config)
    try:
        made: Any = getattr(importlib.import_module(module), name)
        _check_types(made, config)
        with torch.device("cpu" if kind == SCHEDULE else "meta"):
            component = made(**config)
    except Exception as error:  # untrusted values may raise any exception
        raise InputError(f"{file}: no {name} can be made of it ({type(error).__name__}: {error}); {REMEDY}") from error
    if kind != SCHEDULE:
        _check_weights(folder / WEIGHTS, component)
    return config


def _check_types(made: Any, config: dict[str, Any]) -> None:
    """Raise TypeError unless the arguments have the types in the constructor's signature."""
    hints = get_type_hints(made.__init__)
    for key, value in config.items():
        hint = hints.get(key)
        fits: dict[Any, bool] = {
            int: type(value) is int,
            float: type(value) in (int, float),
            str: isinstance(value, str),
            bool: isinstance(value, bool),
            Sequence[int]: isinstance(value, list) and all(type(part) is int for part in value),
        }
        if not fits.get(hint, False):
            raise TypeError(f"{key[:80]}: must be {hint}, found {str(value)[:80]!r}")


def _check_sizes(where: Path, value: Any) -> None:
    if isinstance(value, dict | list | str) and len(value) > LONGEST:
        raise InputError(f"{where}: holds {str(value)[:80]}..., longer than {LONGEST}; {REMEDY}")
    if isinstance(value, int | float) and not abs(value) <= LARGEST:  # also true for nan
        raise InputError(f"{where}: holds {str(value)[:80]}, beyond {LARGEST:,}; {REMEDY}")
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            _check_sizes(where, part)


def _check_weights(file: Path, component: torch.nn.Module) -> None:
    wanted = {key: list(tensor.shape) for key, tensor in component.state_dict().items()}
    try:
        with safe_open(file, framework="pt") as weights:
            found = {key: weights.get_slice(key).get_shape() for key in weights.keys()}  # noqa: SIM118  not a dict
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file}: not a safetensors file ({error}); {REMEDY}") from error
    for key in sorted({*wanted, *found}):
        if wanted.get(key) != found.get(key):
            raise InputError(
                f"{file}: {key[:80]}: must have shape {wanted.get(key, 'none, it is no weight of this')}, "
                f"found {found.get(key, 'none')}; {REMEDY}"
            )


def main() -> None:
    """Write the manifest of a trusted folder and check the folder."""
    try:
        if len(sys.argv) != 2 or not (Path(sys.argv[1]) / "model_index.json").is_file():
            raise InputError(f"usage: python -m mpdiffuser.safe_loading FOLDER (of a pipeline); found {sys.argv[1:]}")
        write_manifest(Path(sys.argv[1]))
        check_pipeline(Path(sys.argv[1]))
        print(f"{sys.argv[1]}: manifest written")
    except InputError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
